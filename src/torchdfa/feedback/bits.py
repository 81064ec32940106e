"""Signs in single bits: packing them, and drawing them from a counter-based hash.

The sign at row k and column h is bit ``h % 8`` of byte ``h // 8`` of row k: a set bit is +1, a clear one -1. Rows are
padded to whole bytes with set bits. Random bytes come from 32-bit words in little-endian order, word ``j`` of row ``k``
being a hash of ``(key, k * words_per_row + j)``, so that any word can be made alone, in any order, on any device.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_LOW32 = 0xFFFFFFFF
# Rounds of the multiply-xorshift hash "lowbias32" (C. Wellons, 2018, public domain).
_ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B))
_LAST_SHIFT = 16
# The eight signs of every byte, shape (256, 8): looking them up is one operation, shifting and masking are six.
_OCTETS = 2.0 * ((torch.arange(256).unsqueeze(1) >> torch.arange(8)) & 1) - 1.0


def key_of(seed: int, name: str) -> int:
    """Return the 63-bit key of the layer ``name`` under ``seed``: the same on every machine and rank."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little") >> 1


def pack(positive: Tensor) -> Tensor:
    """Pack booleans (K, H), True for +1, into bytes (K, ceil(H / 8)), uint8."""
    rows, columns = positive.shape
    padding = -columns % 8
    padded = torch.cat([positive, positive.new_ones(rows, padding)], dim=1).view(rows, -1, 8)
    weights = 2 ** torch.arange(8, device=positive.device)
    return (padded * weights).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """Return the signs ±1, shape (K, columns), of bytes (K, ceil(columns / 8))."""
    octets = _OCTETS.to(packed.device, dtype).index_select(0, packed.flatten().int())
    return octets.view(len(packed), 8 * packed.shape[1])[:, :columns]


def draw(key: Tensor, rows: int, columns: int) -> Tensor:
    """Draw random bytes (rows, ceil(columns / 8)), uint8, from the 0-dimensional int64 ``key``."""
    words_per_row = -(-columns // 32)
    index = torch.arange(rows * words_per_row, device=key.device)
    # int64 products wrap, but their low 32 bits are those of the unsigned product: no other bits are kept.
    words = _mix(_mix(index ^ (key & _LOW32)) ^ (key >> 32))
    shifts = torch.arange(0, 32, 8, device=key.device)
    octets = (words.unsqueeze(-1) >> shifts) & 0xFF
    return octets.to(torch.uint8).view(rows, 4 * words_per_row)[:, : -(-columns // 8)]


def _mix(words: Tensor) -> Tensor:
    for shift, factor in _ROUNDS:
        words = ((words ^ (words >> shift)) * factor) & _LOW32
    return words ^ (words >> _LAST_SHIFT)
