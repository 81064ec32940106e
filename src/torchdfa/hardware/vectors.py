"""What goes into a unit each clock cycle, and what must come out: one set of vectors for every simulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from torchdfa.feedback import lfsr
from torchdfa.hardware.model import runlength
from torchdfa.hardware.model.depc import add_tree
from torchdfa.hardware.model.fixed import Integers, rescale
from torchdfa.hardware.model.momentum import NEAREST, WIDTH, momentum
from torchdfa.hardware.rtl.cores import Core, Depc, MacCore
from torchdfa.hardware.rtl.momentum import MomentumUnit
from torchdfa.hardware.rtl.requantizer import Requantizer
from torchdfa.hardware.rtl.runlength import RunLengthDecoder, RunLengthEncoder


@dataclass(frozen=True)
class Vectors:
    """Inputs and expected outputs, arrays (T, S): cycles, and streams that are simulated side by side.

    Inputs hold before the clock edge of their cycle; outputs are read just before it.

    Attributes:
        inputs: By port.
        outputs: By port; where ``checked``.
        checked: Cycles at which outputs count, (T, S).
    """

    inputs: Mapping[str, Integers]
    outputs: Mapping[str, Integers]
    checked: NDArray[np.bool_]

    @property
    def shape(self) -> tuple[int, int]:
        """(T, S)."""
        t, s = self.checked.shape
        return t, s

    def stream(self, s: int) -> Vectors:
        """Return one stream, as S = 1."""
        one = slice(s, s + 1)
        return Vectors(
            {name: v[:, one] for name, v in self.inputs.items()},
            {name: v[:, one] for name, v in self.outputs.items()},
            self.checked[:, one],
        )


@dataclass(frozen=True)
class Operands:
    """What an error propagation core works on, cycle by cycle.

    Attributes:
        name: Of the stream.
        errors: (T, S, lanes, terms), 16 bits.
        weights: (T, S, terms), 16 bits: back-propagation's.
        positive: (T, S, terms): the signs of direct feedback, where they are stored.
        seeds: (S,): where they are generated.
        block: Cycles a sum takes, those counted in which operands come.
        used: Terms a cycle that carry something, the mean over the cycles; 0: all.
        valid: (T,): cycles in which operands come, the first among them; by default all.
    """

    name: str
    errors: Integers
    weights: Integers
    positive: NDArray[np.bool_]
    seeds: Integers
    block: int = 1
    used: float = 0.0
    valid: NDArray[np.bool_] | None = None

    @property
    def terms(self) -> float:
        """Terms a cycle that carry something, the mean over the cycles."""
        return self.used or float(self.errors.shape[-1])


def demand_cycles(cycles: int, streams: int) -> None:
    """Check the lengths of what is to be simulated.

    Raises:
        ValueError: There are fewer than two cycles, or no stream.
    """
    if cycles < 2 or streams < 1:
        raise ValueError(
            f"vectors: cycles={cycles}, streams={streams}; expected at least 2 cycles, between which something "
            "changes, and a stream."
        )


def core_vectors(core: Core, operands: Operands) -> Vectors:
    """Return a core's vectors: a cycle that loads the seed, the operands, and the pipeline's drain."""
    t, s, lanes, terms = operands.errors.shape
    assert (lanes, terms) == (core.lanes, core.terms)
    lead, drain = 1, core.latency
    valid = np.ones(t, bool) if operands.valid is None else operands.valid
    assert valid[0]
    places = np.cumsum(valid) - 1
    # In idle cycles both marks are set, and must be ignored.
    first = ~valid | (places % operands.block == 0)
    last = ~valid | (places % operands.block == operands.block - 1) | (places == places[-1])

    def padded(x: Integers) -> Integers:
        edges = np.zeros((1, *x.shape[1:]), np.int64)
        return np.concatenate([edges] * lead + [x.astype(np.int64)] + [edges] * drain)

    marks = {"valid": valid, "first": first, "last": last}
    inputs = {name: padded(np.repeat(np.asarray(mark, np.int64)[:, None], s, 1)) for name, mark in marks.items()}
    # Data ports keep their last values while the pipeline drains: in the chip they come from registers.
    for j in range(lanes):
        for i in range(terms):
            inputs[f"e{j}_{i}"] = _hold(operands.errors[:, :, j, i], lead, drain)
    if isinstance(core, MacCore):
        width = core.weights[0].shape().width
        weights = rescale(operands.weights, 16 - width, width)
        for i in range(terms):
            inputs[f"w{i}"] = _hold(weights[:, :, i], lead, drain)
        sums = (operands.errors * weights[:, :, None]).sum(-1)
    else:
        assert isinstance(core, Depc)
        positive = operands.positive
        if core.source == "stored":
            # More signs than a NumPy integer has bits are one of Python's.
            kind = np.int64 if terms < 64 else object
            inputs["signs"] = _hold((positive.astype(kind) << np.arange(terms, dtype=kind)).sum(-1), lead, drain)
        else:
            positive = generated(operands.seeds, t, terms)[places]  # the register waits in idle cycles
            inputs["load"] = np.zeros((lead + t + drain, s), np.int64)
            inputs["load"][0] = 1
            inputs["seed"] = np.repeat(operands.seeds[None], lead + t + drain, 0)
        # Each cycle by the reference model's tree: one feature, other signs in every stream.
        signed = np.where(positive[:, :, None], operands.errors, -operands.errors)
        sums = add_tree(signed.reshape(-1, terms)).reshape(t, s, lanes)
    late = lead + core.latency
    outputs, checked = {}, np.zeros((lead + t + drain, s), bool)
    checked[late:] = True
    for j in range(lanes):
        y = np.zeros((lead + t + drain, s), np.int64)
        for a in range(t):
            before = y[late + a - 1]
            y[late + a] = (before * (not first[a]) + sums[a, :, j]) if valid[a] else before
        outputs[f"y{j}"] = y
    outputs["done"] = np.zeros_like(checked, np.int64)
    outputs["done"][late:] = (valid & last)[:, None]
    return Vectors(inputs, outputs, checked)


def generated(seeds: Integers, cycles: int, terms: int) -> NDArray[np.bool_]:
    """Return the bits that generators of these seeds read, (cycles, S, terms)."""
    drawn = [lfsr.signs(torch.tensor(int(seed)), terms, cycles, leap=terms).T.numpy() for seed in seeds]
    return np.stack(drawn, axis=1)


def requantizer_vectors(unit: Requantizer, rng: np.random.Generator, cycles: int, streams: int) -> Vectors:
    """Return sums of every size: half of them shifted anywhere, half about as far as fills the width; and extremes."""
    wide, width, shape = unit.wide, unit.width, (cycles, streams)
    size = rng.integers(1, wide, shape)
    x = rng.integers(-(2**62), 2**62, shape) >> (63 - size)
    x[0], x[1] = 2 ** (wide - 1) - 1, -(2 ** (wide - 1))
    size[:2] = wide - 1
    filling = size - (width - 1) + rng.integers(-2, 3, shape)
    anywhere = rng.integers(-width, wide + 1, shape)
    shift = np.clip(np.where(rng.random(shape) < 0.5, anywhere, filling), -width, wide)
    y = np.empty_like(x)
    for n in range(-width, wide + 1):
        y[shift == n] = rescale(x[shift == n], n, width)
    return _delayed({"x": x, "shift": shift}, {"y": y}, unit.latency)


def momentum_vectors(
    unit: MomentumUnit,
    rng: np.random.Generator,
    cycles: int,
    streams: int,
    layers: Mapping[str, Integers] | None = None,
) -> Vectors:
    """Return random weights of layers (settings by port, (S,); by default random ones, one layer a stream).

    Every other stream rounds to the nearest.
    """
    shape = (cycles, streams)
    w = rng.integers(-(2 ** (unit.weight_width - 1)), 2 ** (unit.weight_width - 1), shape)
    v, g = (rng.integers(-(2 ** (WIDTH - 1)), 2 ** (WIDTH - 1), shape) for _ in range(2))
    v[0], g[0], w[0] = -(2**15), -(2**15), 2 ** (unit.weight_width - 1) - 1
    v[1], g[1], w[1] = 2**15 - 1, 2**15 - 1, -(2 ** (unit.weight_width - 1))
    noise = np.where(np.arange(streams) % 2, rng.integers(0, 2**32, shape), NEAREST)
    layers = layers or {
        "decay": rng.integers(0, 2**16, streams),
        "rate": rng.integers(1, 2**16, streams),
        "align": rng.integers(8, 24, streams),
        "narrow": rng.integers(12, 21, streams),
        "apply": rng.integers(10, 33, streams),
        "coarsen": rng.integers(0, 2, streams),
    }
    w_new, v_new = np.empty_like(w), np.empty_like(v)
    for s in range(streams):
        settings = {name: int(values[s]) for name, values in layers.items()}
        w_new[:, s], v_new[:, s] = momentum(
            w[:, s], v[:, s], g[:, s], noise=noise[:, s], weight_width=unit.weight_width, **settings
        )
    inputs = {"w": w, "v": v, "g": g, **{name: np.repeat(x[None], cycles, 0) for name, x in layers.items()}}
    vectors = _delayed(inputs, {"w_new": w_new, "v_new": v_new}, unit.latency)
    late = np.concatenate([np.full((3, streams), NEAREST), noise, np.full((unit.latency - 3, streams), NEAREST)])
    return Vectors({**vectors.inputs, "noise": late}, vectors.outputs, vectors.checked)


def encoder_vectors(unit: RunLengthEncoder, maps: Integers) -> Vectors:
    """Return feature maps (T, S), 16 bits, with what their codes must be, when they come."""
    t, s = maps.shape
    x = np.concatenate([maps & (2**16 - 1), np.zeros((1, s), np.int64)])
    valid, last = np.ones((t + 1, s), np.int64), np.zeros((t + 1, s), np.int64)
    valid[t], last[t - 1] = 0, 1
    outputs = {name: np.zeros((t + 1, s), np.int64) for name in ("run", "value", "ready")}
    for i in range(s):
        codes = runlength.encode(maps[:, i], unit.run_bits)
        at = np.cumsum(codes.runs + 1)  # one cycle behind the code's last element
        outputs["ready"][at, i] = 1
        for name, value in (("run", codes.runs), ("value", codes.values & (2**16 - 1))):
            held = np.zeros(t + 1, np.int64)
            held[at] = value
            filled = np.maximum.accumulate(np.where(outputs["ready"][:, i], np.arange(t + 1), 0))
            outputs[name][:, i] = held[filled]
    checked = np.ones((t + 1, s), bool)
    return Vectors({"x": x, "valid": valid, "last": last}, outputs, checked)


def decoder_vectors(unit: RunLengthDecoder, maps: Integers) -> Vectors:
    """Return the codes of feature maps (T, S), each as soon as the unit is free, and what comes out."""
    t, s = maps.shape
    inputs = {name: np.zeros((t + 1, s), np.int64) for name in ("run", "value", "valid")}
    for i in range(s):
        codes = runlength.encode(maps[:, i], unit.run_bits)
        ends = np.cumsum(codes.runs + 1)
        for start, end, run, value in zip(
            np.concatenate([[0], ends[:-1]]), ends, codes.runs, codes.values & (2**16 - 1), strict=True
        ):
            inputs["run"][start:end, i], inputs["value"][start:end, i], inputs["valid"][start:end, i] = run, value, 1
    x = np.concatenate([np.zeros((1, s), np.int64), maps & (2**16 - 1)])
    ready = np.ones((t + 1, s), np.int64)
    ready[0] = 0
    checked = np.ones((t + 1, s), bool)
    checked[0] = False
    return Vectors(inputs, {"x": x, "ready": ready}, checked)


def _hold(x: Integers, lead: int, drain: int) -> Integers:
    return np.concatenate([np.repeat(x[:1], lead, 0), x, np.repeat(x[-1:], drain, 0)])


def _delayed(inputs: Mapping[str, Integers], outputs: Mapping[str, Integers], latency: int) -> Vectors:
    held = {name: np.concatenate([x, np.repeat(x[-1:], latency, 0)]) for name, x in inputs.items()}
    late = {name: np.concatenate([np.zeros((latency, x.shape[1]), np.int64), x]) for name, x in outputs.items()}
    first = next(iter(late.values()))
    checked = np.ones(first.shape, bool)
    checked[:latency] = False
    return Vectors(held, late, checked)
