"""Tables in Markdown, and how figures are shown in them."""

from __future__ import annotations

import math
import statistics as stats
from collections.abc import Sequence


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Return a table in Markdown, first column to the left, the others to the right; empty columns are left out."""
    kept = [i for i in range(len(head)) if not lines or any(line[i] for line in lines)]
    rule = ["---", *["---:"] * (len(kept) - 1)]
    rows = [[line[i] for i in kept] for line in (head, *lines)]
    return ["| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:])]


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Show mean ± standard deviation, the mean in this form, and how many diverged (NaN), if any did."""
    good = [v for v in values if not math.isnan(v)]
    lost = f" ({len(values) - len(good)} diverged)" if len(good) < len(values) else ""
    if not good:
        return lost.strip(" ()")
    shown = f"{stats.fmean(good):{form}}"
    return shown + (f" ± {stats.stdev(good):{form.lstrip('+')}}" if len(good) > 1 else "") + lost
