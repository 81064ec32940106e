"""The aim of hybrid rules, and which rows of an experiment reach it."""

from __future__ import annotations

import math
import statistics as stats
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torchdfa.modular import HybridDFA

if TYPE_CHECKING:
    from torchdfa.experiments.reproduce.page import Standing

# At most so many points of accuracy, or percent of perplexity, behind back-propagation, at such a share of its
# multiply-adds. The paper (arXiv 2006.12830) claims BP's accuracy; the numbers are ours.
AIM_POINTS, AIM_PERCENT, AIM_SHARE = 1.0, 5.0, 0.7


def about_aim(found: Sequence[Standing]) -> list[str]:
    """Say which rows of a hybrid rule reach the aim, and by how much the others miss it."""
    measure = found[0].measure
    most, unit = (AIM_PERCENT, "%") if measure.falls else (AIM_POINTS, "points")
    lines = []
    for s in found:
        other = next((o for o in found if o.name == s.line.against), None)
        if other is None or not any(isinstance(r, HybridDFA) for r in s.line.config.rules):
            continue
        apart = s.behind(other)
        if not apart:
            continue
        mean = stats.fmean(apart)
        lost = sum(map(math.isnan, s.values))
        missed = [
            *([f"{lost} of {len(s.values)} seeds diverged"] if lost else []),
            *([f"{other.line.name} is better by more"] if (mean if measure.falls else -mean) > most else []),
            *([f"{s.share:.0%} of the multiply-adds are left"] if s.share > AIM_SHARE else []),
        ]
        said = "missed: " + ", and ".join(missed) if missed else "reached"
        size = f"{mean:+.2f}" + (f" ± {stats.stdev(apart):.2f}" if len(apart) > 1 else "")
        angles = f"; {s.trunk.partition(',')[0]} to the true gradient" if s.trunk else ""
        lines.append(f"- {s.name}: {said} ({size} {unit}, × {s.share:.2f}{angles}).")
    within = f"{most:g} {unit.replace('points', 'point')} of back-propagation's {measure.name}"
    return [
        "## The aim",
        "",
        f"HybridDFA within {within}, in the mean of the seeds, at {1 - AIM_SHARE:.0%} fewer multiply-adds of error "
        "propagation. In brackets: difference, multiply-adds over back-propagation's, what limits it.",
        "",
        *(lines or ["- No row can be judged yet."]),
        "",
    ]
