"""``torchdfa reproduce table1``: Han & Yoo's Table 1 with every method tuned alike, and controls that the paper lacks.

Protocol, the same for every row: seven learning rates, widened while the best lies at an edge; five more trials at and
around the best rate over the row's second setting (weight decay, or the size of the feedback) and the head's relative
rate; all scored on held-out training images. Then several seeds at the best trial, trained on all training images and
scored on the test images. At a seed all rows have the same initial weights and data order.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchdfa.data import load
from torchdfa.experiments.methods import method
from torchdfa.experiments.results import Cell, Results, Row, score
from torchdfa.experiments.runner import Workers, run_cells
from torchdfa.experiments.search import best, beyond, tried
from torchdfa.models import VGG16
from torchdfa.rules import Rule
from torchdfa.training import TrainConfig

LRS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
WEIGHT_DECAYS = (5e-4, 0.0, 1e-4, 2e-3)
FEEDBACK_SCALES: tuple[float, ...] = (1.0, 0.1, 0.3, 3.0)
HEAD_LRS = (1.0, 0.1)
_WIDENINGS = 2
_MORE_TRIALS = 5


@dataclass(frozen=True)
class Scale:
    """How large an experiment is.

    Attributes:
        width: Of VGG-16's convolutions.
        train_size: Training images; None for all.
        validation: Held out of them in the search.
        epochs: Passes.
        seeds: Runs at the best trial.
    """

    width: float
    train_size: int | None
    validation: int
    epochs: int
    seeds: int


SCALES = {
    "small": Scale(0.25, 5000, 1000, 20, 5),
    "medium": Scale(0.25, None, 5000, 20, 3),
    "paper": Scale(1.0, None, 5000, 50, 5),
}


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        name: In the table.
        method: In torchdfa.experiments.methods.
        norm: Batch normalisation in the head.
        tunes: The second setting that is searched: "weight_decay" or "scale".
    """

    name: str
    method: str
    norm: bool = False
    tunes: str = "scale"


LINES = (
    Line("BP", "BP", tunes="weight_decay"),
    Line("BP w/ BN", "BP", norm=True, tunes="weight_decay"),
    Line("CDFA random", "CDFA random"),
    Line("CDFA (7)", "CDFA (7)"),
    Line("CDFA (7) w/ BN", "CDFA (7)", norm=True),
    Line("CBDFA random", "CBDFA random"),
    Line("CBDFA (9)", "CBDFA (9)"),
    Line("CBDFA (9) w/ BN", "CBDFA (9)", norm=True),
    Line("Conv-only", "Conv-only", tunes="weight_decay"),
    Line("FA in the head", "FA in the head"),
    Line("CBDFA (9) unit", "CBDFA (9) unit", tunes="weight_decay"),
    Line("CBDFA (9) chain", "CBDFA (9) chain"),
    Line("CBDFA (9) centred", "CBDFA (9) centred"),
    Line("CBDFA seeded", "CBDFA seeded"),
)


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """The settings of a reproduction.

    Args:
        scale: small: quarter-width VGG-16, 5,000 images, 20 epochs. medium: 50,000 images. paper: full width and 50
            epochs.
        data: cifar10, cifar100 or tiny-imagenet100-32 (a 100-class stand-in).
        data_root: Folder of all data. By default the environment variable TORCHDFA_DATA, then a cache folder.
        rows: Names of the rows to run; all by default.
        jobs: Runs at a time, one thread each; by default one a core.
        shard: "i/n": run only every n-th row from the i-th on, counted from 0, to split the work over machines that see
            one folder.
    """

    scale: str = "small"
    data: str = "cifar10"
    data_root: str | None = None
    rows: tuple[str, ...] = tuple(line.name for line in LINES)
    jobs: int | None = None
    shard: str = "0/1"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale={self.scale!r}, expected one of {', '.join(SCALES)}.")
        known = [line.name for line in LINES]
        if unknown := [name for name in self.rows if name not in known]:
            raise ValueError(f"rows: {unknown} not among {', '.join(map(repr, known))}.")
        i, _, n = self.shard.partition("/")
        if not (i.isdigit() and n.isdigit() and int(i) < int(n)):
            raise ValueError(f"shard={self.shard!r}, expected i/n with 0 ≤ i < n.")


def run_table1(config: ReproduceConfig, out: Path, *, progress: bool = True) -> list[list[Row]]:
    """Run all cells of the table that are not in ``out/results.csv`` yet; return the rows of every run.

    Raises:
        torchdfa.data.DataError: The data is not there.
        CellError: A run crashed; the others are done and kept.
    """
    from torchdfa.experiments.report import watch

    load(config.data, config.data_root)  # a missing data set shows here, not in a worker
    i, _, n = config.shard.partition("/")
    lines = [line for line in LINES if line.name in config.rows][int(i) :: int(n)]
    scale = SCALES[config.scale]
    runs: dict[str, list[Row]] = {}
    jobs = config.jobs or os.cpu_count() or 1
    planned = len(lines) * (len(LRS) + _MORE_TRIALS + scale.seeds)
    with watch(progress, planned) as watcher, Workers(jobs) as workers:

        def run(cells: Iterable[Cell]) -> None:
            for cell, rows in run_cells(list(cells), out, workers):
                runs[cell.key] = rows
                watcher.count(cell)

        run(_cell(config, line, "search", lr) for line in lines for lr in LRS)
        for _ in range(_WIDENINGS):
            wider = [(line, lr) for line in lines if (lr := beyond(_rates(runs.values(), line))) is not None]
            watcher.expect(len(wider))
            run(_cell(config, line, "search", lr) for line, lr in wider)
        run(_cell(config, line, "search", *t) for line in lines for t in _more(best(_rates(runs.values(), line)), line))
        for seed in range(scale.seeds):
            run(
                _cell(config, line, "final", *_settings(_winner(runs.values(), line), line), seed=seed)
                for line in lines
            )
    Results(out / "results.csv").sort([line.name for line in LINES])
    return list(runs.values())


def _rates(runs: Iterable[Sequence[Row]], line: Line) -> dict[float, float]:
    """Return the scores of the first trials, those at the default second setting and head rate."""
    own = (run for run in runs if run[0].method == line.name)
    return tried((run for run in own if _settings(run[0], line)[1:] == (None, 1.0)), line.name)


def _more(lr: float, line: Line) -> list[tuple[float, float, float]]:
    """Draw the further trials of a row: learning rate, second setting, relative rate of the head."""
    values = WEIGHT_DECAYS if line.tunes == "weight_decay" else FEEDBACK_SCALES
    grid = list(itertools.product((lr / 2, lr, 2 * lr), values, HEAD_LRS))
    # Those at the default second setting and head rate lie on the grid of the first trials.
    grid = [trial for trial in grid if trial[1:] != (values[0], 1.0)]
    return random.Random(line.name).sample(grid, _MORE_TRIALS)


def _winner(runs: Iterable[Sequence[Row]], line: Line) -> Row:
    searched = [run for run in runs if (run[0].method, run[0].phase) == (line.name, "search")]
    return max(searched, key=score)[0]


def _settings(row: Row, line: Line) -> tuple[float, float | None, float]:
    """Return a trial's learning rate, its second setting (None for the default) and the head's relative rate."""
    if line.tunes == "weight_decay":
        return row.lr, None if row.weight_decay == WEIGHT_DECAYS[0] else row.weight_decay, row.head_lr
    return row.lr, None if row.feedback_scale in ("matched", "unit") else float(row.feedback_scale), row.head_lr


def _cell(
    config: ReproduceConfig,
    line: Line,
    phase: str,
    lr: float,
    second: float | None = None,
    head_lr: float = 1.0,
    seed: int = 0,
) -> Cell:
    scale = SCALES[config.scale]
    rule = method(line.method, seed)
    decay = WEIGHT_DECAYS[0]
    if second is not None and line.tunes == "weight_decay":
        decay = second
    elif second is not None and second != FEEDBACK_SCALES[0]:
        rule = {k: _scaled(r, second) for k, r in rule.items()} if isinstance(rule, dict) else _scaled(rule, second)
    train = TrainConfig(
        data=config.data,
        data_root=config.data_root,
        train_size=scale.train_size,
        validation=scale.validation if phase == "search" else 0,
        model=VGG16(width=scale.width, head_norm=line.norm),
        rule=rule,
        epochs=scale.epochs,
        lr=lr,
        head_lr=head_lr,
        weight_decay=decay,
        clip=10.0,
        seed=seed,
        alignment=1 if phase == "final" else 0,
    )
    return Cell("table1", line.name, phase, train, config.scale)


def _scaled(rule: Rule, scale: float) -> Rule:
    return dataclasses.replace(rule, scale=scale) if hasattr(rule, "scale") else rule  # type: ignore[call-arg]
