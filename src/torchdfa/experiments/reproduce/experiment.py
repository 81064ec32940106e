"""What an experiment of the papers is, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torchdfa.data import load_any
from torchdfa.experiments.cluster import make_workers
from torchdfa.experiments.progress import watch
from torchdfa.experiments.reproduce.config import ReproduceConfig
from torchdfa.experiments.results import Row
from torchdfa.experiments.study import Line, run_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from torchdfa.experiments.reproduce.page import Standing

# Top-1 and top-5 of the paper by row; NaN where it gives none.
Reported = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment of the papers.

    Attributes:
        name: On the command line and in results.
        title: Of its page.
        about: What is asked, in a sentence or two.
        lines: Makes its rows from the settings.
        plot: Draws its figure from the folder of the results and what each row came to.
        data: Data sets it can be run on, the default first.
        paper: What the paper reports, by data set.
        angles: Whether every layer's angles are kept.
        costs: Whether the page tells what error propagation costs, and which rows reach the aim of hybrid rules.
    """

    name: str
    title: str
    about: str
    lines: Callable[[ReproduceConfig, str], list[Line]]
    plot: Callable[[Path, Sequence[Standing], Reported], Figure]
    data: tuple[str, ...] = ("cifar10", "cifar100", "tiny-imagenet100-32")
    paper: Mapping[str, Reported] = field(default_factory=dict)
    angles: bool = False
    costs: bool = False

    def data_of(self, config: ReproduceConfig) -> str:
        """Return the name of the data set.

        Raises:
            ValueError: The experiment can't be run on the one that was asked for.
        """
        data = config.data or self.data[0]
        if data not in self.data:
            raise ValueError(f"{self.name}: data={data!r}, expected one of {', '.join(self.data)}.")
        return data


def reproduce(experiment: Experiment, config: ReproduceConfig, out: Path, *, progress: bool = True) -> list[list[Row]]:
    """Run all runs of an experiment that are not in ``out/results.csv`` yet; return the rows of every run.

    Raises:
        torchdfa.data.DataError: The data is not there.
        ValueError: The settings don't fit the experiment.
        CellError: A run crashed; the others are done and kept.
    """
    data = experiment.data_of(config)
    lines = experiment.lines(config, data)
    known = [line.name for line in lines]
    if unknown := [name for name in config.rows or () if name not in known]:
        raise ValueError(f"rows: {unknown} not among {', '.join(map(repr, known))}.")
    i, _, n = config.shard.partition("/")
    lines = [line for line in lines if config.rows is None or line.name in config.rows][int(i) :: int(n)]
    if not lines:
        raise ValueError(
            f"shard={config.shard!r}: there is no row for it; use as many shards as there are rows at most."
        )
    load_any(data, config.data_root)  # a missing data set shows here, not in a worker
    if config.trial_epochs is not None:
        lines = [replace(line, budget=replace(line.budget, trial_epochs=config.trial_epochs)) for line in lines]
    planned = sum(line.budget.runs for line in lines)
    crew = make_workers(config.jobs, config.accelerator, config.engine, config.job)
    with watch(progress, planned) as watcher, crew as workers:
        return run_study(
            experiment.name,
            lines,
            out,
            scale=config.scale,
            workers=workers,
            watcher=watcher,
            reuse=Path(config.reuse) if config.reuse is not None else None,
            angles=experiment.angles,
        )
