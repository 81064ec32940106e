"""What the plots of experiments have in common."""

from __future__ import annotations

import statistics as stats
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchdfa.experiments.results import Row
from torchdfa.files import write_atomically


def blank(width: float, height: float, dpi: int = 150) -> Any:
    """Return an empty figure of that size in inches, with so many pixels an inch, which needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=dpi)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure in the format that the file's name ends in; the same figure gives the same bytes."""
    import matplotlib

    kind = path.suffix[1:]
    # An SVG has random names and the date in it otherwise.
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        metadata = {"Date": None} if kind == "svg" else None
        write_atomically(path, lambda file: figure.savefig(file, format=kind, metadata=metadata))


def clear(axes: Any) -> None:
    """Take away what distracts."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def draw_curve(axes: Any, runs: Sequence[Sequence[Row]], color: Any, label: str, style: str = "-") -> None:
    """Draw test accuracy against epochs: the mean of several whole runs, and a band from the lowest to the highest."""
    by_epoch = list(zip(*([row.test_top1 for row in run] for run in runs), strict=True))
    epochs = range(1, len(by_epoch) + 1)
    axes.plot(epochs, [stats.fmean(v) for v in by_epoch], style, color=color, label=label)
    axes.fill_between(epochs, [min(v) for v in by_epoch], [max(v) for v in by_epoch], color=color, alpha=0.15, lw=0)


def label_epochs(axes: Any, epochs: int) -> None:
    """Name the axes of curves."""
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel="epoch", ylabel="test top-1 (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(1, max(2, epochs))
