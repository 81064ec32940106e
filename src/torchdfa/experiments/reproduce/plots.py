"""The figures of the experiments, drawn from what each row came to."""

from __future__ import annotations

import math
import statistics as stats
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchdfa.experiments.drawing import blank, clear, draw_curve, label_epochs
from torchdfa.experiments.layers import read_angles
from torchdfa.experiments.methods import COLORS
from torchdfa.experiments.reproduce.aim import AIM_PERCENT, AIM_POINTS, AIM_SHARE
from torchdfa.experiments.results import Row

if TYPE_CHECKING:
    from torchdfa.experiments.reproduce.experiment import Reported
    from torchdfa.experiments.reproduce.page import Standing


COLORS_OF_GROUPS = ("#0072b2", "#d55e00", "#cc79a7")


def dots(folder: Path, found: Sequence[Standing], paper: Reported) -> Any:
    """Draw every row's seeds and their mean; where the paper has figures, the differences beside the paper's."""
    shown = [s for s in found if s.whole]
    height = 0.36 * len(shown) + 1.6
    if not (paper and shown):
        figure = blank(8, height)
        _draw_dots(figure.subplots(), shown, _title(found))
        return figure
    figure = blank(11, height)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    _draw_dots(left, shown, _title(found))
    # Networks, images and epochs are the paper's own there: what can be compared is what a row adds.
    for y, s in enumerate(shown):
        other = next((o for o in shown if o.name == s.line.against), None)
        apart = [] if other is None else s.behind(other)
        if apart:
            _draw_seeds(right, y, apart)
        if other is not None and s.name in paper and other.name in paper:
            right.plot(paper[s.name][0] - paper[other.name][0], y, "x", color="#d55e00", ms=7)
    right.plot([], [], "o", color="#0072b2", alpha=0.45, ms=5, label="a seed, paired")
    right.plot([], [], "x", color="#d55e00", ms=7, label="the paper's")
    right.axvline(0, color="#000000", lw=0.8)
    right.set(xlabel="points above the row it is compared with", title="what a row adds")
    clear(right)
    right.tick_params(left=False)
    right.legend(frameon=False, fontsize=8)
    return figure


def dots_and_costs(folder: Path, found: Sequence[Standing], paper: Reported) -> Any:
    """Draw every row's seeds, and the rows' differences to back-propagation against what their errors cost."""
    shown = [s for s in found if s.whole]
    figure = blank(12, max(4.2, 0.36 * len(shown) + 1.6))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_dots(left, shown, _title(found))
    falls = bool(shown) and shown[0].measure.falls
    most = 60.0 if falls else 25.0
    by_name = {s.name: s for s in shown}
    groups = list(dict.fromkeys(s.line.against or s.name for s in shown))
    labels: list[tuple[float, float, Any]] = []
    for i, s in enumerate(shown, 1):
        other = by_name.get(s.line.against or s.name)
        apart = s.behind(other) if other is not None else []
        if not apart:
            continue
        color = COLORS_OF_GROUPS[groups.index(s.line.against or s.name) % len(COLORS_OF_GROUPS)]
        mean = stats.fmean(apart)
        far = abs(mean) > most
        if far:
            # How far such a row is behind matters no more, and the others would be lost beside it.
            edge = math.copysign(most, mean)
            right.plot(s.share, edge, "^" if falls else "v", color=color, ms=6, clip_on=False)
            text, at, offset = f"{i}: {mean:+.0f}", (s.share, edge), (7, 3 if falls else 5)
        else:
            spread = stats.stdev(apart) if len(apart) > 1 else 0
            right.errorbar(s.share, mean, spread, fmt="o", color=color, ms=5, capsize=2)
            text, at, offset = str(i), (s.share, mean), (5, 4)
        # Points on one another share a label, which could not be read otherwise; those at the edge have wide ones.
        close, joint = (0.12, "\n") if far else (0.02, ", ")
        beside = next((n for x, y, n in labels if abs(x - at[0]) < close and abs(y - at[1]) < most / 40), None)
        if beside is not None:
            beside.set_text(beside.get_text() + joint + text)
            continue
        how = {"textcoords": "offset points", "fontsize": 8, "va": "top" if far and falls else "bottom"}
        labels.append((*at, right.annotate(text, at, offset, color="#000000" if far else color, **how)))
    if len(groups) > 1:
        for group, color in zip(groups, COLORS_OF_GROUPS, strict=False):
            right.plot([], [], "o", color=color, ms=5, label=f"compared with {group}")
    low, high = right.get_ylim()
    right.set_ylim((low, min(high, most)) if falls else (max(low, -most), high))
    edge = right.get_ylim()[0 if falls else 1]
    right.fill_between(
        [0, AIM_SHARE], AIM_PERCENT if falls else -AIM_POINTS, edge, color="#009e73", alpha=0.12, lw=0, label="the aim"
    )
    right.axhline(0, color="#000000", lw=0.8)
    right.axvline(1, color="#000000", lw=0.8)
    right.set_xlim(left=0)
    what = "perplexity above back-propagation's (%)" if falls else "points above back-propagation"
    right.set(xlabel="multiply-adds over back-propagation's", ylabel=what)
    clear(right)
    # Below the axes: the aim and the line at 0 lie along their upper or lower edge.
    handles, names = right.get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=8, loc="outside lower right", ncols=len(names))
    return figure


def _draw_seeds(
    axes: Any, y: float, values: Sequence[float], labels: tuple[str | None, str | None] = (None, None)
) -> None:
    axes.plot(values, [y] * len(values), "o", color="#0072b2", alpha=0.45, ms=5, label=labels[0])
    axes.plot(stats.fmean(values), y, "|", color="#0072b2", ms=16, mew=2.5, label=labels[1])


def _draw_dots(axes: Any, shown: Sequence[Standing], title: str) -> None:
    if not shown:
        axes.set_title(title)
        axes.text(0.5, 0.5, "no final run so far: the search goes on", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    for y, s in enumerate(shown):
        values = [s.measure.of(run[-1], "test") for run in s.whole]
        _draw_seeds(axes, y, values, ("a seed", "mean") if y == 0 else (None, None))
        other = next((o for o in shown if o.name == s.line.against), s)
        # A mark where the row that this one is compared with has its mean.
        mean = stats.fmean(s.measure.of(run[-1], "test") for run in other.whole)
        axes.plot(mean, y, "|", color="#000000", ms=22, mew=0.8)
    numbered = any(not math.isnan(s.share) for s in shown)
    axes.set_yticks(range(len(shown)), [f"{s.name}  {i}" if numbered else s.name for i, s in enumerate(shown, 1)])
    axes.set_ylim(len(shown) - 0.5, -0.5)  # the first row on top, whole
    axes.set(xlabel=f"{shown[0].measure.label}; thin line: the row it is compared with", title=title)
    clear(axes)
    axes.legend(frameon=False, fontsize=8)


def curves(folder: Path, found: Sequence[Standing], paper: Reported) -> Any:
    """Draw test accuracy against epochs, mean and range over seeds."""
    figure = blank(7, 4.2)
    axes = figure.subplots()
    shown = [s for s in found if s.whole]
    for s in shown:
        rate = s.whole[0][0].lr
        draw_curve(axes, s.whole, COLORS.get(s.name), f"{s.name}, rate {rate:g}")
    label_epochs(axes, max((len(s.whole[0]) for s in shown), default=2))
    axes.set_title(f"{_title(found)}: mean and range of seeds", fontsize=10)
    clear(axes)
    if shown:
        axes.legend(frameon=False, fontsize=8)
    return figure


def by_size(folder: Path, found: Sequence[Standing], paper: Reported) -> Any:
    """Draw accuracy against the number of training images, and each method's difference to back-propagation."""
    figure = blank(10, 4)
    left, right = figure.subplots(1, 2)
    methods: dict[str, list[Standing]] = {}
    for s in found:
        if s.whole:
            methods.setdefault(s.name.split(",")[0], []).append(s)
    reference = {s.whole[0][0].train_size: s for s in methods.get("BP", [])}
    for name, rows in methods.items():
        sizes = [s.whole[0][0].train_size for s in rows]
        style: dict[str, Any] = {"color": COLORS.get(name), "marker": "o", "ms": 4, "capsize": 2, "label": name}
        left.errorbar(sizes, *_mean_and_deviation(rows), **style)
        known = [s for s in rows if s.whole[0][0].train_size in reference and name != "BP"]
        differences = [[a - b for a, b in s.paired(reference[s.whole[0][0].train_size])] for s in known]
        pairs = [(s.whole[0][0].train_size, d) for s, d in zip(known, differences, strict=True) if d]
        if pairs:
            right.errorbar(
                [size for size, _ in pairs],
                [stats.fmean(d) for _, d in pairs],
                [stats.stdev(d) if len(d) > 1 else 0 for _, d in pairs],
                **style,
            )
    left.set(xscale="log", xlabel="training images", ylabel="test top-1 (%)", title=_title(found[:1], size=False))
    right.set(xscale="log", xlabel="training images", ylabel="points above back-propagation")
    right.axhline(0, color="#000000", lw=0.8)
    shown = sorted({s.whole[0][0].train_size for rows in methods.values() for s in rows})
    for axes in (left, right):
        clear(axes)
        axes.set_xticks(shown, [f"{size:,}" for size in shown])
        axes.minorticks_off()
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    return figure


def layer_angles(folder: Path, found: Sequence[Standing], paper: Reported) -> Any:
    """Draw each layer's angle over the epochs, a panel a method, mean over seeds."""
    rows = read_angles(folder)
    names = [s.name for s in found if any(row["method"] == s.name for row in rows)]
    columns = max(1, math.ceil(len(names) / 2))
    figure = blank(3 * columns + 1.2, 6.2)
    panels = figure.subplots(2, columns, sharex=True, sharey=True, squeeze=False).flatten()
    layers = list(dict.fromkeys(row["parameter"] for row in rows))
    trunk = [layer for layer in layers if layer.startswith("features")]
    for panel, name in zip(panels, names, strict=False):
        for layer in layers:
            by_epoch: dict[int, list[float]] = {}
            for row in rows:
                if (row["method"], row["parameter"]) == (name, layer) and row["degrees"] not in ("", "nan"):
                    by_epoch.setdefault(int(row["epoch"]), []).append(float(row["degrees"]))
            style: dict[str, Any] = {"lw": 1.2, "color": _shade(layer, layers, trunk)}
            style["ls"] = "-" if layer in trunk else "--"
            label = layer if name == names[0] else None
            panel.plot(list(by_epoch), [stats.fmean(v) for v in by_epoch.values()], label=label, **style)
        panel.set_title(name, fontsize=10)
        panel.axhline(90, color="#000000", lw=0.6, ls=":")
        clear(panel)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    figure.supxlabel("epoch")
    figure.supylabel("angle to the true gradient (degrees)")
    if names:
        figure.legend(loc="outside right upper", frameon=False, fontsize=7)
    return figure


def _shade(layer: str, layers: Sequence[str], trunk: Sequence[str]) -> Any:
    """Give the trunk's layers a scale from dark to light upwards, the head's another."""
    from matplotlib import colormaps

    if layer in trunk:
        return colormaps["viridis"](trunk.index(layer) / max(1, len(trunk) - 1) * 0.9)
    head = [other for other in layers if other not in trunk]
    return colormaps["autumn"](head.index(layer) / max(1, len(head) - 1) * 0.8)


def _mean_and_deviation(rows: Sequence[Standing]) -> tuple[list[float], list[float]]:
    values = [[run[-1].test_top1 for run in s.whole] for s in rows]
    return [stats.fmean(v) for v in values], [stats.stdev(v) if len(v) > 1 else 0.0 for v in values]


def _title(found: Sequence[Standing], size: bool = True) -> str:
    rows: list[Row] = [run[0] for s in found for run in (*s.finals.values(), *s.searched)]
    if not rows:
        return ""
    unit = found[0].measure.unit
    images = f", {rows[0].train_size:,} training {unit}" if size and len({r.train_size for r in rows}) == 1 else ""
    return f"{rows[0].dataset}{images}, scale {rows[0].scale}"
