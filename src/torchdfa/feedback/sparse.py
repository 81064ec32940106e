"""Sparse feedback: a random share of a matrix, laid out in blocks so that it multiplies as fast as it is small."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from torchdfa.feedback import bits
from torchdfa.feedback.base import Feedback


@dataclass(frozen=True)
class Blocks:
    """Which entries of a matrix are kept: rows and columns are dealt evenly to blocks, the rows after a shuffle.

    Attributes:
        errors: K, rows of the matrix.
        features: H, its columns.
        count: Number of blocks; a fraction ``1 / count`` of the entries is kept.
        order: A permutation of the K rows.
    """

    errors: int
    features: int
    count: int
    order: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """Blocks, rows and columns of each, shorter ones padded."""
        return self.count, -(-self.errors // self.count), -(-self.features // self.count)

    @property
    def rows(self) -> Tensor:
        """Rows of each block, int64 (blocks, rows); K stands for padding."""
        return _deal(self.order, self.count, self.errors)

    @property
    def columns(self) -> Tensor:
        """Columns of each block, int64 (blocks, columns); H stands for padding."""
        return _deal(torch.arange(self.features, device="cpu"), self.count, self.features)

    @property
    def places(self) -> Tensor:
        """Flat index in the matrix of each kept entry, int64, -1 for padding."""
        rows, columns = self.rows.unsqueeze(2), self.columns.unsqueeze(1)
        return torch.where((rows < self.errors) & (columns < self.features), rows * self.features + columns, -1)


def _deal(items: Tensor, count: int, padding: int) -> Tensor:
    """Deal items to ``count`` rows as evenly as can be, in order; short rows end with ``padding``."""
    ends = [i * len(items) // count for i in range(count + 1)]
    dealt = [items[a:b] for a, b in itertools.pairwise(ends)]
    return torch.nn.utils.rnn.pad_sequence(dealt, batch_first=True, padding_value=padding)


class SparseFeedback(Feedback):
    """``e @ B`` where a fraction ``1 / blocks`` of the entries of ``B`` is kept, the others being zero.

    The entries of the error are shuffled and dealt to the blocks; each block serves its share of the activation's
    entries. Every column of B then has equally many entries, in random rows, and the product is one small dense
    product a block. (A matrix with entries in arbitrary places would have to be far sparser to be as fast.)

    Args:
        weight: The kept entries, shape ``blocks.shape``.
        blocks: Where they lie in B.
        per_position: See :class:`Feedback`.
    """

    weight: Tensor
    rows: Tensor

    def __init__(self, weight: Tensor, blocks: Blocks, *, per_position: bool = False):
        super().__init__(blocks.errors, blocks.features, per_position=per_position)
        self.shape = blocks.shape
        self.register_buffer("rows", blocks.rows.flatten().to(weight.device, torch.int32))
        self._hold(weight)

    def _hold(self, weight: Tensor) -> None:
        self.register_buffer("weight", weight)

    def entries(self, dtype: torch.dtype) -> Tensor:
        """Return the kept entries, shape (blocks, rows, columns)."""
        return self.weight.to(dtype)

    @property
    def entries_dtype(self) -> torch.dtype:
        """Floating-point type of what is stored."""
        return self.weight.dtype

    def forward(self, e: Tensor) -> Tensor:
        """Return ``e @ B``, shape (N, H), for ``e`` of shape (N, K)."""
        count, rows, columns = self.shape
        dealt = (F.pad(e, (0, 1)) if count * rows > self.errors else e).index_select(-1, self.rows)
        parts = torch.bmm(dealt.view(-1, count, rows).transpose(0, 1), self.entries(e.dtype)).transpose(0, 1)
        if count * columns == self.features:
            return parts.flatten(1)
        ends = [i * self.features // count for i in range(count + 1)]
        return torch.cat([parts[:, i, : b - a] for i, (a, b) in enumerate(itertools.pairwise(ends))], dim=1)

    def dense(self) -> Tensor:
        """Return B, shape (K, H), zeros included."""
        return self(torch.eye(self.errors, dtype=self.entries_dtype, device=self.rows.device))

    @property
    def kept(self) -> int:
        """Number of kept entries, those that fill up shorter blocks included."""
        return math.prod(self.shape)

    def products(self, output: torch.Size, hidden: torch.Size) -> int:
        """Return the multiply-adds of carrying an error of shape ``output`` to an activation of shape ``hidden``."""
        return output.numel() // self.errors * self.kept


class BinarySparseFeedback(SparseFeedback):
    """Sparse feedback whose kept entries are ±1, one bit each, times one scale.

    Args:
        positive: Where a kept entry is +1, booleans of the shape ``blocks.shape``.
        scale: s, 0-dimensional.
        blocks: As in :class:`SparseFeedback`.
        per_position: See :class:`Feedback`.
    """

    binary = True
    packed_signs: Tensor
    scale: Tensor

    def __init__(self, positive: Tensor, scale: Tensor, blocks: Blocks, *, per_position: bool = False):
        super().__init__(positive, blocks, per_position=per_position)
        self.register_buffer("scale", scale)

    def _hold(self, weight: Tensor) -> None:
        self.register_buffer("packed_signs", bits.pack(weight.flatten(0, 1)))

    def entries(self, dtype: torch.dtype) -> Tensor:
        """Return s · the kept signs, shape (blocks, rows, columns)."""
        return (self.scale.to(dtype) * bits.unpack(self.packed_signs, self.shape[2], dtype)).view(self.shape)

    @property
    def entries_dtype(self) -> torch.dtype:
        """Floating-point type of the scale."""
        return self.scale.dtype
