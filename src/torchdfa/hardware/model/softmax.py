"""Softmax and its cross-entropy's error in integers: powers of two from a table of 64 entries and a shift."""

from __future__ import annotations

import numpy as np

from torchdfa.hardware.model.fixed import Fixed, Integers

_LOG2E = round(np.log2(np.e) * 2**14)
_POWERS = np.round(2 ** (15 - np.arange(64) / 64)).astype(np.int64)


def softmax_error(logits: Fixed, labels: Integers) -> Fixed:
    """Return ``p - y``, 16 bits of which 15 behind the point, shape (N, K), for labels (N,)."""
    below = logits.values.max(1, keepdims=True) - logits.values
    fraction = logits.fraction + 14
    exponent = below * _LOG2E  # of base 2, negated
    exponent = exponent >> (fraction - 6) if fraction >= 6 else exponent << (6 - fraction)
    powers = _POWERS[exponent & 63] >> np.minimum(exponent >> 6, 40)
    p = (powers << 15) // powers.sum(1, keepdims=True)
    p[np.arange(len(p)), labels] -= 2**15
    return Fixed(np.minimum(p, 2**15 - 1), 15)
