"""Choosing a learning rate: the scores at each one tried, the best, and where to look further."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torchdfa.experiments.results import Row, score


def tried(runs: Iterable[Sequence[Row]], name: str) -> dict[float, float]:
    """Return a method's score in the search at each learning rate, lowest rate first."""
    return dict(sorted((run[0].lr, score(run)) for run in runs if (run[0].method, run[0].phase) == (name, "search")))


def best(scores: dict[float, float]) -> float:
    """Return the learning rate with the highest score; of several, the lowest."""
    return max(scores, key=lambda lr: scores[lr])


def beyond(scores: dict[float, float]) -> float | None:
    """Return the next learning rate to try, if the best lies at an edge: the grid's own ratio further."""
    lrs, chosen = list(scores), best(scores)
    if len(lrs) < 2 or chosen not in (lrs[0], lrs[-1]):
        return None
    further = lrs[0] ** 2 / lrs[1] if chosen == lrs[0] else lrs[-1] ** 2 / lrs[-2]
    return float(f"{further:.2g}")
