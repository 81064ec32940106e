"""What a phase of a layer costs on a described chip.

Each phase of a layer is a matrix product ``out (M, N) = a (M, K) · b (K, N)``. Weights lie in DRAM. Activations do
unless all the step's fit half the on-chip memory; an error does, unless it fits by itself. From DRAM an operand comes
once, or, where neither fits half the on-chip memory, as often as the best of three orders needs. From the on-chip
memory the MAC array reads a word a busy row and a busy column each cycle, the direct error propagation core its lanes'
errors: once where a lane's registers hold them all, else again for each feature. Energies are those of the chip's
description; DRAM's are given low, middle and high. Activation functions, norms and the loss are not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torchdfa.feedback import ConvFeedback, SeededFeedback
from torchdfa.hardware.calls import Layer, Sent
from torchdfa.hardware.chip import Chip

Phase = Literal["forward", "error", "gradient", "update"]
PHASES: tuple[Phase, ...] = get_args(Phase)
Range = tuple[float, float, float]
_SUM_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a phase of a layer takes.

    Attributes:
        layer: Its name.
        phase: ``forward``; ``error``: making the error at the layer's input; ``gradient`` of its weight; ``update``.
        unit: Of the chip: ``mac``, ``direct``, ``update``.
        macs: Multiplications with an addition.
        adds: Additions of signed terms.
        sram_bytes: Read and written on chip.
        dram_bytes: From and to DRAM.
        feedback_bytes: Of these, for feedback.
        generated_bits: Signs made by the generator.
        compute_pj: Of operations.
        sram_pj: Of on-chip memory.
        dram_pj: Low, middle, high.
        cycles: Of the unit, or of DRAM where that is slower.
        direct: Whether it is an error that comes from a module's or the network's output, by feedback.
    """

    layer: str
    phase: Phase
    unit: str
    macs: float = 0.0
    adds: float = 0.0
    sram_bytes: float
    dram_bytes: float
    feedback_bytes: float = 0.0
    generated_bits: float = 0.0
    compute_pj: float
    sram_pj: float
    dram_pj: Range
    cycles: float
    direct: bool = False

    @property
    def picojoules(self) -> Range:
        """All of it: low, middle, high."""
        low, middle, high = (self.compute_pj + self.sram_pj + d for d in self.dram_pj)
        return low, middle, high


@dataclass(frozen=True)
class Gemm:
    """A matrix product ``out (M, N) = a (M, K) · b (K, N)``, and the bytes of it that lie in DRAM.

    Attributes:
        m: Rows of the result.
        k: Terms of each of its elements.
        n: Columns of the result, of one group.
        groups: Products of this size.
        a: Bytes of the first operand in DRAM; none of what stays on chip.
        b: Of the second.
        out: Of the result.
        written: Bytes of the result, wherever it goes.
    """

    m: int
    k: float
    n: int
    groups: int
    a: float
    b: float
    out: float
    written: float

    @property
    def macs(self) -> float:
        """Multiplications with an addition."""
        return float(self.m) * self.k * self.n * self.groups


class Places:
    """Where a step's tensors lie, and the products of a layer's phases with the bytes that they move."""

    def __init__(self, chip: Chip, layers: list[Layer]):
        self.chip = chip
        self.memory = chip.sram_bytes / 2
        self.kept = sum(layer.input_size for layer in layers) * chip.bytes["activation"] <= self.memory

    def weights(self, layer: Layer) -> float:
        """Return the bytes of a layer's weights in DRAM."""
        return layer.inner * layer.outputs * self.chip.bytes["weight"]

    def activation(self, layer: Layer) -> float:
        """Return the bytes of a layer's input in DRAM."""
        return 0.0 if self.kept else layer.input_size * self.chip.bytes["activation"]

    def error(self, elements: int) -> float:
        """Return the bytes of an error in DRAM."""
        size = elements * self.chip.bytes["error"]
        return 0.0 if size <= self.memory else size

    def forward(self, layer: Layer) -> Gemm:
        """Return a layer's forward pass."""
        written = layer.rows * layer.outputs * self.chip.bytes["activation"]
        out = 0.0 if self.kept else written
        n = layer.outputs // layer.groups
        a, b = self.activation(layer), self.weights(layer)
        return Gemm(layer.rows, layer.inner, n, layer.groups, a, b, out, written)

    def transposed(self, layer: Layer) -> Gemm:
        """Return the error at a layer's output times its weights, transposed."""
        k = layer.outputs // layer.groups
        a, b = self.error(layer.rows * layer.outputs), self.weights(layer)
        written = layer.input_size * self.chip.bytes["error"]
        return Gemm(layer.rows, k, layer.inner, layer.groups, a, b, self.error(layer.input_size), written)

    def gradient(self, layer: Layer) -> Gemm:
        """Return the gradient of a layer's weight."""
        # It goes on to the momentum unit, whose traffic the update counts.
        m = layer.outputs // layer.groups
        a, b = self.error(layer.rows * layer.outputs), self.activation(layer)
        return Gemm(m, layer.rows, layer.inner, layer.groups, a, b, 0.0, 0.0)

    def taught(self, sent: Sent) -> Gemm:
        """Return the gradient of dense feedback: the error at the output times the activation that was cut."""
        feedback, samples = sent.feedback, sent.hidden_size // sent.feedback.features
        b = 0.0 if self.kept else sent.hidden_size * self.chip.bytes["activation"]
        return Gemm(feedback.errors, samples, feedback.features, 1, self.error(sent.output_size), b, 0.0, 0.0)


def dram_bytes(a: float, b: float, out: float, result: float, memory: float) -> float:
    """Return the bytes that a product moves: the best of holding pieces of either operand, or of the result, on chip.

    Args:
        a: Bytes of an operand; none if it is on chip.
        b: Of the other.
        out: Of the result, where it goes to DRAM.
        result: Of its sums, as long as they are added up.
        memory: Bytes on chip.
    """
    if min(a, b) <= memory:
        return a + b + out
    hold_a = a + b * math.ceil(a / memory)
    hold_b = b + a * math.ceil(b / memory)
    # A square piece of the result: each operand comes once for each piece across.
    hold_result = (a + b) * math.ceil(math.sqrt(max(1.0, result / memory)))
    return min(hold_a, hold_b, hold_result) + out


def product_cost(chip: Chip, m: int, k: int, n: int) -> Cost:
    """Return the cost of one product of 16-bit operands, all in DRAM, on the MAC array."""
    size = chip.bytes["weight"]
    a, b, out = (size * x for x in (m * k, k * n, m * n))
    return layer_product(chip, f"{m} × {k} × {n}", "forward", Gemm(m, k, n, 1, a, b, out, out))


def layer_product(chip: Chip, layer: str, phase: Phase, g: Gemm) -> Cost:
    """Return the cost of a phase of a layer that is a product on the MAC array."""
    size = chip.bytes["weight"]
    dram = dram_bytes(g.a, g.b, g.out, _SUM_BYTES * g.m * g.n * g.groups, chip.sram_bytes / 2)
    across, down = math.ceil(g.m / chip.columns), math.ceil(g.n / chip.rows)
    # A word a row and a word a column each cycle, of those that have work: either operand once for each pass over the
    # other. Results once; what comes from DRAM is written on chip first.
    sram = size * g.groups * g.k * (g.m * down + g.n * across) + g.written + dram
    cycles = g.groups * across * down * g.k
    return Cost(
        layer=layer,
        phase=phase,
        unit="mac",
        macs=g.macs,
        sram_bytes=sram,
        dram_bytes=dram,
        compute_pj=g.macs * chip.pj["mac"],
        sram_pj=sram * chip.sram_pj,
        dram_pj=_range(chip, dram),
        cycles=max(cycles, dram / chip.dram_bandwidth),
    )


def direct_error(places: Places, sent: Sent, stored: bool | None) -> Cost:
    """Return the cost of an error that feedback carries: each of its elements is a sum of the same number of terms.

    On the direct error propagation core, as its RTL is: a lane is a sample or a position and has registers for one
    cycle's terms and one accumulator; features pass one after the other, as the generator makes their signs. Errors
    that fit the registers are read once. More of them pass block by block for each feature, and each lane reads its
    own again for the next one. Signs are shared by the lanes.
    """
    chip, size, feedback = places.chip, places.chip.bytes, sent.feedback
    convolution = feedback.geometry if isinstance(feedback, ConvFeedback) else None
    rows, terms = sent.hidden_size // feedback.features, sent.products / sent.hidden_size
    written = sent.hidden_size * size["error"]
    given, out = places.error(sent.output_size), places.error(sent.hidden_size)
    if feedback.binary:
        from_memory = not isinstance(feedback, SeededFeedback) if stored is None else stored
        fetched = feedback.kept / 8 if from_memory else 0.0
    else:
        from_memory, fetched = True, feedback.kept * size["feedback"]
    groups = convolution.groups if convolution else 1
    if not feedback.binary or not chip.terms:  # on the MAC array; a sign takes a weight's place
        gemm = Gemm(rows, terms, feedback.features // groups, groups, given, fetched, out, written)
        return replace(layer_product(chip, sent.call, "error", gemm), feedback_bytes=fetched, direct=True)
    dram = fetched + given + out
    passes = math.ceil(rows / chip.lanes)
    generated = 0.0 if from_memory else passes * feedback.kept
    span = terms if convolution else feedback.errors  # what is kept of sparse feedback differs from feature to feature
    words = rows * span * groups if span <= chip.terms else sent.products
    sram = words * size["error"] + fetched * passes + written + dram
    cycles = passes * math.ceil(terms / chip.terms) * feedback.features
    return Cost(
        layer=sent.call,
        phase="error",
        unit="direct",
        adds=float(sent.products),
        sram_bytes=sram,
        dram_bytes=dram,
        feedback_bytes=fetched,
        generated_bits=generated,
        compute_pj=sent.products * chip.pj["add"] + generated * chip.pj["sign_bit"],
        sram_pj=sram * chip.sram_pj,
        dram_pj=_range(chip, dram),
        cycles=max(cycles, dram / chip.dram_bandwidth),
        direct=True,
    )


def weight_update(chip: Chip, name: str, weights: int) -> Cost:
    """Return the cost of an update of this many weights, with momentum."""
    dram = weights * 2 * (chip.bytes["weight"] + chip.bytes["velocity"])
    return Cost(
        layer=name,
        phase="update",
        unit="update",
        macs=2.0 * weights,
        sram_bytes=dram,
        dram_bytes=dram,
        compute_pj=weights * chip.pj["weight_update"],
        sram_pj=dram * chip.sram_pj,
        dram_pj=_range(chip, dram),
        cycles=max(weights / chip.update_lanes, dram / chip.dram_bandwidth),
    )


def _range(chip: Chip, dram: float) -> Range:
    low, middle, high = (dram * pj for pj in chip.dram_pj)
    return low, middle, high
