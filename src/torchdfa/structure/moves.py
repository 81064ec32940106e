"""Calls that move channels and compute nothing: what splits, slices and shuffles them, as in ShuffleNet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from torchdfa.structure.trace import is_size

MOVING_CALLS = frozenset(
    "chunk split tensor_split getitem narrow view reshape unflatten flatten transpose swapaxes swapdims permute "
    "movedim contiguous clone channel_shuffle".split()
)
# Unlike one another, so that no dimension passes for another one.
_SAMPLES, _SPATIAL = 2, (3, 5, 7)


class NotMovedError(Exception):
    """A value does more than move channels of maps that are known."""


class Moves:
    """What calls that move channels make of maps, found by making them on maps whose entries are numbered.

    Args:
        dims: Spatial dimensions of a map.
        channels: Returns how many channels a node's map has, None for what is no map that is known.
    """

    def __init__(self, dims: int, channels: Callable[[fx.Node], int | None]):
        self.spatial, self.channels = _SPATIAL[:dims], channels
        # Values between a map and the next: tuples, maps reshaped; and the map that they are made of.
        self.pieces: dict[fx.Node, tuple[Any, fx.Node]] = {}

    def follow(self, node: fx.Node, above: Sequence[fx.Node]) -> bool:
        """Tell whether a call moves channels and does nothing else; what it makes is then a piece.

        Args:
            node: The call.
            above: Maps and pieces that it takes.
        """
        if len(above) != 1:
            return False
        try:
            value = self._value(node)
        except NotMovedError:
            return False
        self.pieces[node] = value, self.pieces[above[0]][1] if above[0] in self.pieces else above[0]
        return True

    def taken(self, node: fx.Node) -> tuple[fx.Node, Tensor] | None:
        """Return which channels of which map a piece is made of; None where it is no map."""
        value, source = self.pieces[node]
        if not isinstance(value, Tensor) or tuple(value.shape[2:]) != self.spatial:
            return None
        whole = self._numbered(self.channels(source) or 0)
        own = value[0].flatten(1)[:, 0] // math.prod(self.spatial)
        # Not where samples were mixed, or places.
        return (source, own) if (own < whole.shape[1]).all() and torch.equal(value, whole[:, own]) else None

    def _numbered(self, channels: int) -> Tensor:
        shape = (_SAMPLES, channels, *self.spatial)
        return torch.arange(math.prod(shape), device="cpu").view(shape)

    def _value(self, node: fx.Node) -> Any:
        if node in self.pieces:
            return self.pieces[node][0]
        if (channels := self.channels(node)) is not None:
            return self._numbered(channels)
        target = node.target
        name = str(target) if node.op == "call_method" else getattr(target, "__name__", "")
        counts = getattr(target, "__module__", "") == "_operator"  # with sizes
        if node.op not in ("call_method", "call_function") or not (name in MOVING_CALLS or counts or is_size(node)):
            raise NotMovedError(node.name)
        arguments = fx.map_arg(node.args, self._value)
        keywords = fx.map_arg(node.kwargs, self._value)
        try:
            if node.op == "call_method":
                return getattr(arguments[0], name)(*arguments[1:], **keywords)
            return target(*arguments, **keywords)  # type: ignore[operator]
        except Exception as error:  # whatever torch finds wrong with these sizes
            raise NotMovedError(node.name) from error
