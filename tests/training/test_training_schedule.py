import math
from itertools import pairwise

import pytest

from torchdfa.training.schedule import SCHEDULES, constant, cosine, onecycle, step


@pytest.mark.parametrize(
    "schedule, done, expected",
    [
        (onecycle, 0.0, 1 / 25),
        (onecycle, 0.15, (1 / 25 + 1) / 2),
        (onecycle, 0.3, 1.0),
        (onecycle, 0.65, (1 + 1e-5) / 2),
        (onecycle, 1.0, 1e-5),
        (cosine, 0.0, 1.0),
        (cosine, 1 / 3, 0.75),
        (cosine, 0.5, 0.5),
        (cosine, 1.0, 0.0),
        (step, 0.0, 1.0),
        (step, 0.4999, 1.0),
        (step, 0.5, 0.1),
        (step, 0.75, 0.01),
        (step, 1.0, 0.01),
        (constant, 0.0, 1.0),
        (constant, 1.0, 1.0),
    ],
)
def test_closed_form(schedule, done, expected):
    assert schedule(done) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("schedule, rises_until", [(onecycle, 0.3), (cosine, 0.0), (step, 0.0), (constant, 1.0)])
def test_rises_then_falls(schedule, rises_until):
    points = [i / 1000 for i in range(1001)]
    for left, right in pairwise(points):
        if right <= rises_until:
            assert schedule(left) <= schedule(right)
        elif left >= rises_until:
            assert schedule(left) >= schedule(right)
    assert all(0 <= schedule(p) <= 1 for p in points)


def test_onecycle_is_smooth_at_the_peak():
    assert math.isclose(onecycle(0.3 - 1e-9), onecycle(0.3 + 1e-9), rel_tol=1e-9)
    assert max(onecycle(i / 1000) for i in range(1001)) == onecycle(0.3)


def test_all_schedules_are_listed():
    assert {"onecycle": onecycle, "cosine": cosine, "step": step, "constant": constant} == SCHEDULES
