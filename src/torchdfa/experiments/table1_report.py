"""The page of a reproduced Table 1: the table beside the paper's, a plot, the search, all made from ``results.csv``."""

from __future__ import annotations

import math
import statistics as stats
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchdfa.experiments.paper import TABLE1
from torchdfa.experiments.report import markdown
from torchdfa.experiments.results import Results, Row, score
from torchdfa.experiments.table1 import LINES, SCALES
from torchdfa.training.checkpoint import write_atomically

_STAND_IN = "tiny-imagenet100-32"


@dataclass(frozen=True)
class Standing:
    """What a row of the table came to.

    Attributes:
        name: Of the row.
        finals: Its runs at the best trial, by seed.
        searched: Its trials, best first.
    """

    name: str
    finals: dict[int, list[Row]]
    searched: list[list[Row]]

    @property
    def top1(self) -> list[float]:
        """Test accuracy of each seed; NaN for one that diverged."""
        return [math.nan if run[-1].problem else run[-1].test_top1 for _, run in sorted(self.finals.items())]


def standings(results: Results) -> list[Standing]:
    """Read the rows that have runs, in the table's order."""
    runs = list(results.read().values())
    found = []
    for line in LINES:
        own = [run for run in runs if run[0].method == line.name]
        searched = sorted((r for r in own if r[0].phase == "search"), key=score, reverse=True)
        finals = {r[0].seed: r for r in own if r[0].phase == "final"}
        if own:
            found.append(Standing(line.name, finals, searched))
    return found


def write_page(folder: Path) -> Path:
    """Write ``table1.md``, ``table1.png`` and ``table1.svg`` beside the results they are made from.

    Raises:
        ValueError: There are no results.
    """
    found = standings(Results(folder / "results.csv"))
    if not found:
        raise ValueError(f"{folder / 'results.csv'} holds no runs. Run torchdfa reproduce table1 first.")
    first = (found[0].searched or list(found[0].finals.values()))[0][0]
    paper = TABLE1.get(first.dataset, {})
    scale = SCALES[first.scale]
    bp = next((s for s in found if s.name == "BP"), None)
    name = f"{first.dataset}, a 100-class stand-in for CIFAR-100" if first.dataset == _STAND_IN else first.dataset
    text = [
        f"# Table 1 on {name}, scale {first.scale}",
        "",
        f"VGG-16 of width {scale.width:g}, {first.train_size:,} training images, {scale.epochs} epochs, batch 100, "
        "SGD with momentum 0.9, one-cycle learning rate, gradient norm at most 10, no augmentation. Every row has "
        f"the same number of trials, scored on {scale.validation:,} held-out training images; then the best trial "
        "with several seeds, trained on all training images, scored on the test images after the last epoch. At a "
        "seed all rows start from the same weights and see the same batches.",
        "",
        "![Test accuracy of every row](table1.png)",
        "",
        *markdown(_HEAD, [_line(s, bp, paper) for s in found]),
        "",
        "Top-1 and top-5: test accuracy in percent, mean ± standard deviation. Against BP: mean difference over the "
        "seeds, and p of a paired t-test. Epochs to BP: the first epoch at which the mean accuracy reaches BP's "
        "last. Trunk: angle between the convolutions' gradient and the true one, and the ratio of their lengths, "
        "mean over the run. The paper's figures are for full width, 50,000 images and 50 epochs.",
        "",
        "## Search",
        "",
        *markdown(
            ("row", "learning rate", "weight decay", "feedback × matched", "head's rate", "held-out top-1 %"),
            [_trial(run[0], score(run)) for s in found for run in s.searched],
        ),
        "",
    ]
    write_atomically(folder / "table1.md", lambda file: file.write("\n".join(text).encode()))
    _plot(folder, found, paper, first)
    return folder / "table1.md"


_HEAD = (
    "row",
    "top-1",
    "top-5",
    "train",
    "against BP",
    "p",
    "epochs to BP",
    "trunk",
    "seeds",
    "paper top-1",
    "paper top-5",
)


def _line(s: Standing, bp: Standing | None, paper: dict[str, tuple[float, float]]) -> tuple[str, ...]:
    runs = list(s.finals.values())
    good = [run[-1] for run in runs if not run[-1].problem]
    reported = paper.get(s.name)
    difference, p = _against(s, bp)
    return (
        s.name,
        spread(s.top1),
        spread([row.test_top5 for row in good if not math.isnan(row.test_top5)]),
        spread([row.train_top1 for row in good if not math.isnan(row.train_top1)]),
        difference,
        p,
        _epochs_to(s, bp),
        _trunk(runs),
        str(len(runs)),
        f"{reported[0]:.2f}" if reported else "",
        f"{reported[1]:.2f}" if reported else "",
    )


def spread(values: Sequence[float]) -> str:
    """Show mean ± standard deviation; how many diverged, if any did."""
    good = [v for v in values if not math.isnan(v)]
    lost = f" ({len(values) - len(good)} diverged)" if len(good) < len(values) else ""
    if not good:
        return lost.strip(" ()") or "–"
    return f"{stats.fmean(good):.2f}" + (f" ± {stats.stdev(good):.2f}" if len(good) > 1 else "") + lost


def _against(s: Standing, bp: Standing | None) -> tuple[str, str]:
    if bp is None or s is bp:
        return "", ""
    pairs = [
        (run[-1].test_top1, bp.finals[seed][-1].test_top1)
        for seed, run in s.finals.items()
        if seed in bp.finals and not run[-1].problem and not bp.finals[seed][-1].problem
    ]
    if len(pairs) < 2:
        return "", ""
    from scipy.stats import ttest_rel

    ours, theirs = zip(*pairs, strict=True)
    return f"{stats.fmean(a - b for a, b in pairs):+.2f}", f"{ttest_rel(ours, theirs).pvalue:.3f}"


def _epochs_to(s: Standing, bp: Standing | None) -> str:
    if bp is None or not bp.finals or not s.finals:
        return ""
    goal = stats.fmean(run[-1].test_top1 for run in bp.finals.values())
    curve = _curve(s)
    return next((str(i) for i, v in enumerate(curve, 1) if v >= goal), "–")


def _curve(s: Standing) -> list[float]:
    runs = [[row.test_top1 for row in run] for run in s.finals.values() if not run[-1].problem]
    return [stats.fmean(values) for values in zip(*runs, strict=True)]


def _trunk(runs: Sequence[Sequence[Row]]) -> str:
    angles = [row.trunk_angle for run in runs for row in run if not math.isnan(row.trunk_angle)]
    ratios = [row.trunk_ratio for run in runs for row in run if not math.isnan(row.trunk_ratio)]
    return f"{stats.fmean(angles):.0f}°, × {stats.fmean(ratios):.2f}" if angles else ""


def _trial(row: Row, top1: float) -> tuple[str, ...]:
    found = "diverged" if top1 == -math.inf else f"{top1:.2f}"
    size = {"matched": "1", "unit": "unit"}.get(row.feedback_scale, row.feedback_scale)
    return row.method, f"{row.lr:g}", f"{row.weight_decay:g}", size, f"{row.head_lr:g}", found


def _plot(folder: Path, found: Sequence[Standing], paper: dict[str, tuple[float, float]], first: Row) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [s for s in found if any(not math.isnan(v) for v in s.top1)]
    figure = Figure(figsize=(8, 0.36 * len(shown) + 1.4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for y, s in enumerate(shown):
        values = [v for v in s.top1 if not math.isnan(v)]
        axes.plot(values, [y] * len(values), "o", color="#0072b2", alpha=0.45, ms=5, label="a seed" if y == 0 else None)
        axes.plot(stats.fmean(values), y, "|", color="#0072b2", ms=16, mew=2.5, label="mean" if y == 0 else None)
        if s.name in paper:
            axes.plot(paper[s.name][0], y, "x", color="#d55e00", ms=7, label="paper" if y == 0 else None)
    bp = next((s for s in shown if s.name == "BP"), None)
    if bp is not None:
        axes.axvline(stats.fmean(v for v in bp.top1 if not math.isnan(v)), color="#000000", lw=0.8, ls=":")
    axes.set_yticks(range(len(shown)), [s.name for s in shown])
    axes.invert_yaxis()
    axes.set(
        xlabel="test top-1 (%)", title=f"{first.dataset}, {first.train_size:,} training images, scale {first.scale}"
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if shown:
        axes.legend(frameon=False, fontsize=8)
    for kind in ("png", "svg"):
        write_atomically(folder / f"table1.{kind}", lambda file, kind=kind: figure.savefig(file, format=kind))
