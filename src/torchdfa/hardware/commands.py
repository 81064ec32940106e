"""``torchdfa hardware``: verify, synth, power, step, accuracy, report. Each writes a CSV file into one folder."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchdfa.hardware.accuracy import AccuracyConfig
from torchdfa.hardware.designs import CORES, DESIGNS, Parameters, demand_buildable
from torchdfa.hardware.streams import RecordConfig

OUT = "runs/hardware"
LIBRARY_VARIABLE = "TORCHDFA_LIBERTY"
# Where Debian's package qflow-tech-osu018 puts a library.
DEBIAN_LIBRARY = Path("/usr/share/qflow/tech/osu018/osu018_stdcells.lib")
_EPILOG = """examples:
  torchdfa hardware verify                                  # PyTorch's feedback to gates, bit for bit
  torchdfa hardware synth --library sky130_fd_sc_hd__tt_025C_1v80.lib
  torchdfa hardware power                                   # energy a term on uniform, Laplace and recorded streams
  torchdfa hardware step --network fc-head --chip edge-45nm
  torchdfa hardware report                                  # all of it, then report.md and report.html
"""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Hold PyTorch, the integer model, RTL, Verilog and gates against each other on the same vectors.

    Args:
        parameters: Sizes of the cores.
        designs: Units to verify, as a list: '["depc-stored", "momentum"]'; by default all.
        library: A Liberty file. By default that which the environment variable TORCHDFA_LIBERTY names, or Debian's OSU
            180 nm where its package qflow-tech-osu018 is installed; else generic gates.
        recording: The training run whose errors are one of the streams.
        cycles: Of each stream, at least 2; corner values take the cycles of the longest sum besides.
        out: Folder of the results.
    """

    parameters: Parameters = field(default_factory=Parameters)
    designs: tuple[str, ...] | None = None
    library: str | None = None
    recording: RecordConfig = field(default_factory=RecordConfig)
    cycles: int = 48
    out: str = OUT


@dataclass(frozen=True, kw_only=True)
class SynthConfig:
    """Write Verilog, and map it to a library: cells, area, longest path.

    Args:
        parameters: Sizes of the cores.
        designs: Units to synthesise, as a list: '["depc-stored", "momentum"]'; by default all.
        library: As in verify.
        verilog_only: Write the RTL as Verilog, and stop.
        jobs: Designs at a time.
        out: Folder of the results.
    """

    parameters: Parameters = field(default_factory=Parameters)
    designs: tuple[str, ...] | None = None
    library: str | None = None
    verilog_only: bool = False
    jobs: int = 2
    out: str = OUT


@dataclass(frozen=True, kw_only=True)
class PowerConfig:
    """Measure the cores' energy from the toggles of their gates; with Icarus Verilog also with delays.

    Args:
        parameters: Sizes of the cores.
        designs: Cores to measure, as a list: '["depc-stored", "mac-16x8"]'; by default all.
        library: As in verify; a Liberty file is needed.
        recording: As in verify.
        wires: Capacitance of the wires, as a multiple of what is assumed for the library.
        cycles: Of each stream without delays, at least 6.
        streams: Simulated side by side.
        timed_cycles: Of the stream with delays, at least 6.
        jobs: Designs at a time.
        out: Folder of the results.
    """

    parameters: Parameters = field(default_factory=Parameters)
    designs: tuple[str, ...] | None = None
    library: str | None = None
    recording: RecordConfig = field(default_factory=RecordConfig)
    wires: float = 1.0
    cycles: int = 32
    streams: int = 64
    timed_cycles: int = 64
    jobs: int = 2
    out: str = OUT


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """Count what a training step of a network costs on a described chip, by layer and phase.

    Args:
        network: vgg16, tracker-head, fc-head, or package.module:function that returns a network and an input; by
            default the first three.
        rules: As a list, '["BP", "DFA"]', of BP, FA, DFA, "BDFA, stored", "BDFA, generated", CDFA, "CBDFA, stored",
            "CBDFA, generated", "HybridDFA, 4 groups", "HybridDFA, 4 groups, binary"; by default all that fit.
        chip: bdfa-65nm, bp-65nm, edge-45nm, or a YAML file.
        batch: Samples; by default the example's own. A network by package.module:function brings its own.
        out: Folder of the results.
    """

    network: str | None = None
    rules: tuple[str, ...] | None = None
    chip: str = "bdfa-65nm"
    batch: int | None = None
    out: str = OUT


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """Train a head in integers, as the chip does, beside the same head in floating point.

    Args:
        heads: What is trained.
        out: Folder of the results.
    """

    heads: AccuracyConfig = field(default_factory=AccuracyConfig)
    out: str = OUT


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Run what has no results in the folder yet, with its defaults, and write report.md, report.html and plots.

    Args:
        out: Folder of the results.
        library: As in verify, for what is run.
        pages_only: Run nothing; write the pages from what is there.
    """

    out: str = OUT
    library: str | None = None
    pages_only: bool = False


def main(arguments: Sequence[str]) -> int:
    """Run ``torchdfa hardware`` with the arguments behind it, and return its exit status."""
    from jsonargparse import ArgumentParser

    from torchdfa.arguments import demand_set, formatter
    from torchdfa.data import DataError
    from torchdfa.hardware.cacti import CactiError
    from torchdfa.hardware.synthesis import ToolError

    parser = ArgumentParser(
        prog="torchdfa hardware",
        description="The direct error propagation accelerator: verified, synthesised, measured.",
        epilog=_EPILOG,
        formatter_class=formatter(),
    )
    commands = parser.add_subcommands(dest="command")
    runs: dict[str, tuple[type, Callable[[Any], int]]] = {
        "verify": (VerifyConfig, run_verify),
        "synth": (SynthConfig, run_synth),
        "power": (PowerConfig, run_power),
        "step": (StepConfig, run_step),
        "accuracy": (HeadsConfig, run_accuracy),
        "report": (ReportConfig, run_report),
    }
    for name, (kind, _) in runs.items():
        about = (kind.__doc__ or "").split("\n\n")[0]
        command = ArgumentParser(description=about, print_config=None)
        command.add_class_arguments(kind)
        commands.add_subcommand(name, command, help=about)
    parsed = parser.parse_args(list(arguments))
    if parsed.command is None:
        parser.print_help()
        return 0
    kind, run = runs[parsed.command]
    try:
        demand_set(kind, parsed[parsed.command].as_dict())
        values = parser.instantiate(parsed)[parsed.command].as_dict()
        return run(kind(**{f.name: values[f.name] for f in dataclasses.fields(kind)}))
    except KeyboardInterrupt:
        print(
            f"torchdfa hardware {parsed.command}: interrupted; what was finished is kept, run it again for the rest.",
            file=sys.stderr,
        )
        return 130
    except (ToolError, CactiError, DataError, ValueError, OSError) as error:
        print(f"torchdfa hardware {parsed.command}: error: {error}", file=sys.stderr)
        return 2


def run_verify(config: VerifyConfig) -> int:
    """Print and write every check; fail where one differs."""
    from torchdfa.hardware import rows
    from torchdfa.hardware.verification import verify

    out = Path(config.out)
    table = rows.Table(out / "verification.csv", rows.Check, ("unit", "stream", "against", "library", "size"))
    names = _names(config.designs, tuple(DESIGNS), config.parameters)
    recording = _recording(config.recording, out)
    found: list[rows.Check] = []
    start = time.monotonic()
    with table:
        for check in verify(
            names, config.parameters, recording, _library(config.library), out / "work", cycles=config.cycles
        ):
            found.append(check)
            table.add(dataclasses.replace(check, size=str(config.parameters)))
            result = check.result if check.compared == 0 or check.failed else f"equal, {check.compared:,} compared"
            print(f"{check.unit:20} {check.stream:20} {check.against:12} {check.library:18} {result}", flush=True)
    failed = [c for c in found if c.failed]
    skipped = sum(c.result.startswith("skipped") for c in found)
    print(
        f"{len(found) - len(failed) - skipped} checks equal, {len(failed)} different, {skipped} skipped, in "
        f"{time.monotonic() - start:.0f} s; written to {table.path}"
    )
    return 1 if failed else 0


def run_synth(config: SynthConfig) -> int:
    """Print and write a row a design."""
    from torchdfa.hardware import rows
    from torchdfa.hardware.measurement import synthesise_all
    from torchdfa.hardware.synthesis import write_verilog

    out, names = Path(config.out), _names(config.designs, tuple(DESIGNS), config.parameters)
    table = rows.Table(out / "synthesis.csv", rows.Synthesised, ("design", "library", "size"))
    for name in names:
        path = write_verilog(name, config.parameters, out / "work" / "rtl")
        if config.verilog_only:
            print(path)
    if config.verilog_only:
        return 0
    print(f"{'design':20} {'library':18} {'cells':>7} {'flops':>6} {'area':>12} {'path, ns':>9} {'s':>5}")
    with table:
        for row in synthesise_all(names, config.parameters, _library(config.library), out / "work", config.jobs):
            table.add(row)
            line = f"{row.design:20} {row.library:18} {row.cells:7,} {row.flops:6,} {row.area:12,.0f} "
            print(line + f"{row.path_ns:9.2f} {row.seconds:5.1f}", flush=True)
    print(f"written to {table.path}; RTL and netlists in {out / 'work'}")
    return 0


def run_power(config: PowerConfig) -> int:
    """Print and write a row a core, stream and kind of delays."""
    from torchdfa.hardware import rows, timed
    from torchdfa.hardware.measurement import measure_all

    library = _library(config.library)
    if library is None:
        raise ValueError(
            f"power needs a Liberty file: --library PATH, ${LIBRARY_VARIABLE}, or Debian's package qflow-tech-osu018, "
            f"which has {DEBIAN_LIBRARY}."
        )
    if not timed.installed():
        print("Icarus Verilog is not installed: only without delays, glitches are not counted.", file=sys.stderr)
    out = Path(config.out)
    same = ("design", "library", "size", "wires", "stream", "delays")
    table = rows.Table(out / "power.csv", rows.Measured, same)
    names = _names(config.designs, CORES, config.parameters)
    recording = _recording(config.recording, out)
    print(f"{'core':16} {'stream':21} {'delays':6} {'pJ a cycle':>10} {'pJ a term':>10}")
    with table:
        for row in measure_all(
            names,
            config.parameters,
            library,
            recording,
            out / "work",
            wires=config.wires,
            cycles=config.cycles,
            count=config.streams,
            timed_cycles=config.timed_cycles,
            jobs=config.jobs,
        ):
            table.add(row)
            print(
                f"{row.design:16} {row.stream:21} {row.delays:6} {row.picojoules:10.1f} {row.per_term:10.2f}",
                flush=True,
            )
    print(f"written to {table.path}")
    return 0


def run_step(config: StepConfig) -> int:
    """Print a table a network and rule, and write their rows."""
    from torchdfa.hardware import rows
    from torchdfa.hardware.chip import load_chip
    from torchdfa.hardware.networks import NETWORKS, RULES, steps

    out, chip = Path(config.out), load_chip(config.chip)
    table = rows.Table(out / "step.csv", rows.Stepped, ("network", "chip", "rule", "batch"))
    with table:
        for network in [config.network] if config.network else list(NETWORKS):
            for cost, lines in steps(network, chip, list(config.rules or RULES), config.batch):
                print(f"\n{network}, {lines[0].rule}, batch {cost.batch}, on {chip.name}\n{cost}", flush=True)
                table.add(*lines)
    print(f"\nwritten to {table.path}\n{chip.about} {chip.sources}")
    return 0


def run_accuracy(config: HeadsConfig) -> int:
    """Print and write a row a method, arithmetic and seed."""
    from torchdfa.hardware import rows
    from torchdfa.hardware.accuracy import examples, train_heads

    same = ("data", "method", "arithmetic", "settings", "seed")
    table = rows.Table(Path(config.out) / "accuracy.csv", rows.Trained, same)
    data = examples(config.heads)
    with table:
        for row in train_heads(config.heads, data):
            table.add(row)
            print(
                f"{row.data:17} {row.method:5} {row.arithmetic:20} seed {row.seed}: test {row.test_top1:.2f} %, "
                f"train {row.train_top1:.2f} %, {row.seconds:.0f} s",
                flush=True,
            )
    print(f"written to {table.path}")
    return 0


def run_report(config: ReportConfig) -> int:
    """Run what is missing or was interrupted, then write the pages."""
    from torchdfa.hardware.report import write_report
    from torchdfa.hardware.rows import is_whole

    out, library = Path(config.out), _library(config.library)
    chosen = None if library is None else str(library)
    missing: list[tuple[str, Callable[[], Any]]] = [
        ("verification.csv", lambda: run_verify(VerifyConfig(out=config.out, library=chosen))),
        ("synthesis.csv", lambda: run_synth(SynthConfig(out=config.out, library=chosen))),
        ("step.csv", lambda: run_step(StepConfig(out=config.out))),
        ("accuracy.csv", lambda: run_accuracy(HeadsConfig(out=config.out))),
    ]
    if library is not None:
        missing.insert(2, ("power.csv", lambda: run_power(PowerConfig(out=config.out, library=chosen))))
    missing.append(("crosscheck.csv", lambda: _crosscheck(library, out)))
    for name, run in missing:
        if not config.pages_only and not is_whole(out / name):
            what = "was interrupted" if (out / name).is_file() else "is missing"
            print(f"{name} {what}: running what makes it", file=sys.stderr)
            run()
    pages = write_report(out)
    print(f"written to {out}: {', '.join(p.name for p in pages)}")
    return 0


def _crosscheck(library: Path | None, out: Path) -> None:
    """Hold figures against other tools', or say why not: the pages don't need them."""
    from torchdfa.hardware.crosscheck import run_crosscheck
    from torchdfa.hardware.synthesis import ToolError

    try:
        run_crosscheck(library, out)
    except ToolError as error:
        print(f"no cross-checks: {error}", file=sys.stderr)


def _library(given: str | None) -> Path | None:
    given = given or os.environ.get(LIBRARY_VARIABLE) or None
    if given is not None:
        if not Path(given).is_file():
            raise ValueError(f"the Liberty file {given} is not there; give the path of one (.lib, .lib.gz).")
        return Path(given)
    return DEBIAN_LIBRARY if DEBIAN_LIBRARY.is_file() else None


def _names(given: Sequence[str] | None, known: tuple[str, ...], p: Parameters) -> list[str]:
    unknown = [name for name in given or () if name not in known]
    if unknown:
        raise ValueError(f"no design {unknown[0]!r}; there are {', '.join(known)}.")
    names = list(given or known)
    demand_buildable(names, p)
    return names


def _recording(config: RecordConfig, out: Path) -> Any:
    """Return the recording of a training run: the one in the folder, if it is of the same settings."""
    import hashlib

    from torchdfa.hardware.streams import Recording, record

    digest = hashlib.sha256(repr(config).encode()).hexdigest()[:12]
    path = out / "work" / f"recording-{digest}.npz"
    if path.is_file():
        return Recording.load(path)
    print(f"recording errors: a head on {config.data}, {config.epochs} epochs of BDFA", file=sys.stderr)
    found = record(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save(path)
    return found
