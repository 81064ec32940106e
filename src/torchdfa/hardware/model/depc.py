"""The direct error propagation core (DEPC): a sign bit adds or subtracts each term (Han & Yoo 2019, §5.2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torchdfa.hardware.model.fixed import Integers


def sum_width(width: int, terms: int, blocks: int = 1) -> int:
    """Return the bits that a sum of ``terms · blocks`` numbers of ``width`` bits needs, any of them negated."""
    # The lowest number negated is 2^(width-1), one more than fits: the bit that the sum of one term needs as well.
    return width + (terms * blocks).bit_length()


def direct_errors(errors: Integers, positive: NDArray[np.bool_], terms: int) -> Integers:
    """Return ``errors @ B``, B in ±1, as the core makes it: ``terms`` at a time by an adder tree, the sums accumulated.

    Args:
        errors: Of the scope's output, shape (N, K).
        positive: Where B is +1, shape (K, H).
        terms: Of one cycle.
    """
    k = errors.shape[1]
    total = np.zeros((len(errors), positive.shape[1]), np.int64)
    for first in range(0, k, terms):
        part, bits = errors[:, first : first + terms, None], positive[None, first : first + terms]
        total += add_tree(np.where(bits, part, -part))
    return total


def add_tree(terms: Integers) -> Integers:
    """Add up along axis 1 in pairs, as the tree does."""
    while terms.shape[1] > 1:
        odd = terms[:, -1:] if terms.shape[1] % 2 else terms[:, :0]
        even = terms.shape[1] // 2 * 2
        terms = np.concatenate([terms[:, 0:even:2] + terms[:, 1:even:2], odd], axis=1)
    return terms[:, 0]
