"""What one training step of a network costs on a described chip: operations, bytes, energy, cycles, by layer and phase.

Each phase of a layer is a matrix product ``out (M, N) = a (M, K) · b (K, N)``. Weights lie in DRAM. Activations do
unless all the step's fit half the on-chip memory; an error does, unless it fits by itself. From DRAM an operand comes
once, or, where neither fits half the on-chip memory, as often as the best of three orders needs. From the on-chip
memory the MAC array reads a word a busy row and a busy column each cycle, the direct error propagation core its lanes'
errors: once where a lane's registers hold them all, else again for each feature. Energies are those of the chip's
description; DRAM's are given low, middle and high. Activation functions, norms and the loss are not counted.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

import torchdfa
from torchdfa.convert import conversion_of, is_converted, watching
from torchdfa.feedback import ConvFeedback, Feedback, SeededFeedback
from torchdfa.hardware.chip import Chip, load_chip
from torchdfa.hardware.schedule import Task, period
from torchdfa.rules import Rule
from torchdfa.structure import CUTTABLE
from torchdfa.structure.base import input_of
from torchdfa.table import align

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
class StepCost:
    """A training step on a chip.

    Attributes:
        chip: Its description.
        rule: What trains.
        batch: N.
        costs: By layer and phase.
        period: Cycles from step to step, the units one after the other.
        pipelined: The same where each unit goes on as soon as what it needs is there.
        notes: What of the model or the rule is not counted.
    """

    chip: Chip
    rule: str
    batch: int
    costs: tuple[Cost, ...]
    period: float
    pipelined: float
    notes: tuple[str, ...] = ()

    def total(self, name: str, phases: Iterable[Phase] = PHASES) -> float:
        """Return a field of the costs, added up over phases."""
        chosen = set(phases)
        return sum(getattr(c, name) for c in self.costs if c.phase in chosen)

    def picojoules(self, phases: Iterable[Phase] = PHASES) -> Range:
        """Return the energy of phases: low, middle, high by the energy of DRAM."""
        chosen = [c.picojoules for c in self.costs if c.phase in set(phases)]
        low, middle, high = (sum(c[i] for c in chosen) for i in range(3))
        return low, middle, high

    def __str__(self) -> str:
        head = ("layer", "phase", "unit", "MACs", "adds", "DRAM bytes", "feedback", "µJ low", "µJ", "µJ high", "cycles")
        lines: list[tuple[str, ...]] = [head]
        for c in self.costs:
            energies = (f"{x / 1e6:.3g}" for x in c.picojoules)
            counts = (c.macs, c.adds, c.dram_bytes, c.feedback_bytes)
            lines.append((c.layer, c.phase, c.unit, *(f"{x:,.0f}" for x in counts), *energies, f"{c.cycles:,.0f}"))
        names = ("macs", "adds", "dram_bytes", "feedback_bytes")
        energies = (f"{x / 1e6:.3g}" for x in self.picojoules())
        lines.append(("total", "", "", *(f"{self.total(n):,.0f}" for n in names), *energies, f"{self.period:,.0f}"))
        faster = self.period / self.pipelined
        ms = self.pipelined / self.chip.megahertz / 1e3
        return (
            f"{align(lines, left=3)}\npipelined: {self.pipelined:,.0f} cycles a step, {faster:.2f} × as fast; "
            f"{ms:.3g} ms at {self.chip.megahertz:g} MHz\n"
            f"MACs: of the total {self.total('macs', ['update']):,.0f} are multiplications of the update"
            + "".join(f"\n{note}" for note in self.notes)
        )


def step(
    model: nn.Module,
    rule: Rule | Mapping[str, Rule] | None,
    batch: Tensor,
    *,
    chip: str | Chip = "bdfa-65nm",
    stored: bool | None = None,
) -> StepCost:
    """Return what a training step of ``model`` by ``rule`` on ``batch`` costs on a chip.

    Nothing is trained: a copy of the model runs forward once, for the shapes of its Linear and convolution layers.

    >>> import torch, torchdfa as dfa
    >>> from torchdfa.hardware import step
    >>> net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    >>> cost = step(net, dfa.BDFA(storage="seeded"), torch.zeros(32, 64))
    >>> int(cost.total("macs", ["forward"])), int(cost.total("adds", ["error"]))
    (75776, 10240)

    Args:
        model: Any network whose work is in Linear and convolution layers; others' operations are not counted, the
            result's notes name those with weights.
        rule: As :func:`torchdfa.convert` takes it; None: the model is converted already, or plain (BP).
        batch: An input, (N, ...), of which only the shape matters.
        chip: A name of :func:`torchdfa.hardware.chip.chips`, a YAML file, or a chip.
        stored: Whether binary feedback comes from memory; by default where it is packed, not where it is seeded.

    Raises:
        ValueError: The model can't be converted so, can't run on the batch, or has no layer whose cost is known; the
            chip is unknown.
    """
    chip = chip if isinstance(chip, Chip) else load_chip(chip)
    if not batch.dim() or not len(batch):
        raise ValueError(f"step: batch has shape {tuple(batch.shape)}, expected (N, ...) with at least one sample.")
    model = copy.deepcopy(model)
    try:
        if rule is not None:
            torchdfa.convert(model, rule, example=batch[:1])
        layers, sent = _calls(model, batch)
    except RuntimeError as error:
        raise ValueError(
            f"step: {type(model).__name__} doesn't run on a batch of shape {tuple(batch.shape)}: {error}"
        ) from error
    if not layers:
        raise ValueError(f"step: {type(model).__name__} has no Linear or convolution layer, whose cost is counted.")
    places = _Places(chip, layers)
    costs: list[Cost] = []
    for place, layer in enumerate(layers):
        costs.append(_product(chip, layer.call, "forward", places.forward(layer)))
        if layer.sends:
            cost = _product(chip, layer.call, "error", places.transposed(layer))
            # Feedback alignment does what the transposed weights would, with weights of its own.
            costs.append(replace(cost, feedback_bytes=places.weights(layer)) if layer.local else cost)
        if layer.teaches:
            costs.append(_product(chip, f"{layer.call}.feedback", "gradient", places.gradient(layer)))
            if layer.first:
                costs.append(_update(chip, f"{layer.name}.feedback", layer.inner * layer.outputs))
        for s in (s for s in sent if s.place == place):
            costs.append(_direct(places, s, stored))
            if _teaches(s.feedback):
                costs.append(_product(chip, f"{s.call}.feedback", "gradient", places.taught(s)))
                if s.call == s.name:
                    costs.append(_update(chip, f"{s.name}.feedback", s.feedback.kept))
        if layer.learns:
            costs.append(_product(chip, layer.call, "gradient", places.gradient(layer)))
            if layer.first:
                costs.append(_update(chip, layer.name, layer.inner * layer.outputs))
    serial = sum(c.cycles for c in costs)
    name = type(rule).__name__ if isinstance(rule, Rule) else ("as converted" if is_converted(model) else "BP")
    pipelined = period(*_tasks(costs, layers, sent))
    return StepCost(chip, name, len(batch), tuple(costs), serial, pipelined, tuple(_notes(model, layers)))


def _notes(model: nn.Module, layers: list[_Layer]) -> Iterator[str]:
    """Yield what is not counted: modules with weights, of two dimensions or more, and the weight mirror's own phase."""
    counted = {layer.name for layer in layers}
    left = [
        f"{name or 'the model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if not isinstance(module, Feedback)
        and not any(name == c or name.startswith(f"{c}.") for c in counted)
        and any(p.dim() > 1 for p in module.parameters(recurse=False))
    ]
    if left:
        yield f"Not counted: {', '.join(left)}."
    if is_converted(model) and any(isinstance(r, torchdfa.WeightMirror) for r in conversion_of(model).rules.values()):
        yield "Not counted: the mirror phase of WeightMirror, torchdfa.mirror, which runs between steps."


@dataclass(frozen=True)
class _Layer:
    name: str
    call: str  # its name; with a number from its second call on
    rows: int  # M: samples times positions
    inner: int  # K: inputs of one output
    outputs: int  # N, of all groups
    groups: int
    input_size: int  # elements of its input
    learns: bool
    sends: bool  # whether an error goes from its output to its input
    local: bool  # by feedback in place of its transposed weights
    teaches: bool  # whether that feedback learns

    @property
    def first(self) -> bool:
        return self.call == self.name


@dataclass(frozen=True)
class _Sent:
    """An error that feedback carries from a module's output to an input inside it."""

    name: str  # of what is cut at its input
    call: str  # its name; with a number from its second call on
    feedback: Feedback
    products: int
    output_size: int  # elements
    hidden_size: int
    place: int  # of the first layer that runs on the input, in the order of calls
    source: int  # of the layer that ran last before the output was there


@dataclass(frozen=True)
class _Gemm:
    m: int
    k: float
    n: int
    groups: int
    a: float  # bytes of each operand in DRAM; none of what stays on chip
    b: float
    out: float
    written: float  # bytes of the result, wherever it goes

    @property
    def macs(self) -> float:
        return float(self.m) * self.k * self.n * self.groups


def _teaches(feedback: nn.Module | None) -> bool:
    """Return whether a feedback is learnt: a parameter, which the optimizer updates."""
    return isinstance(feedback, Feedback) and feedback.learns and any(p.requires_grad for p in feedback.parameters())


def _calls(model: nn.Module, batch: Tensor) -> tuple[list[_Layer], list[_Sent]]:
    """Run the model once; return its layers in the order of their calls, and the errors that feedback carries."""
    layers: list[_Layer] = []
    sent: list[_Sent] = []
    begun: dict[str, list[int]] = {}  # of what is cut, where it begins: calls whose error has not been seen yet
    counts: Counter[str] = Counter()
    conversion = conversion_of(model) if is_converted(model) else None
    local = {n for n, r in conversion.rules.items() if r.local} if conversion else set()
    fed = {
        f: n
        for n, m in model.named_modules()
        if isinstance(f := m._modules.get("feedback"), Feedback) and n not in local
    }

    cut = {*local, *fed.values()}

    def numbered(name: str) -> str:
        counts[name] += 1
        return name if counts[name] == 1 else f"{name} ({counts[name]})"

    def begin(name: str, module: nn.Module, arguments: Any, keywords: Any) -> None:
        if input_of(name, module, arguments, keywords).requires_grad:
            begun.setdefault(name, []).append(len(layers))

    def note(name: str, module: nn.Module, arguments: Any, keywords: Any, output: Tensor) -> None:
        x: Tensor = input_of(name, module, arguments, keywords)
        weight = module.weight
        assert isinstance(weight, Tensor)
        own = name in local and bool(begun.get(name)) and begun[name].pop(0) == len(layers)
        layers.append(
            _Layer(
                name,
                numbered(name),
                rows=output.numel() // weight.shape[0],
                inner=weight[0].numel(),
                outputs=weight.shape[0],
                groups=getattr(module, "groups", 1),
                input_size=x.numel(),
                learns=weight.requires_grad,
                sends=x.requires_grad or own,
                local=own,
                teaches=own and _teaches(module._modules.get("feedback")),
            )
        )

    def record(output: Tensor, feedbacks: Sequence[Feedback], hidden: Sequence[Tensor]) -> Tensor:
        for feedback, h in zip(feedbacks, hidden, strict=True):
            name = fed.get(feedback)
            if name is None:  # a layer's own, or a recurrent layer's, which is not counted
                continue
            place = begun[name].pop(0)
            call = layers[place].call if layers[place].name == name else numbered(name)
            products = feedback.products(output.shape, h.shape)
            sent.append(_Sent(name, call, feedback, products, output.numel(), h.numel(), place, len(layers) - 1))
        return output

    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        for name, module in model.named_modules():
            if name in cut:  # before the cut, which detaches the input
                stack.callback(
                    module.register_forward_pre_hook(
                        lambda m, a, k, name=name: begin(name, m, a, k), prepend=True, with_kwargs=True
                    ).remove
                )
            if isinstance(module, CUTTABLE):  # before the errors of its output are sent
                stack.callback(
                    module.register_forward_hook(
                        lambda m, a, k, y, name=name: note(name, m, a, k, y), prepend=True, with_kwargs=True
                    ).remove
                )
        if conversion:
            stack.enter_context(watching(conversion, record))
        model.eval()(batch)
    return layers, sent


class _Places:
    """Where a step's tensors lie, and the products of a layer's phases with the bytes that they move."""

    def __init__(self, chip: Chip, layers: list[_Layer]):
        self.chip = chip
        self.memory = chip.sram_bytes / 2
        self.kept = sum(layer.input_size for layer in layers) * chip.bytes["activation"] <= self.memory

    def weights(self, layer: _Layer) -> float:
        return layer.inner * layer.outputs * self.chip.bytes["weight"]

    def activation(self, layer: _Layer) -> float:
        return 0.0 if self.kept else layer.input_size * self.chip.bytes["activation"]

    def error(self, elements: int) -> float:
        size = elements * self.chip.bytes["error"]
        return 0.0 if size <= self.memory else size

    def forward(self, layer: _Layer) -> _Gemm:
        written = layer.rows * layer.outputs * self.chip.bytes["activation"]
        out = 0.0 if self.kept else written
        n = layer.outputs // layer.groups
        a, b = self.activation(layer), self.weights(layer)
        return _Gemm(layer.rows, layer.inner, n, layer.groups, a, b, out, written)

    def transposed(self, layer: _Layer) -> _Gemm:
        k = layer.outputs // layer.groups
        a, b = self.error(layer.rows * layer.outputs), self.weights(layer)
        written = layer.input_size * self.chip.bytes["error"]
        return _Gemm(layer.rows, k, layer.inner, layer.groups, a, b, self.error(layer.input_size), written)

    def gradient(self, layer: _Layer) -> _Gemm:
        # It goes on to the momentum unit, whose traffic the update counts.
        m = layer.outputs // layer.groups
        a, b = self.error(layer.rows * layer.outputs), self.activation(layer)
        return _Gemm(m, layer.rows, layer.inner, layer.groups, a, b, 0.0, 0.0)

    def taught(self, sent: _Sent) -> _Gemm:
        """Return the gradient of dense feedback: the error at the output times the activation that was cut."""
        feedback, samples = sent.feedback, sent.hidden_size // sent.feedback.features
        b = 0.0 if self.kept else sent.hidden_size * self.chip.bytes["activation"]
        return _Gemm(feedback.errors, samples, feedback.features, 1, self.error(sent.output_size), b, 0.0, 0.0)


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
    return _product(chip, f"{m} × {k} × {n}", "forward", _Gemm(m, k, n, 1, a, b, out, out))


def _product(chip: Chip, layer: str, phase: Phase, g: _Gemm) -> Cost:
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


def _direct(places: _Places, sent: _Sent, stored: bool | None) -> Cost:
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
        gemm = _Gemm(rows, terms, feedback.features // groups, groups, given, fetched, out, written)
        return replace(_product(chip, sent.call, "error", gemm), feedback_bytes=fetched, direct=True)
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


def _update(chip: Chip, name: str, weights: int) -> Cost:
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


def _tasks(costs: list[Cost], layers: list[_Layer], sent: list[_Sent]) -> tuple[list[Task], dict[str, list[str]]]:
    """Return a step's tasks, and which ones of the step before each waits for.

    A layer's forward pass waits for its own update; an error for the one at the output that it comes from, which is
    the layer's own or, carried by feedback, its module's. DRAM is shared as each task counts it.
    """
    by = {(c.layer, c.phase): c for c in costs}
    tasks: list[Task] = []
    repeats: dict[str, list[str]] = {}
    for i, layer in enumerate(layers):
        after = (f"forward {layers[i - 1].call}",) if i else ()
        tasks.append(Task(f"forward {layer.call}", "mac", by[layer.call, "forward"].cycles, after))
        if layer.learns:
            repeats[f"forward {layer.call}"] = [f"update {layer.name}"]
    at = f"forward {layers[-1].call}"
    outputs = [""] * len(layers)  # what the error at each layer's output waits for
    gradients: dict[str, list[str]] = {}
    taught: dict[str, list[str]] = {}

    def teach(call: str, name: str, after: str) -> None:
        gradient, update = f"gradient {call}.feedback", f"update {name}.feedback"
        tasks.append(Task(gradient, "mac", by[f"{call}.feedback", "gradient"].cycles, (after,)))
        taught.setdefault(name, []).append(gradient)
        repeats[f"error {call}"] = [update]

    for i, layer in reversed(list(enumerate(layers))):
        outputs[i] = at
        if layer.learns:
            name = f"gradient {layer.call}"
            tasks.append(Task(name, "mac", by[layer.call, "gradient"].cycles, (at,)))
            gradients.setdefault(layer.name, []).append(name)
            if layer.first:
                update = by[layer.name, "update"].cycles
                tasks.append(Task(f"update {layer.name}", "update", update, tuple(gradients[layer.name])))
        if layer.teaches:
            teach(layer.call, layer.name, at)
        for s in sent:
            if s.place == i and _teaches(s.feedback):
                teach(s.call, s.name, outputs[s.source])
        errors = [(layer.call, i)] if layer.sends else []
        errors += [(s.call, s.source) for s in sent if s.place == i]
        for call, source in errors:
            error = by[call, "error"]
            tasks.append(Task(f"error {call}", error.unit, error.cycles, (outputs[source],)))
            at = f"error {call}"
    for name, needed in taught.items():
        update = by[f"{name}.feedback", "update"].cycles
        tasks.append(Task(f"update {name}.feedback", "update", update, tuple(needed)))
    return tasks, repeats
