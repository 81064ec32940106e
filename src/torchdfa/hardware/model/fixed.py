"""Fixed-point numbers: an integer of so many bits, of which the last ``fraction`` lie behind the point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchdfa.settings import demand

Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Format:
    """How numbers are kept.

    Args:
        width: Bits of a number, two's complement.
        fraction: Of them behind the point; may exceed the width or be negative. None: dynamic, as many as each tensor's
            largest magnitude leaves.

    Raises:
        ValueError: The width is not between 2 and 32.
    """

    width: int = 16
    fraction: int | None = None

    def __post_init__(self) -> None:
        demand(self, width=(2 <= self.width <= 32, "2 to 32 bits"))

    @property
    def highest(self) -> int:
        """The largest integer."""
        return 2 ** (self.width - 1) - 1

    def fit(self, largest: float) -> int:
        """Return the fraction that this format has for a tensor whose largest magnitude is given."""
        if self.fraction is not None:
            return self.fraction
        if largest == 0:
            return self.width - 1
        return self.width - 1 - int(np.frexp(largest)[1])


@dataclass(frozen=True)
class Fixed:
    """A tensor of fixed-point numbers: ``values · 2^-fraction``."""

    values: Integers
    fraction: int

    @property
    def largest(self) -> int:
        """The largest magnitude of the integers."""
        return int(np.abs(self.values).max(initial=0))

    @property
    def real(self) -> NDArray[np.float64]:
        """The numbers that it stands for."""
        return np.ldexp(self.values.astype(np.float64), -self.fraction)


def shift_round(values: Integers, shift: int, noise: Any = None) -> Integers:
    """Return ``values · 2^-shift``, to the nearest, halves upward; or ``(values + noise) >> shift``.

    Raises:
        OverflowError: Shifted left, a value exceeds 64 bits.
    """
    if shift <= 0:
        if int(np.abs(values).max(initial=0)) << -shift >= 2**63:
            raise OverflowError(f"shift_round: a left shift by {-shift} exceeds 64 bits; expected smaller values.")
        return values << -shift if shift > -64 else values
    if noise is None:
        return ((values >> min(shift - 1, 63)) + 1) >> 1
    return (values + noise) >> shift


def saturate(values: Integers, width: int) -> Integers:
    """Clip to two's complement of so many bits."""
    return np.clip(values, -(2 ** (width - 1)), 2 ** (width - 1) - 1)


def rescale(values: Integers, shift: int, width: int) -> Integers:
    """Return ``values · 2^-shift`` in so many bits: to the nearest, halves upward, out of range to their ends."""
    if shift < 0:  # saturated first, so that no shift is too far; by the width, nothing but 0 is left in range
        values, shift = saturate(values, width), max(shift, -width)
    return saturate(shift_round(values, shift), width)


def quantize(x: Any, form: Format) -> Fixed:
    """Round real numbers to a format, to the nearest, halves upward, out of range to its ends.

    Raises:
        ValueError: A number is infinite or not a number.
    """
    x = np.asarray(x, np.float64)
    if not np.isfinite(x).all():
        raise ValueError(f"quantize: found {x[~np.isfinite(x)][0]}, expected finite numbers.")
    fraction = form.fit(float(np.abs(x).max(initial=0.0)))
    with np.errstate(over="ignore"):
        rounded = np.floor(np.ldexp(x, fraction) + 0.5)
    # Before the cast, which has no end to saturate at.
    return Fixed(np.clip(rounded, -form.highest - 1, form.highest).astype(np.int64), fraction)


def requantize(x: Fixed, form: Format, *, finest: int | None = None) -> Fixed:
    """Bring a tensor, an accumulator's say, to a format, with a fraction of at most ``finest``."""
    fraction = form.fit(float(np.ldexp(float(x.largest), -x.fraction)))
    fraction = fraction if finest is None else min(fraction, finest)
    return Fixed(rescale(x.values, x.fraction - fraction, form.width), fraction)


def product(a: Integers, b: Integers) -> Integers:
    """Return the matrix product ``a @ b``, exact.

    Raises:
        OverflowError: A sum could exceed 2^53, beyond which float64, that multiplies fast, is not exact.
    """
    bound = float(np.abs(a).max(initial=0)) * float(np.abs(b).max(initial=0)) * a.shape[-1]
    if bound >= 2**53:
        raise OverflowError(f"a sum of {a.shape[-1]} products may reach {bound:.3g}; exact are those below 2^53.")
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)
