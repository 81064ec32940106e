"""Reach into what a model returns: one part of a tuple, a dict or a data class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any

from torch import Tensor


class NotATensorError(ValueError):
    """A scope's output is no tensor, but ``value``; the message says what to do."""

    value: Any = None


def not_a_tensor(value: Any) -> NotATensorError:
    """Return the error for a scope's output that is no tensor."""
    error = NotATensorError(
        f"the scope's output is {describe(value)}, expected a tensor with a row a sample. Pass output=..., naming "
        "the part (a key, an attribute, a position) or the module that computes what the loss is taken of."
    )
    error.value = value
    return error


def pick(value: Any, part: str | int) -> Any:
    """Return the named part of a model's output: a key, an attribute, or a position.

    Raises:
        ValueError: There is no such part; the message lists those there are.
    """
    try:
        return value[part] if isinstance(part, int) or isinstance(value, Mapping) else getattr(value, part)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"the model's output has no part {part!r}: it is {describe(value)}.") from error


def put(value: Any, part: str | int, tensor: Tensor) -> Any:
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
