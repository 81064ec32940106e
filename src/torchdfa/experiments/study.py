"""A study: several lines, each tuned on held-out images within the same budget, then scored on test images.

Each line's first trials are a grid of learning rates, widened while the best lies at an edge. Further trials, drawn at
and around the best rate, vary the line's second setting (weight decay, or the size of its feedback) and the learning
rate of the head relative to the trunk's. The best trial is then run with several seeds on all training images, and
scored on the test images after its last epoch. At a seed all lines have the same initial weights and data order.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchdfa.baselines import KolenPollack
from torchdfa.experiments.methods import seeded
from torchdfa.experiments.progress import Watch
from torchdfa.experiments.results import Cell, Results, Row, find_results, score
from torchdfa.experiments.runner import Workers, run_cells
from torchdfa.experiments.search import beyond
from torchdfa.rules import Rule
from torchdfa.training import TrainConfig
from torchdfa.training.config import each_rule

WEIGHT_DECAYS = (5e-4, 0.0, 1e-4, 2e-3)
FEEDBACK_SCALES: tuple[float, ...] = (1.0, 0.1, 0.3, 3.0)
HEAD_LRS = (1.0, 0.1)


@dataclass(frozen=True)
class Trial:
    """What the search varies.

    Attributes:
        lr: Peak learning rate.
        second: Weight decay, or the feedback's size over "matched"; None for the line's own.
        head_lr: The head's learning rate over the trunk's; None for the line's own.
    """

    lr: float
    second: float | None = None
    head_lr: float | None = None


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much a line is searched and scored.

    Attributes:
        lrs: Learning rates of the first trials. A single one, without further trials, is taken without a search.
        widenings: How often the grid may grow beyond an edge.
        more: Further trials.
        validation: Training images held out in the search; of a text, tokens of its validation part.
        trial_epochs: Epochs of a trial; as many as a last run's by default.
        seeds: Runs of the best trial.
    """

    lrs: tuple[float, ...]
    widenings: int = 2
    more: int = 0
    validation: int = 1000
    trial_epochs: int | None = None
    seeds: int = 5

    @property
    def runs(self) -> int:
        """Runs of a line, widening left out."""
        return (len(self.lrs) + self.more if self.searches else 0) + self.seeds

    @property
    def searches(self) -> bool:
        """Whether there is anything to choose from."""
        return len(self.lrs) + self.more > 1


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a study's table.

    Attributes:
        name: In the table; no two lines of a study have the same.
        config: Its settings, at seed 0; a trial replaces some of them.
        budget: Of its search.
        start: The second setting and the head's rate that its trials start from, where another study has found them.
        against: The line that it is compared with.
        drawn_as: Name by which its further trials are drawn, where not its own: lines of one name get the same ones, so
            that one experiment can take over another's runs.
        scored_once: Whether last runs are scored on the test images after their last epoch alone, not after each.
    """

    name: str
    config: TrainConfig
    budget: Budget
    start: Trial | None = None
    against: str | None = "BP"
    drawn_as: str | None = None
    scored_once: bool = False

    @property
    def tunes_feedback(self) -> bool:
        """Whether the second setting is the feedback's size, not the weight decay."""
        # Decay is what makes the feedback of Kolen and Pollack follow the weights.
        return any(
            getattr(r, "scale", None) == "matched" and not isinstance(r, KolenPollack) for r in self.config.rules
        )

    @property
    def has_curve(self) -> bool:
        """Whether its last runs are scored after each epoch."""
        return not self.scored_once and self.config.score_every == 1

    def settings(self, trial: Trial, seed: int = 0, validation: int = 0) -> TrainConfig:
        """Return the settings of a run."""
        config, own = self.config, self.start or trial
        second = own.second if trial.second is None else trial.second
        head_lr = own.head_lr if trial.head_lr is None else trial.head_lr
        changes: dict[str, Any] = {"lr": trial.lr, "seed": seed, "validation": validation}
        if validation:
            changes["alignment"] = 0  # a search asks for nothing but the score
            changes["epochs"] = self.budget.trial_epochs or config.epochs
        elif self.scored_once:
            changes["score_every"] = config.epochs
        changes["rule"] = seeded(config.rule, seed)
        if second is not None and self.tunes_feedback:
            changes["rule"] = each_rule(changes["rule"], lambda rule: _scaled(rule, second))
        elif second is not None:
            changes["weight_decay"] = second
        if head_lr is not None:
            changes["head_lr"] = head_lr
        return dataclasses.replace(config, **changes)

    def trial(self, row: Row) -> Trial:
        """Return the trial that a run was."""
        if self.tunes_feedback:
            second = None if row.feedback_scale == "matched" else float(row.feedback_scale)
        else:
            second = None if row.weight_decay == self.config.weight_decay else row.weight_decay
        return Trial(row.lr, second, None if row.head_lr == self.config.head_lr else row.head_lr)


def run_study(
    experiment: str,
    lines: Sequence[Line],
    out: Path,
    *,
    scale: str = "",
    workers: Workers,
    watcher: Watch,
    reuse: Path | None = None,
    angles: bool = False,
) -> list[list[Row]]:
    """Run all runs of the lines that are not in ``out/results.csv`` yet, and return the rows of each.

    Args:
        experiment: Its name.
        lines: Of the table.
        out: Folder of the results.
        scale: Of the experiment, for its rows.
        workers: Who runs them.
        watcher: Is told of each run.
        reuse: Folder with other results in it or below it, from which runs of the same settings are taken over.
        angles: Whether to keep every layer's angles of the last runs.

    Raises:
        CellError: A run crashed; the others are done and kept.
    """
    runs: list[list[Row]] = []
    # Of each line the score of each trial.
    scores: dict[str, dict[Trial, float]] = {line.name: {} for line in lines}
    known = _known(reuse)
    results = Results(out / "results.csv")

    def run(asked: Iterable[tuple[Line, Trial]], seed: int | None = None) -> None:
        wanted: dict[str, tuple[Line, Trial]] = {}
        cells = []
        finished = results.read() if known else {}
        for line, trial in asked:
            phase, validation = ("search", line.budget.validation) if seed is None else ("final", 0)
            config = line.settings(trial, seed or 0, validation)
            cell = Cell(experiment, line.name, phase, config, scale, angles and phase == "final")
            wanted[cell.key] = line, trial
            cells.append(cell)
            if cell.key in known and cell.key not in finished and not cell.angles:
                results.adopt(cell, known[cell.key])
        for cell, rows in run_cells(cells, out, workers):
            line, trial = wanted[cell.key]
            if seed is None:
                scores[line.name][trial] = score(rows)
            runs.append(rows)
            watcher.count(cell)

    searched = [line for line in lines if line.budget.searches]
    run((line, Trial(lr)) for line in searched for lr in line.budget.lrs)
    for widening in range(max((line.budget.widenings for line in searched), default=0)):
        wide = [
            (line, Trial(lr))
            for line in searched
            if widening < line.budget.widenings and (lr := beyond(_by_rate(scores[line.name]))) is not None
        ]
        watcher.expect(len(wide))
        run(wide)
    run((line, trial) for line in searched for trial in _more(line, scores[line.name]))
    chosen = {line.name: _best(scores[line.name]) for line in searched}
    for seed in range(max((line.budget.seeds for line in lines), default=0)):
        run(
            ((line, chosen.get(line.name, Trial(line.budget.lrs[0]))) for line in lines if seed < line.budget.seeds),
            seed,
        )
    _tidy(out, [line.name for line in lines])
    return runs


def _by_rate(scores: Mapping[Trial, float]) -> dict[float, float]:
    """Return the scores of the first trials by learning rate, lowest first."""
    return dict(sorted((t.lr, s) for t, s in scores.items() if t == Trial(t.lr)))


def _best(scores: Mapping[Trial, float]) -> Trial:
    """Return the trial with the highest score; of several, the one of the lowest rate."""
    return max(sorted(scores, key=lambda trial: trial.lr), key=lambda trial: scores[trial])


def _more(line: Line, scores: Mapping[Trial, float]) -> Iterator[Trial]:
    """Draw the further trials of a line."""
    first = {trial: s for trial, s in scores.items() if trial == Trial(trial.lr)}
    lr = _best(first).lr
    values = FEEDBACK_SCALES if line.tunes_feedback else _own_first(WEIGHT_DECAYS, line.config.weight_decay)
    heads = HEAD_LRS if line.config.head_lr else (HEAD_LRS[0],)
    grid = list(itertools.product((lr / 2, lr, 2 * lr), values, heads))
    # Those at the first value and rate are on the grid of the first trials.
    grid = [point for point in grid if point[1:] != (values[0], HEAD_LRS[0])]
    for rate, second, head_lr in random.Random(line.drawn_as or line.name).sample(grid, line.budget.more):
        yield Trial(rate, None if second == values[0] else second, None if head_lr == HEAD_LRS[0] else head_lr)


def _own_first(values: Sequence[float], own: float) -> tuple[float, ...]:
    return own, *(value for value in values if value != own)


def _scaled(rule: Rule, scale: float) -> Rule:
    return dataclasses.replace(rule, scale=scale) if hasattr(rule, "scale") else rule  # type: ignore[call-arg]


def _known(folder: Path | None) -> dict[str, list[Row]]:
    """Read all runs of the experiments at and below a folder."""
    if folder is None:
        return {}
    found = find_results(folder)
    if not found:
        raise ValueError(f"there is no results.csv in or below {folder}. Give a folder of experiments that were run.")
    return {key: run for results in found for key, run in results.read().items()}


def _tidy(out: Path, order: Sequence[str]) -> None:
    """Sort the results, and remove old locks if no run is under way."""
    Results(out / "results.csv").sort(order)
    if not any(path.is_dir() for path in (out / "partial").glob("*")):
        shutil.rmtree(out / "partial", ignore_errors=True)
