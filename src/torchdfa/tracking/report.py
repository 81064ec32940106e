"""The page of a comparison of trackers: tables, success and precision plots, frames with boxes."""

from __future__ import annotations

import json
import math
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import torchdfa
from torchdfa.experiments.drawing import blank, clear, save
from torchdfa.experiments.markdown import spread, table
from torchdfa.files import write_csv, write_text
from torchdfa.tracking.bench import METHODS, Bench, Run
from torchdfa.tracking.frames import FrameReader
from torchdfa.tracking.peers import PEERS
from torchdfa.tracking.scores import DISTANCES, OVERLAPS, Score, mean
from torchdfa.tracking.sequences import ATTRIBUTES
from torchdfa.tracking.video import read_image
from torchdfa.training import to_dict

_COLOURS = {
    "BP 128": "#000000", "BP 64": "#8c8c8c", "DFA 128": "#0072b2", "DFA 64": "#56b4e9", "BDFA 128": "#009e73",
    "BDFA 64": "#66c2a5", "BDFA uncentred 128": "#b8860b", "BDFA unit 128": "#d55e00", "BDFA unit 64": "#e69f00",
    "CSRT": "#cc79a7", "KCF": "#f0a0c0", "MIL": "#9467bd",
}  # fmt: skip


# Of the picture of frames; targets beyond that many rows are left out.
_ROWS, _COLUMNS = 5, 5


def write_report(bench: Bench) -> Path:
    """Write summary.md, results.csv, plots.png and frames.png from what is finished, and return the page.

    Raises:
        ValueError: Nothing is finished.
    """
    runs = bench.runs()
    if not runs:
        raise ValueError(f"{bench.out}: nothing is finished yet.")
    out = bench.out
    _write_runs(out / "results.csv", runs)
    _plot(runs, out / "plots.png")
    clip = _frames(bench, out / "frames.png")
    page = [
        "# Trackers side by side", "",
        f"One-pass evaluation on {len({r.sequence for r in runs})} targets "
        f"({', '.join(sorted({r.sequence for r in runs}))}), part \"{bench.config.part}\". AUC and P20: mean over the "
        "targets; ± the deviation of that mean between seeds. Frames a second: mean over the targets, after the first "
        "frame, without reading the images.", "",
        *_methods_table(bench, runs), "", "![Success and precision](plots.png)", "",
        *(["![Frames with the boxes of the methods](frames.png)", ""] if clip else []),
        *_differences(runs), *_sequences_table(runs), *_attributes_table(runs), *_search_tables(bench),
        "## Settings", "", f"{_machine()}", "", "```json", json.dumps(_settings(bench), indent=1), "```", "",
    ]  # fmt: skip
    write_text(out / "summary.md", "\n".join(page))
    return out / "summary.md"


def by_seed(runs: Sequence[Run], method: str) -> list[Score]:
    """Return the score of each seed of a method, over the targets that all its seeds have finished."""
    own, shared = [r for r in runs if r.method == method], _finished(runs, method)
    seeds = sorted({r.seed for r in own}) if shared else []
    return [mean([r.score for r in own if r.seed == s and r.sequence in shared]) for s in seeds]


def _finished(runs: Sequence[Run], method: str) -> set[str]:
    """Return the targets that all seeds of a method have finished."""
    own = [r for r in runs if r.method == method]
    by = [{r.sequence for r in own if r.seed == seed} for seed in {r.seed for r in own}]
    return set.intersection(*by) if by else set()


def _methods_table(bench: Bench, runs: Sequence[Run]) -> list[str]:
    lines = []
    for name in _names(runs):
        own, scores = [r for r in runs if r.method == name], by_seed(runs, name)
        chosen = bench.chosen(name) if name not in PEERS else None
        shown = "" if name in PEERS else f"lr × {chosen.lr:g}, hidden × {chosen.hidden:g}" if chosen else "untuned"
        lines.append(
            (
                *(name, str(len({r.sequence for r in own})), str(len(scores))),
                *(_spread([s.auc for s in scores]), _spread([s.p20 for s in scores])),
                *(f"{_mean(r.rate for r in own):.1f}", f"{_mean(r.first for r in own):.2f}", shown),
            )
        )
    return table(("method", "targets", "seeds", "AUC", "P20", "frames/s", "first frame, s", "rates"), lines)


def _differences(runs: Sequence[Run]) -> list[str]:
    """Return what the rules differ by at equal batches, with the spread between seeds."""
    lines = []
    for name in _names(runs):
        rule, _, batch = name.rpartition(" ")
        base = f"BP {batch}"
        if name in PEERS or rule == "BP" or base not in _names(runs):
            continue
        finished = _finished(runs, name) & _finished(runs, base)
        shared = [r for r in runs if r.sequence in finished]
        own, other = by_seed(shared, name), by_seed(shared, base)
        if own and other:
            gap = _mean(s.auc for s in own) - _mean(s.auc for s in other)
            spread = math.hypot(_deviation([s.auc for s in own]), _deviation([s.auc for s in other]))
            known = min(len(own), len(other)) > 1
            seeds = f"one deviation between seeds is {spread:.3f}" if known else "one seed, so the spread is not known"
            every = {r.sequence for r in runs if r.method in (name, base)}
            part = f" on the {len(finished)} targets that both have finished" if finished != every else ""
            lines.append(f"- {name} less {base}: AUC {gap:+.3f}{part}; {seeds}.")
    return ["## Against back-propagation", "", *lines, ""] if lines else []


def _sequences_table(runs: Sequence[Run]) -> list[str]:
    names = _names(runs)
    lines = [
        (s, *(_spread([r.score.auc for r in runs if (r.sequence, r.method) == (s, n)]) for n in names))
        for s in sorted({r.sequence for r in runs})
    ]
    return ["## AUC of each target", "", *table(("target", *names), lines), ""]


def _attributes_table(runs: Sequence[Run]) -> list[str]:
    there = [a for a in ATTRIBUTES if any(a in r.attributes for r in runs)]
    if not there:
        return []
    names = _names(runs)
    lines = []
    for attribute in there:
        own = [r for r in runs if attribute in r.attributes]
        cells = (_spread([s.auc for s in by_seed(own, n)]) for n in names)
        lines.append((attribute, str(len({r.sequence for r in own})), *cells))
    return ["## AUC by attribute", "", *table(("attribute", "targets", *names), lines), ""]


def _search_tables(bench: Bench) -> list[str]:
    lines = []
    for name in bench.config.names:
        scores = bench.searched(name) if name in METHODS and bench.config.tune else {}
        if scores:
            found = ", ".join(f"{t.lr:g} × {t.hidden:g}: {auc:.3f}" for t, auc in scores.items())
            lines.append(f"- {name}: {found}")
    head = ["## The search", "", "AUC on the tuning half by learning rate × strength of the hidden layers:", ""]
    return [*head, *lines, ""] if lines else []


def _plot(runs: Sequence[Run], path: Path) -> None:
    figure = blank(10, 4.2)
    axes = figure.subplots(1, 2)
    for name in _names(runs):
        scores = by_seed(runs, name)
        if not scores:
            continue
        whole = mean(scores)
        style = {"color": _COLOURS.get(name), "ls": "--" if name.endswith("64") else ":" if name in PEERS else "-"}
        axes[0].plot(OVERLAPS, whole.success, label=f"{name} [{whole.auc:.3f}]", **style)
        axes[1].plot(DISTANCES, whole.precision, label=f"{name} [{whole.p20:.3f}]", **style)
    axes[0].set(xlabel="overlap threshold", ylabel="success rate", title="Success, OPE [AUC]", xlim=(0, 1), ylim=(0, 1))
    axes[1].set(xlabel="centre error, pixels", ylabel="precision", title="Precision, OPE [20 pixels]")
    axes[1].set(xlim=(0, 50), ylim=(0, 1))
    for axis in axes:
        clear(axis)
        axis.legend(fontsize=7)
    save(figure, path)


def _frames(bench: Bench, path: Path) -> bool:
    """Draw five frames of up to five targets with the boxes of one of our methods, of CSRT and of the annotation."""
    from matplotlib.patches import Rectangle

    names = bench.config.names
    ours = next((n for n in names if n.startswith("BDFA")), None) or next((n for n in names if n in METHODS), None)
    shown = [n for n in (ours, "CSRT") if n in names]
    tracks = [(s, {n: boxes for n in shown if (boxes := bench.boxes(n, 0, s)) is not None}) for s in bench.sequences]
    tracks = [(s, boxes) for s, boxes in tracks if boxes]
    tracks = [tracks[i] for i in sorted({round(i) for i in np.linspace(0, len(tracks) - 1, _ROWS)})] if tracks else []
    if not tracks:
        return False
    heights = []
    for sequence, _ in tracks:
        height, width = read_image(sequence.frames[0]).shape[:2]
        heights.append(height / width)
    figure = blank(12, 12 / _COLUMNS * sum(heights) + 0.4, 100)
    figure.set_layout_engine("none")  # the pictures have places of their own
    top, unit = 0.4 / figure.get_figheight(), 12 / _COLUMNS / figure.get_figheight()
    lines = [*((n, _COLOURS.get(n, "#009e73") if n != ours else "#20e020") for n in shown), ("annotated", "#ffffff")]
    for row, (sequence, boxes) in enumerate(tracks):
        for column, i in enumerate(np.linspace(0, len(sequence.frames) - 1, _COLUMNS).round().astype(int)):
            bottom = 1 - top - unit * sum(heights[: row + 1])
            axes = figure.add_axes((column / _COLUMNS, bottom, 1 / _COLUMNS, unit * heights[row]))
            picture = FrameReader()(read_image(sequence.frames[i])).permute(1, 2, 0).numpy()
            axes.imshow(picture, extent=(0, picture.shape[1], picture.shape[0], 0), aspect="auto")
            axes.axis("off")
            drawn = {**boxes, "annotated": sequence.truth}
            for name, colour in lines:
                if name in drawn:
                    x, y, w, h = drawn[name][i]
                    style: dict[str, Any] = {"lw": 1.6}
                    if name == "annotated":
                        style = {"lw": 1.0, "ls": (0, (2, 2))}
                    axes.add_patch(Rectangle((x, y), w, h, fill=False, ec=colour, clip_on=True, **style))
            text = f"{sequence.name}  {i + 1}"
            box = {"fc": "black", "ec": "none", "alpha": 0.6, "pad": 2}
            axes.text(0.015, 0.97, text, color="white", fontsize=8, va="top", transform=axes.transAxes, bbox=box)
    handles = [Rectangle((0, 0), 1, 1, fill=False, ec=c, lw=2, ls=":" if n == "annotated" else "-") for n, c in lines]
    labels = [n for n, _ in lines]
    style = {"facecolor": "#404040", "labelcolor": "white", "edgecolor": "none", "fontsize": 9}
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), **style)
    save(figure, path)
    return True


def _write_runs(path: Path, runs: Sequence[Run]) -> None:
    fields = ("method", "seed", "sequence", "auc", "p20", "frames_per_second", "first_frame_seconds")
    found = (
        (
            *(r.method, r.seed, r.sequence, f"{r.score.auc:.6f}", f"{r.score.p20:.6f}"),
            *(f"{r.rate:.3f}", f"{r.first:.3f}"),
        )
        for r in runs
    )
    write_csv(path, fields, (dict(zip(fields, row, strict=True)) for row in found))


def _settings(bench: Bench) -> dict[str, Any]:
    return {name: value for name, value in to_dict(bench.config).items() if name != "data_root"}


def _machine() -> str:
    threads = torch.get_num_threads()
    return (
        f"torchdfa {torchdfa.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {threads} threads."
    )


def _names(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(r.method for r in runs))


def _spread(values: Sequence[float]) -> str:
    return spread(values, ".3f") or "–"


def _mean(values: Any) -> float:
    values = [v for v in values if not math.isnan(v)]
    return statistics.fmean(values) if values else math.nan


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
