"""Synthesis and power of the designs, as rows."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from torchdfa.hardware import streams, timed
from torchdfa.hardware.cells import GENERIC
from torchdfa.hardware.designs import DESIGNS, Parameters, vectors_for
from torchdfa.hardware.netlist import Netlist, Process
from torchdfa.hardware.power import energy
from torchdfa.hardware.rows import Measured, Synthesised
from torchdfa.hardware.rtl.cores import Core
from torchdfa.hardware.streams import Recording
from torchdfa.hardware.synthesis import synthesise
from torchdfa.hardware.vectors import Operands

STREAMS = ("uniform", "laplace", "recorded-output", "recorded-hidden", "recorded-hidden-held")


def synthesise_all(
    names: Sequence[str], p: Parameters, library: Path | None, folder: Path, jobs: int = 2
) -> Iterator[Synthesised]:
    """Synthesise designs, ``jobs`` at a time.

    Raises:
        ValueError: ``jobs`` is less than 1.
    """
    _demand_at_least(1, jobs=jobs)
    process = Process.read(library)

    def one(name: str) -> Synthesised:
        start = time.monotonic()
        path = synthesise(name, p, library, folder / process.library.name / name)
        seconds = time.monotonic() - start
        netlist = Netlist(path, process)
        path_ns = 0.0 if process.library is GENERIC else netlist.timing.nanoseconds
        cells, flops = len(netlist.instances), len(netlist.flops)
        leakage = netlist.watts / 1e-6
        return Synthesised(name, process.library.name, str(p), cells, flops, netlist.area, path_ns, leakage, seconds)

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(one, names)


def operands_of(
    stream: str, p: Parameters, recording: Recording, cycles: int, count: int, rng: np.random.Generator
) -> Operands:
    """Return the operands of a stream by name."""
    if stream.startswith("recorded-"):
        return streams.recorded(recording, p, cycles, count, stream.removeprefix("recorded-"))  # type: ignore[arg-type]
    return {"uniform": streams.uniform, "laplace": streams.laplace}[stream](p, cycles, count, rng)


def measure_all(
    names: Sequence[str],
    p: Parameters,
    library: Path,
    recording: Recording,
    folder: Path,
    *,
    wires: float = 1.0,
    cycles: int = 32,
    count: int = 64,
    timed_cycles: int = 64,
    jobs: int = 2,
) -> Iterator[Measured]:
    """Measure cores on every stream: without delays on ``count`` streams; with them, where Icarus is there, on one.

    Changes count from the cycle in which every stage of the pipeline holds operands to the last that brings some, so
    that neither filling nor draining is in the energy of a cycle.

    Raises:
        ValueError: An argument is out of range, or a simulated output is wrong: an energy would mean nothing.
    """
    # One change of a full pipeline at least.
    _demand_at_least(Core.latency + 2, cycles=cycles, timed_cycles=timed_cycles)
    _demand_at_least(1, streams=count, jobs=jobs)
    _demand_at_least(0, wires=wires)
    process = Process.read(library, wires)

    def one(name: str) -> list[Measured]:
        netlist = Netlist(synthesise(name, p, library, folder / process.library.name / name), process)
        rows = []
        for stream in STREAMS:
            for delays in ("zero", "timed") if timed.installed() else ("zero",):
                rng = np.random.default_rng(1)
                t, s = (cycles, count) if delays == "zero" else (timed_cycles, 1)
                operands = operands_of(stream, p, recording, t, s, rng)
                unit = DESIGNS[name].build(p)
                vectors = vectors_for(unit, operands, np.zeros((t, s), np.int64), rng)
                # The vectors are a cycle that loads the seed, the operands, and as many cycles as the core's latency.
                counted = vectors.shape[0] - t, vectors.shape[0] - unit.latency - 1
                if delays == "zero":
                    wrong, changes = netlist.simulate(vectors, counted)
                else:
                    work = folder / process.library.name / name
                    wrong, changes = timed.simulate_timed(netlist, vectors, work, counted=counted)
                if wrong:
                    raise ValueError(f"{name} on {stream}, {delays} delays: {wrong[0]}")
                found = energy(netlist, changes)
                rows.append(
                    Measured(
                        name,
                        process.library.name,
                        str(p),
                        wires,
                        stream,
                        delays,
                        (counted[1] - counted[0]) * s,
                        float(changes.sum()),
                        found.picojoules,
                        found.nets,
                        found.cells,
                        found.flops,
                        found.clock,
                        operands.terms * p.lanes,
                    )
                )
        return rows

    with ThreadPoolExecutor(jobs) as pool:
        for rows in pool.map(one, names):
            yield from rows


def _demand_at_least(lowest: int, **given: float) -> None:
    for name, value in given.items():
        if not lowest <= value < math.inf:
            raise ValueError(f"{name}={value}, expected at least {lowest}.")
