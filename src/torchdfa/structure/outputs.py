"""Reach into what a model returns: parts of a tuple, a dict or a data class."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

# A part of what a model returns: its key, attribute or position.
PartName = str | int
# What a scope's output is: a part, or the name of the module that makes it; several parts; all that is returned.
Output = PartName | tuple[PartName, ...] | None


class NotATensorError(ValueError):
    """A scope's output is no tensor, but ``value``; the message says what to do."""

    value: Any = None


def not_a_tensor(value: Any) -> NotATensorError:
    """Return the error for a scope's output that is no tensor."""
    error = NotATensorError(
        f"the scope's output is {describe(value)}, expected a tensor with a row a sample. Pass output=..., naming "
        "the part (a key, an attribute, a position; several as a tuple) or the module that computes what the loss is "
        "taken of."
    )
    error.value = value
    return error


def demand_tensor(value: Any) -> Tensor:
    """Return a scope's output, or a part of it, if it is a tensor with a row a sample; else raise NotATensorError."""
    if not isinstance(value, Tensor) or not value.dim():
        raise not_a_tensor(value)
    return value


def pick(value: Any, part: PartName) -> Any:
    """Return the named part of a model's output: a key, an attribute, or a position.

    Raises:
        ValueError: There is no such part; the message lists those there are.
    """
    try:
        return value[part] if isinstance(part, int) or isinstance(value, Mapping) else getattr(value, part)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"the model's output has no part {part!r}: it is {describe(value)}.") from error


def put(value: Any, part: PartName, tensor: Tensor) -> Any:
    """Return a model's output with its named part replaced by ``tensor``; tuples and data classes are built anew."""
    if isinstance(value, tuple):
        fields = getattr(value, "_fields", None)
        if fields is not None:
            return value._replace(**{fields[part] if isinstance(part, int) else part: tensor})  # type: ignore[attr-defined]
        position = range(len(value))[int(part)]
        return tuple(tensor if i == position else v for i, v in enumerate(value))
    if isinstance(value, (Mapping, list)):
        value[part] = tensor  # type: ignore[index]
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{str(part): tensor})
    setattr(value, str(part), tensor)
    return value


def join(tensors: Sequence[Any]) -> Any:
    """Return several parts of an output as one tensor, of the shape that :func:`joined_shape` says.

    Raises:
        ValueError: One of several is no tensor, or they have different numbers of samples.
    """
    if len(tensors) == 1:
        return tensors[0]
    shape = joined_shape([demand_tensor(t).shape for t in tensors])
    return torch.cat(
        [t.reshape(*shape[:-1], width) for t, width in zip(tensors, _widths(tensors, shape), strict=True)], dim=-1
    )


def split(joined: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return what was joined, piece by piece, in the shapes and types of the parts."""
    if len(tensors) == 1:
        return [joined]
    ends = [0, *itertools.accumulate(_widths(tensors, joined.shape))]
    pieces = [joined[..., begin:end] for begin, end in itertools.pairwise(ends)]
    # Copies: from views that enter another compiled hook torch.compile loses the way back.
    return [piece.reshape(t.shape).to(t.dtype, copy=True) for piece, t in zip(pieces, tensors, strict=True)]


def joined_shape(shapes: Sequence[torch.Size]) -> torch.Size:
    """Return the shape of several parts as one: (N, ..., ΣK) where all are (N, ..., K), else (N, all their entries).

    Raises:
        ValueError: They have different numbers of samples.
    """
    if len(shapes) == 1:
        return shapes[0]
    first = shapes[0]
    if any(shape[0] != first[0] for shape in shapes):
        raise ValueError(
            f"the parts of the output have the shapes {[tuple(s) for s in shapes]}, expected a row a sample in each."
        )
    if len(first) > 1 and all(shape[:-1] == first[:-1] for shape in shapes):
        return torch.Size((*first[:-1], sum(shape[-1] for shape in shapes)))
    return torch.Size((first[0], sum(math.prod(shape[1:]) for shape in shapes)))


def _widths(tensors: Sequence[Tensor], joined: torch.Size) -> list[int]:
    return [math.prod(t.shape[len(joined) - 1 :]) for t in tensors]


def parts(value: Any) -> Mapping[Any, Any]:
    """Return the parts of a model's output: by key, position or attribute."""
    if isinstance(value, Mapping):
        return value
    return dict(enumerate(value)) if isinstance(value, (tuple, list)) else getattr(value, "__dict__", {})


def behind_softmax() -> str:
    """Say that a scope's output comes out of a softmax, and what to do."""
    return (
        "the output comes out of a softmax, where the error is not the p - y that feedback carries. Let the model "
        "return its logits, or pass output=, the name of the module that computes them."
    )


def describe(value: Any) -> str:
    """Say what a value is, with the names of its parts."""
    kind = type(value).__name__.removeprefix("immutable_")  # as traces have dicts and lists
    if isinstance(value, Tensor):
        return f"a {kind} of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {kind} with the keys {list(value)}"
    if hasattr(value, "_fields"):
        return f"a {kind} with the fields {list(value._fields)}"
    return f"a {kind} of {len(value)}" if isinstance(value, (tuple, list)) else f"a {kind}"
