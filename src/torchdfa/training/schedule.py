"""Courses of the learning rate: functions of how much of the training is done, so that nothing needs to be resumed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Schedule = Literal["onecycle", "cosine", "step", "constant"]
_WARMUP = 0.3
_START = 1 / 25
_END = 1e-5


def onecycle(done: float) -> float:
    """Rise from 1/25 to 1 in the first 30 %, fall to 1e-5 in the rest, both along a cosine (Smith & Topin 2018)."""
    if done < _WARMUP:
        return _between(_START, 1.0, done / _WARMUP)
    return _between(1.0, _END, (done - _WARMUP) / (1 - _WARMUP))


def cosine(done: float) -> float:
    """Fall from 1 to 0 along a cosine (Loshchilov & Hutter 2017)."""
    return _between(1.0, 0.0, done)


def step(done: float) -> float:
    """Divide by ten at one half and again at three quarters."""
    return 0.1 ** ((done >= 0.5) + (done >= 0.75))


def constant(done: float) -> float:
    """Stay."""
    return 1.0


SCHEDULES: dict[str, Callable[[float], float]] = {
    "onecycle": onecycle,
    "cosine": cosine,
    "step": step,
    "constant": constant,
}


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
