"""Signs from a linear feedback shift register: the generator that a chip builds from 32 flip-flops and a few gates.

The register shifts towards its high end, bit 31 being its output; what enters at bit 0 is the parity of the tapped bits
(x³² + x²² + x² + x + 1, period 2³² − 1). The signs are its output in order, feature after feature: K for each, then as
many unused ones as make up a multiple of ``LEAP``; set for +1. A chip that reads L bits a cycle, from bit 31 downwards,
leaps L shifts; any L that divides ``LEAP`` reads the same signs. Bytes are laid out as in
:mod:`torchdfa.feedback.bits`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from torchdfa.feedback.bits import pack

WIDTH = 32
TAPS = (32, 22, 2, 1)
LEAP = 16


def seed_of(key: Tensor) -> Tensor:
    """Return the register's seed: the key's low 32 bits, or 1 where they are all zero, a state that never changes."""
    return torch.where((low := key & (2**WIDTH - 1)) == 0, 1, low)


@lru_cache(maxsize=64)
def leap_columns(steps: int) -> tuple[int, ...]:
    """Return the matrix over GF(2) of so many shifts, as one integer a column: what each bit of a state turns into."""
    if steps == 1:
        # Bit j moves on to j + 1, and, where it is tapped, to bit 0 as well.
        return tuple(((1 << (j + 1)) & (2**WIDTH - 1)) | (j + 1 in TAPS) for j in range(WIDTH))
    half = leap_columns(steps // 2)
    columns = tuple(_times(half, column) for column in half)
    return columns if steps % 2 == 0 else tuple(_times(leap_columns(1), column) for column in columns)


def _times(columns: tuple[int, ...], state: int) -> int:
    out = 0
    for j, column in enumerate(columns):
        out ^= column if state >> j & 1 else 0
    return out


def states(seed: Tensor, count: int, leap: int = LEAP) -> Tensor:
    """Return the register's states at ``count`` cycles, int64, the seed being the first; ``leap`` shifts a cycle."""
    found = seed.reshape(1)
    while len(found) < count:  # as many again, all leaping at once over what is there
        later = torch.zeros_like(found)
        for j, column in enumerate(leap_columns(leap * len(found))):
            later ^= (found >> j & 1) * column
        found = torch.cat([found, later])
    return found[:count]


def signs(seed: Tensor, rows: int, columns: int, leap: int = LEAP) -> Tensor:
    """Return where the feedback is +1, booleans (rows, columns), for a register of ``leap`` shifts a cycle."""
    blocks = -(-rows // leap)
    shifts = WIDTH - 1 - torch.arange(leap, device=seed.device)
    bits = states(seed, columns * blocks, leap).unsqueeze(-1) >> shifts & 1
    return bits.view(columns, blocks * leap)[:, :rows].T.bool()


def draw(key: Tensor, rows: int, columns: int) -> Tensor:
    """Draw random bytes (rows, ceil(columns / 8)), uint8, from the 0-dimensional int64 ``key``."""
    return pack(signs(seed_of(key), rows, columns))
