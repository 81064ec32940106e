"""Where to search at a larger scale: around the best trials of a smaller run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torchdfa.experiments.reproduce.config import SCALES, ReproduceConfig
from torchdfa.experiments.results import Results, Row, score
from torchdfa.experiments.study import Line


def carried(line: Line, config: ReproduceConfig, source: str | None = None) -> Line:
    """Return a line whose search starts from the best trial in ``config.rates_from``, if there is such a folder.

    Args:
        line: As it is without.
        config: The settings of the experiment.
        source: Name of the row there that says where to search; by default this line's.

    Raises:
        ValueError: The folder holds no trials of that row.
    """
    if config.rates_from is None or (config.rows is not None and line.name not in config.rows):
        return line
    best = _best(Path(config.rates_from), source or line.name)
    rates = (best.lr / 2, best.lr, 2 * best.lr) if SCALES[config.scale].around else (best.lr,)
    budget = replace(line.budget, lrs=rates, more=0, widenings=0)
    return replace(line, budget=budget, start=line.trial(best))


def _best(folder: Path, name: str) -> Row:
    """Return a row of the best trial of a smaller run."""
    runs = [run for run in Results(folder / "results.csv").read().values() if _searched(run[0], name)]
    if not runs:
        raise ValueError(f"rates_from: {folder / 'results.csv'} holds no trials of {name!r}.")
    return max(runs, key=score)[0]


def _searched(row: Row, name: str) -> bool:
    return (row.method, row.phase) == (name, "search")
