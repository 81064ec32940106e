"""The momentum unit: ``v ← μ v + g``, ``w ← w - rate · v``, one weight a cycle, in integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from torchdfa.hardware.model.fixed import Integers, rescale, saturate, shift_round

WIDTH = 16
DECAY_BITS = 16  # of μ, all behind the point
RATE_BITS = 16
NEAREST = 2**31  # as noise: a half


def momentum(
    weight: Integers,
    velocity: Integers,
    gradient: Integers,
    *,
    decay: int,
    rate: int,
    align: int,
    narrow: int,
    apply: int,
    coarsen: int = 0,
    noise: Any = NEAREST,
    weight_width: int = WIDTH,
) -> tuple[Integers, Integers]:
    """Return the new weights and velocities.

    With v of fraction f, g of fraction ``f + 16 - align`` and w of fraction F, the new v has fraction
    ``f + 16 - narrow``, the new w has ``F - coarsen``, and the learning rate is
    ``rate · 2^(f + 16 - narrow - apply - F + coarsen)``;
    :class:`torchdfa.hardware.model.head.IntegerHead` chooses the shifts.

    Args:
        weight: w, of ``weight_width`` bits.
        velocity: v, 16 bits.
        gradient: g, 16 bits.
        decay: μ · 2^16, 0 to 2^16 - 1.
        rate: Unsigned, 16 bits.
        align: Left shift of the gradient to the products' point, 0 to 31.
        narrow: Right shift of the sum to the new velocity's point, 0 to 31.
        apply: Right shift of ``rate · v`` to the new weight's point, 1 to 32.
        coarsen: Right shift of w to the new weight's point, 0 or 1.
        noise: What is added before that shift, as a fraction of its unit in 2^-32: random for stochastic rounding.
        weight_width: Bits of a weight.
    """
    wide = decay * velocity + (np.asarray(gradient, np.int64) << align)
    velocity = rescale(wide, narrow, WIDTH)
    step = shift_round(rate * velocity, apply, np.asarray(noise, np.int64) >> (32 - apply))
    return saturate(shift_round(weight, coarsen) - step, weight_width), velocity
