"""From PyTorch's feedback to gates, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

import torchdfa
from torchdfa.feedback.binary import SeededFeedback
from torchdfa.feedback.lfsr import LEAP, seed_of
from torchdfa.hardware import cosimulate, simulate, streams, timed
from torchdfa.hardware.designs import DESIGNS, Parameters, vectors_for
from torchdfa.hardware.model.depc import direct_errors
from torchdfa.hardware.model.head import feedback_signs
from torchdfa.hardware.netlist import Netlist, Process
from torchdfa.hardware.rows import Check
from torchdfa.hardware.streams import Recording
from torchdfa.hardware.synthesis import synthesise, write_verilog
from torchdfa.hardware.vectors import Operands, Vectors, demand_cycles, generated

_STREAMS = 8


def check_feedback(features: int = 64) -> Iterator[Check]:
    """Hold the model's feedback against the library's: signs, and the errors that they make of integers."""
    for k in (1, 2, 10, 16, 17, 100):
        net = torch.nn.Sequential(torch.nn.Linear(5, features), torch.nn.ReLU(), torch.nn.Linear(features, k)).double()
        rule = torchdfa.BDFA(storage="seeded", generator="lfsr", scale="unit", seed=k)
        feedback = torchdfa.convert(net, rule)[2].feedback
        assert isinstance(feedback, SeededFeedback)
        e = np.random.default_rng(k).integers(-(2**15), 2**15, (32, k))
        expected = feedback(torch.from_numpy(e).double()).numpy()
        found = direct_errors(e, feedback_signs(k, "2", k, features), LEAP)
        wrong = int((found != expected).sum())
        yield Check(f"feedback {k} x {features}", "uniform", "PyTorch", "", found.size, _result(wrong, "errors"))


def check_recording(recording: Recording, p: Parameters) -> Check:
    """Hold what the chip's generator makes of the recorded key against PyTorch's feedback of the trained layer."""
    n, k = recording.output_error.shape
    name = "depc-generator"
    if LEAP % p.terms:
        why = f"skipped: cores of {p.terms} terms don't read the library's {LEAP} bits a state in whole cycles"
        return Check(name, "recorded-output", "PyTorch", "", 0, why)
    features = recording.weight.shape[1]
    feedback = SeededFeedback(k, features, recording.key, torch.tensor(1.0).double(), generator="lfsr")
    expected = feedback(torch.from_numpy(recording.output_error).double()).numpy()
    seed = int(seed_of(torch.tensor(recording.key)))
    padded = -(-k // LEAP) * LEAP  # terms beyond K add zeros
    bits = generated(np.array([seed]), features * padded // p.terms, p.terms).reshape(features, padded)[:, :k].T
    wrong = int((direct_errors(recording.output_error, bits, p.terms) != expected).sum())
    return Check(name, "recorded-output", "PyTorch", "", n * features, _result(wrong, "errors"))


def verify(
    names: list[str], p: Parameters, recording: Recording, library: Path | None, folder: Path, cycles: int = 96
) -> Iterator[Check]:
    """Yield every check: PyTorch against the model, the model against RTL, Verilog, gates and gates with delays.

    Raises:
        ValueError: There are fewer than two cycles.
    """
    demand_cycles(cycles, _STREAMS)
    yield from check_feedback()
    yield check_recording(recording, p)
    process = Process.read(library)
    for name in names:
        rng = np.random.default_rng(0)
        gates = Netlist(synthesise(name, p, library, folder / process.library.name / name), process)
        verilog = write_verilog(name, p, folder / "rtl")
        every = list(_streams(name, p, recording, cycles, rng))
        for operands in every:
            unit = DESIGNS[name].build(p)
            codec = streams.maps(recording if operands.name.startswith("recorded") else None, cycles, _STREAMS, rng)
            vectors = vectors_for(unit, operands, codec, rng)
            # Two streams: the second of the momentum unit's vectors rounds stochastically.
            firsts = [vectors.stream(s) for s in range(2)]
            one = int(firsts[0].checked.sum())
            stream = operands.name if DESIGNS[name].is_core else _stream_name(name, operands.name)
            found = [line for v in firsts for line in simulate.mismatches(unit, v)]
            yield Check(name, stream, "RTL", "", 2 * one, _first(found))
            library_name, first = process.library.name, firsts[0]
            # Amaranth and Yosys write the Verilog: one stream is enough, since its simulator takes seconds to start.
            if operands is every[-1]:
                run = partial(cosimulate.mismatches, verilog, first)
                there, tool = cosimulate.installed(), "cocotb with Icarus Verilog"
                yield _optional(Check(name, stream, "Verilog", "", one, ""), there, tool, run)
            found, _ = gates.simulate(vectors)
            yield Check(name, stream, "gates", library_name, int(vectors.checked.sum()), _first(found))
            if library is not None:
                run = partial(_timed, gates, first, folder / library_name / name)
                check = Check(name, stream, "timed gates", library_name, one, "")
                yield _optional(check, timed.installed(), "Icarus Verilog", run)


def _timed(gates: Netlist, vectors: Vectors, folder: Path) -> list[str]:
    return timed.simulate_timed(gates, vectors, folder)[0]


def _streams(
    name: str, p: Parameters, recording: Recording, cycles: int, rng: np.random.Generator
) -> Iterator[Operands]:
    yield streams.uniform(p, cycles, _STREAMS, rng)
    if DESIGNS[name].is_core:
        yield streams.corners(p, cycles, _STREAMS, rng, generator=name == "depc-generator")
        yield streams.recorded(recording, p, cycles, _STREAMS, "hidden")
    if DESIGNS[name].is_core or name.startswith("runlength"):
        yield streams.recorded(recording, p, cycles, _STREAMS, "output")


def _stream_name(name: str, operands: str) -> str:
    if name.startswith("runlength"):
        return "recorded activations" if operands.startswith("recorded") else "sparse, long runs"
    return "random and extremes"


def _optional(check: Check, there: bool, tool: str, run: Callable[[], list[str]]) -> Check:
    if not there:
        return replace(check, compared=0, result=f"skipped: {tool} is not installed")
    return replace(check, result=_first(run()))


def _first(mismatches: list[str]) -> str:
    return mismatches[0] if mismatches else "equal"


def _result(wrong: int, what: str) -> str:
    return f"{wrong} {what} differ" if wrong else "equal"
