"""The report's plots, each from rows of a run's CSV files."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchdfa.experiments.drawing import blank, save
from torchdfa.hardware.comparison import PAPER, Fetch, Saving, core_saving
from torchdfa.hardware.designs import CORES
from torchdfa.hardware.phases import PHASES
from torchdfa.hardware.rows import Measured, Stepped

_GREY, _BLUE, _RED, _GREEN, _GOLD = "#8a8f98", "#2f6db3", "#c2483d", "#3c8d5a", "#c99a2e"
_STREAM_COLORS = (_GREY, "#b7bcc4", _BLUE, _RED, _GOLD)
_PHASE_COLORS = dict(zip(PHASES, (_GREY, _RED, _BLUE, _GOLD), strict=True))


def _draw(path: Path, width: float, height: float, panels: int, fill: Callable[[Any], None]) -> None:
    import matplotlib.style

    # ZigZag, which the cross-checks import, sets fonts for the whole process.
    with matplotlib.style.context("default"):
        figure = blank(width, height, 130)
        axes = figure.subplots(1, panels, squeeze=False)[0]
        for one in axes:
            one.grid(axis="y", alpha=0.25)
            one.set_axisbelow(True)
            one.spines[["top", "right"]].set_visible(False)
        fill(axes if panels > 1 else axes[0])
        save(figure, path)


def plot_energy(path: Path, measured: Sequence[Measured], title: str) -> None:
    """Draw picojoules a term of each core on each stream; the part of the bar below the line is without glitches."""

    def fill(axes: Any) -> None:
        streams = list(dict.fromkeys(m.stream for m in measured))
        names = [n for n in CORES if any(m.design == n for m in measured)]
        delays = "timed" if any(m.delays == "timed" for m in measured) else "zero"
        by = {(m.design, m.stream, m.delays): m.per_term for m in measured}
        width = 0.8 / len(streams)
        for i, stream in enumerate(streams):
            at = np.arange(len(names)) + (i - (len(streams) - 1) / 2) * width
            color = _STREAM_COLORS[i % len(_STREAM_COLORS)]
            axes.bar(at, [by.get((n, stream, delays), np.nan) for n in names], width * 0.92, color=color, label=stream)
            if delays == "timed":
                still = [by.get((n, stream, "zero"), np.nan) for n in names]
                axes.hlines(still, at - width * 0.46, at + width * 0.46, color="black", lw=1)
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set(ylabel="pJ a term", title=title)
        axes.legend(frameon=False, fontsize=8, title="stream", title_fontsize=8)

    _draw(path, 9, 4.2, 1, fill)


def plot_share(path: Path, savings: Sequence[Saving], title: str) -> None:
    """Draw what a whole core saves against the share of its power in common parts; the paper's figure is marked."""

    def fill(axes: Any) -> None:
        share = np.linspace(0, 100, 101)
        macs = list(dict.fromkeys(s.mac for s in savings))
        colors = (_RED, _GOLD, _BLUE, _GREEN)
        for mac, color in zip(macs, colors, strict=False):
            found = [s.energy for s in savings if s.mac == mac]
            low, high = min(found), max(found)
            axes.fill_between(share, core_saving(low, share), core_saving(high, share), color=color, alpha=0.15, lw=0)  # type: ignore[arg-type]
            middle = statistics.median(found)
            axes.plot(share, core_saving(middle, share), color=color, label=f"against {mac}: median, range of streams")  # type: ignore[arg-type]
            if middle > PAPER:
                axes.plot(100 * (1 - PAPER / middle), PAPER, "o", color=color, ms=6)
        axes.axhline(PAPER, color="black", lw=1, ls="--")
        axes.annotate(f"{PAPER} %, Han & Yoo 2019", (99, PAPER), ha="right", va="bottom", fontsize=8)
        axes.set(xlim=(0, 100), ylim=(0, 100), title=title)
        axes.set(
            xlabel="share of the BP core's power in parts common to both (%)", ylabel="saving of the whole core (%)"
        )
        axes.legend(frameon=False, fontsize=8)

    _draw(path, 7.5, 4.6, 1, fill)


def plot_fetches(path: Path, fetches: Sequence[Fetch], core: float, title: str) -> None:
    """Draw the energy of having feedback, a term, on a logarithmic axis; the core's own energy a term as a line."""

    def fill(axes: Any) -> None:
        whats = list(dict.fromkeys(f.what for f in fetches))
        for i, what in enumerate(whats):
            for batch, color, shift in ((1, _RED, -0.12), (32, _BLUE, 0.12)):
                found = [f.picojoules for f in fetches if f.what == what and f.batch == batch]
                if found:
                    shown = _GREEN if what.startswith("generated") else color
                    axes.plot([i + shift] * 2, [min(found), max(found)], color=shown, lw=7, solid_capstyle="butt")
                    axes.plot([i + shift] * len(found), found, "_", color="black", ms=9)
        axes.axhline(core, color=_GREY, ls="--", lw=1)
        axes.annotate(
            "the DEPC itself", (0.99, core), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
        )
        axes.set_xticks(range(len(whats)), [w.replace(" (", "\n(") for w in whats], fontsize=8)
        axes.plot([], [], color=_RED, lw=7, label="DRAM, fetched for one sample")
        axes.plot([], [], color=_BLUE, lw=7, label="DRAM, fetched for a batch of 32")
        axes.legend(frameon=False, fontsize=8)
        axes.set(yscale="log", ylabel="pJ a term", title=title)

    _draw(path, 8, 4.2, 1, fill)


def plot_steps(path: Path, stepped: Sequence[Stepped], title: str) -> None:
    """Draw a step's energy by phase under each rule, a panel a network and batch; whiskers are DRAM's range."""
    networks = list(dict.fromkeys((s.network, s.batch) for s in stepped))

    def fill(panels: Any) -> None:
        for axes, (network, batch) in zip(panels if len(networks) > 1 else [panels], networks, strict=True):
            own = [s for s in stepped if (s.network, s.batch) == (network, batch)]
            rules = list(dict.fromkeys(s.rule for s in own))
            base = np.zeros(len(rules))
            for phase in PHASES:
                heights = np.array([
                    sum(s.compute_pj + s.sram_pj + s.dram_pj for s in own if (s.rule, s.phase) == (r, phase)) / 1e9
                    for r in rules
                ])  # fmt: skip
                axes.bar(rules, heights, bottom=base, color=_PHASE_COLORS[phase], width=0.7, label=phase)
                base += heights
            low, high = (
                np.array([sum(getattr(s, n) - s.dram_pj for s in own if s.rule == r) / 1e9 for r in rules])
                for n in ("dram_low_pj", "dram_high_pj")
            )
            axes.errorbar(range(len(rules)), base, yerr=[-low, high], fmt="none", color="black", lw=1, capsize=3)
            axes.set_xticks(range(len(rules)), rules, rotation=35, ha="right", fontsize=8)
            axes.set(title=f"{network}, batch {batch}", ylabel="mJ a step")
        last = panels if len(networks) == 1 else panels[-1]
        last.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), reverse=True)

    _draw(path, 4.2 * len(networks), 4.4, len(networks), fill)
