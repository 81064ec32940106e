"""What a comparison shows: a table, a plot, a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

import torchdfa
from torchdfa.experiments.compare import CompareConfig, Score
from torchdfa.experiments.drawing import blank, clear, draw_curve, label_epochs, save
from torchdfa.experiments.markdown import spread, table
from torchdfa.experiments.methods import COLORS
from torchdfa.experiments.results import Row
from torchdfa.experiments.search import tried
from torchdfa.files import write_text
from torchdfa.training import to_dict

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


def lines_of(scores: Sequence[Score]) -> list[tuple[str, ...]]:
    """Return the table as text cells, headings first."""
    head = tuple(h.format(scores[0].method) for h in _HEADINGS)
    return [head, *(_line(score) for score in scores)]


def show(scores: Sequence[Score]) -> None:
    """Print the table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    head, *lines = lines_of(scores)
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
        spread(score.top1),
        spread(score.train_top1),
        f"{score.lr:g}" + ("*" if score.at_edge else ""),
        f"{score.epochs:.1f}",
        f"{score.step:.2f}",
        f"{score.feedback_bytes:,}",
        f"{score.feedback_bytes_float32:,}",
    )


def write_summary(
    path: Path, config: CompareConfig, scores: Sequence[Score], runs: Sequence[Sequence[Row]], size: int
) -> None:
    """Write the page of a comparison: table, search grid, settings, in Markdown."""
    head, *lines = lines_of(scores)
    model = to_dict(config.model)
    arguments = ", ".join(f"{k}={v}" for k, v in model["init_args"].items())
    text = [f"# {config.data}: {', '.join(config.methods)}", ""]
    text += ["![Test accuracy against epochs, and the search of learning rates](curves.png)", ""]
    text += table([h.replace("\n", " ") for h in head], lines)
    text += ["", _EDGE.replace("*", "\\*") + "."] if any(score.at_edge for score in scores) else []
    text += [
        "",
        f"Top-1 on the whole test set after the last epoch, mean ± standard deviation over {config.seeds} seeds; "
        "training accuracy in training mode. Epochs to 95 % of the final test accuracy. Step: CPU time of a training "
        "step, one thread, float32, interleaved, median, as a ratio.",
        "",
    ]
    grids = {s.method: grid for s in scores if (grid := tried(runs, s.method))}
    text += _search(config, grids) if grids else []
    text += ["## Settings", f"- network: {model['class_path'].rpartition('.')[2]}({arguments})"]
    text += [f"- training images: {size:,}, {'flips and crops' if config.augment else 'no augmentation'}"]
    text += [f"- {config.epochs} epochs, batch {config.batch_size}, SGD with momentum 0.9, one-cycle learning rate"]
    text += [
        f"- weight decay {config.weight_decay:g}, gradient norm at most {config.clip}, precision {config.precision}"
    ]
    text += [f"- torchdfa {torchdfa.__version__}, torch {torch.__version__.partition('+')[0]}", ""]
    write_text(path, "\n".join(text))


def _search(config: CompareConfig, grids: dict[str, dict[float, float]]) -> list[str]:
    text = [
        "## Search",
        f"Every method at the same learning rates, seed 0, {config.validation:.0%} of the training images held out; "
        "top-1 % on those. Where the best lay at an edge, the grid was widened.",
        "",
    ]
    lrs = sorted({lr for grid in grids.values() for lr in grid})
    cells = [
        (name, *(("diverged" if grid[lr] == -math.inf else f"{grid[lr]:.2f}") if lr in grid else "" for lr in lrs))
        for name, grid in grids.items()
    ]
    return [*text, *table(("method", *(f"{lr:g}" for lr in lrs)), cells), ""]


def plot(path: Path, config: CompareConfig, runs: Sequence[Sequence[Row]], chosen: dict[str, float]) -> None:
    """Draw test accuracy against epochs, mean and range over seeds, beside the search of learning rates."""
    figure = blank(10, 4)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for name in config.methods:
        color = COLORS[name]
        finals = [run for run in runs if (run[0].method, run[0].phase) == (name, "final") and not run[-1].problem]
        if finals:
            draw_curve(left, finals, color, f"{name}, rate {chosen[name]:g}")
        grid = {lr: top1 for lr, top1 in tried(runs, name).items() if top1 > -math.inf}
        right.plot(list(grid), list(grid.values()), color=color, marker="o", ms=4, lw=1.2)
        if chosen[name] in grid:
            right.plot(chosen[name], grid[chosen[name]], "o", color=color, ms=9, mfc="none")
    label_epochs(left, config.epochs)
    left.set_title(f"{config.data}: mean and range of {config.seeds} seeds")
    if left.lines:
        left.legend(frameon=False, fontsize=8, loc="lower right")
    right.set(xscale="log", xlabel="peak learning rate", title="search: top-1 (%) on held-out images")
    for axes in (left, right):
        clear(axes)
    save(figure, path)
