"""What a comparison shows: progress while it runs, a table, a plot, a page."""

from __future__ import annotations

import math
import statistics as stats
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import torchdfa
from torchdfa.experiments.compare import CompareConfig, Score
from torchdfa.experiments.methods import COLORS
from torchdfa.experiments.results import Cell, Row
from torchdfa.experiments.search import tried
from torchdfa.training import to_dict
from torchdfa.training.checkpoint import write_atomically

# Two lines each on a terminal, so that the table fits 80 columns.
_HEADINGS = (
    "method",
    "top-1\n%",
    "train\n%",
    "rate",
    "epochs\nto 95 %",
    "step\n/ {}",
    "feedback\nbytes",
    "as\nfloat32",
)
_EDGE = "* the lowest or highest learning rate tried: a better one may lie beyond"


class Watch:
    """Progress of an experiment on the terminal; of no effect without one."""

    def __init__(self, progress: Any, planned: int):
        self._progress = progress
        self._task = None if progress is None else progress.add_task("", total=planned, what="")

    def expect(self, more: int) -> None:
        """Add runs to those that are planned."""
        if self._progress is not None:
            total = self._progress.tasks[0].total
            self._progress.update(self._task, total=total + more)

    def count(self, cell: Cell) -> None:
        """Count a finished run."""
        if self._progress is not None:
            what = f"{cell.method}, rate {cell.config.lr:g}, seed {cell.config.seed}"
            self._progress.update(self._task, advance=1, what=what)

    def say(self, text: str) -> None:
        """Show what is going on."""
        if self._progress is not None:
            self._progress.update(self._task, what=text)


@contextmanager
def watch(shown: bool, planned: int) -> Iterator[Watch]:
    """Show a progress bar with the time left while the context lasts."""
    if not shown:
        yield Watch(None, planned)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("runs,"), TimeElapsedColumn(), TextColumn("gone,"))
    columns += (TimeRemainingColumn(), TextColumn("left"), TextColumn("{task.fields[what]}"))
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Watch(progress, planned)


def table(scores: Sequence[Score]) -> list[tuple[str, ...]]:
    """Return the table as text cells, headings first."""
    head = tuple(h.format(scores[0].method) for h in _HEADINGS)
    return [head, *(_line(score) for score in scores)]


def show(scores: Sequence[Score]) -> None:
    """Print the table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    head, *lines = table(scores)
    shown = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for i, heading in enumerate(head):
        shown.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for line in lines:
        shown.add_row(*line)
    console = Console()
    console.print(shown)
    if any(score.at_edge for score in scores):
        console.print(_EDGE)


def _line(score: Score) -> tuple[str, ...]:
    return (
        score.method,
        _spread(score.top1),
        _spread(score.train_top1),
        f"{score.lr:g}" + ("*" if score.at_edge else ""),
        f"{score.epochs:.1f}",
        f"{score.step:.2f}",
        f"{score.feedback_bytes:,}",
        f"{score.feedback_bytes_float32:,}",
    )


def _spread(values: Sequence[float]) -> str:
    if any(math.isnan(v) for v in values):
        return "diverged"
    return f"{stats.fmean(values):.2f}" + (f" ± {stats.stdev(values):.2f}" if len(values) > 1 else "")


def write_summary(
    path: Path, config: CompareConfig, scores: Sequence[Score], runs: Sequence[Sequence[Row]], size: int
) -> None:
    """Write the page of a comparison: table, search grid, settings, in Markdown."""
    head, *lines = table(scores)
    model = to_dict(config.model)
    arguments = ", ".join(f"{k}={v}" for k, v in model["init_args"].items())
    text = [f"# {config.data}: {', '.join(config.methods)}", ""]
    text += ["![Test accuracy against epochs, and the search of learning rates](curves.png)", ""]
    text += markdown([h.replace("\n", " ") for h in head], lines)
    text += ["", _EDGE.replace("*", "\\*") + "."] if any(score.at_edge for score in scores) else []
    text += [
        "",
        f"Top-1 on the whole test set after the last epoch, mean ± standard deviation over {config.seeds} seeds; "
        "training accuracy in training mode. Epochs to 95 % of the final test accuracy. Step: CPU time of a training "
        "step, one thread, float32, interleaved, median, as a ratio.",
        "",
        "## Search",
        f"Every method at the same learning rates, seed 0, {config.validation:.0%} of the training images held out; "
        "top-1 % on those. Where the best lay at an edge, the grid was widened.",
        "",
    ]
    grids = {s.method: tried(runs, s.method) for s in scores}
    lrs = sorted({lr for grid in grids.values() for lr in grid})
    cells = [
        (name, *(("diverged" if grid[lr] == -math.inf else f"{grid[lr]:.2f}") if lr in grid else "" for lr in lrs))
        for name, grid in grids.items()
    ]
    text += markdown(("method", *(f"{lr:g}" for lr in lrs)), cells)
    text += ["", "## Settings", f"- network: {model['class_path'].rpartition('.')[2]}({arguments})"]
    text += [f"- training images: {size:,}, {'flips and crops' if config.augment else 'no augmentation'}"]
    text += [f"- {config.epochs} epochs, batch {config.batch_size}, SGD with momentum 0.9, one-cycle learning rate"]
    text += [
        f"- weight decay {config.weight_decay:g}, gradient norm at most {config.clip}, precision {config.precision}"
    ]
    text += [f"- torchdfa {torchdfa.__version__}, torch {torch.__version__.partition('+')[0]}", ""]
    write_atomically(path, lambda file: file.write("\n".join(text).encode()))


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Return a table in Markdown, first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(line) + " |" for line in (head, rule, *lines)]


def plot(path: Path, config: CompareConfig, runs: Sequence[Sequence[Row]], chosen: dict[str, float]) -> None:
    """Draw test accuracy against epochs, mean and range over seeds, beside the search of learning rates."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for name in config.methods:
        color = COLORS[name]
        finals = [run for run in runs if (run[0].method, run[0].phase) == (name, "final") and not run[-1].problem]
        if finals:
            epochs = range(1, config.epochs + 1)
            by_epoch = list(zip(*([row.test_top1 for row in run] for run in finals), strict=True))
            left.plot(epochs, [stats.fmean(v) for v in by_epoch], color=color, label=f"{name}, rate {chosen[name]:g}")
            left.fill_between(
                epochs, [min(v) for v in by_epoch], [max(v) for v in by_epoch], color=color, alpha=0.15, lw=0
            )
        grid = {lr: top1 for lr, top1 in tried(runs, name).items() if top1 > -math.inf}
        right.plot(list(grid), list(grid.values()), color=color, marker="o", ms=4, lw=1.2)
        if chosen[name] in grid:
            right.plot(chosen[name], grid[chosen[name]], "o", color=color, ms=9, mfc="none")
    left.set(xlabel="epoch", ylabel="test top-1 (%)", title=f"{config.data}: mean and range of {config.seeds} seeds")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_xlim(1, max(2, config.epochs))
    if left.lines:
        left.legend(frameon=False, fontsize=8, loc="lower right")
    right.set(xscale="log", xlabel="peak learning rate", title="search: top-1 (%) on held-out images")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda file: figure.savefig(file, format="png"))
