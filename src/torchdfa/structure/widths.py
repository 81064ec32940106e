"""How many channels the maps in a traced graph have, as far as its layers tell."""

from __future__ import annotations

from torch import fx, nn

from torchdfa.structure.base import CONVOLUTIONS
from torchdfa.structure.calls import PASSING, PASSING_CALLS, POOLS, PRODUCTS, SUMS, WINDOWS, joined
from torchdfa.structure.moves import MOVING_CALLS, Moves
from torchdfa.structure.trace import Reader


class Widths:
    """The channels of maps.

    Args:
        reader: The graph.
        dims: Spatial dimensions of a map.
    """

    def __init__(self, reader: Reader, dims: int):
        self.reader, self.dims = reader, dims

    def of(self, node: fx.Node) -> int | None:
        """Return how many channels a node's map has, or None where that can't be told."""
        module = self.reader.module(node)
        if isinstance(module, CONVOLUTIONS):
            return module.out_channels
        if (own := _normed(module)) is not None:
            return own
        if parts := joined(node, self.reader.call(node), self.dims):
            each = [self.of(part) for part in parts]
            if all(n is not None for n in each):
                return sum(n for n in each if n is not None)
        elif self._keeps(node):
            return self.of(self.reader.tensors(node)[0])
        elif (own := self._left(node)) is not None:
            return own
        return self._taken(node)

    def _left(self, node: fx.Node) -> int | None:
        """Return how many channels are left of a map's by calls that move them, or None where that can't be told."""
        call, source = self.reader.call, node
        while call(source) in MOVING_CALLS and self.reader.tensors(source):
            source = self.reader.tensors(source)[0]
        if source is node:
            return None
        channels = self.of(source)
        moves = Moves(self.dims, lambda n: channels if n is source else None)
        taken = moves.taken(node) if moves.follow(node, [source]) else None
        return None if taken is None else len(taken[1])

    def _taken(self, node: fx.Node) -> int | None:
        """Return how many channels those take that are given a map, or None where that can't be told."""
        for user in node.users:
            module = self.reader.module(user)
            if isinstance(module, CONVOLUTIONS):
                return module.in_channels
            found = _normed(module)
            if found is None and (self._keeps(user) or joined(user, self.reader.call(user), self.dims) == [node]):
                found = self._taken(user)
            if found is not None:
                return found
        return None

    def _keeps(self, node: fx.Node) -> bool:
        """Tell whether a call's output has the channels of its first input."""
        call = self.reader.call(node)
        passes = call in PASSING_CALLS or call in POOLS or call in SUMS or call in PRODUCTS
        return passes or isinstance(self.reader.module(node), (*PASSING, *WINDOWS))


def _normed(module: nn.Module | None) -> int | None:
    """Return the channels that a norm is made for."""
    found = getattr(module, "num_features", None) or getattr(module, "num_channels", None)
    return found if isinstance(found, int) else None
