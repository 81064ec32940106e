"""What one training step of a network costs on a described chip: operations, bytes, energy, cycles."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

import torchdfa
from torchdfa.convert import conversion_of, is_converted
from torchdfa.feedback import Feedback
from torchdfa.hardware.calls import Layer, Sent, calls, teaches
from torchdfa.hardware.chip import Chip, load_chip
from torchdfa.hardware.phases import PHASES, Cost, Phase, Places, Range, direct_error, layer_product, weight_update
from torchdfa.hardware.schedule import Task, period
from torchdfa.rules import Rule
from torchdfa.table import align


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
        layers, sent = calls(model, batch)
    except RuntimeError as error:
        raise ValueError(
            f"step: {type(model).__name__} doesn't run on a batch of shape {tuple(batch.shape)}: {error}"
        ) from error
    if not layers:
        raise ValueError(f"step: {type(model).__name__} has no Linear or convolution layer, whose cost is counted.")
    places = Places(chip, layers)
    costs: list[Cost] = []
    for place, layer in enumerate(layers):
        costs.append(layer_product(chip, layer.call, "forward", places.forward(layer)))
        if layer.sends:
            cost = layer_product(chip, layer.call, "error", places.transposed(layer))
            # Feedback alignment does what the transposed weights would, with weights of its own.
            costs.append(replace(cost, feedback_bytes=places.weights(layer)) if layer.local else cost)
        if layer.teaches:
            costs.append(layer_product(chip, f"{layer.call}.feedback", "gradient", places.gradient(layer)))
            if layer.first:
                costs.append(weight_update(chip, f"{layer.name}.feedback", layer.inner * layer.outputs))
        for s in (s for s in sent if s.place == place):
            costs.append(direct_error(places, s, stored))
            if teaches(s.feedback):
                costs.append(layer_product(chip, f"{s.call}.feedback", "gradient", places.taught(s)))
                if s.call == s.name:
                    costs.append(weight_update(chip, f"{s.name}.feedback", s.feedback.kept))
        if layer.learns:
            costs.append(layer_product(chip, layer.call, "gradient", places.gradient(layer)))
            if layer.first:
                costs.append(weight_update(chip, layer.name, layer.inner * layer.outputs))
    serial = sum(c.cycles for c in costs)
    name = type(rule).__name__ if isinstance(rule, Rule) else ("as converted" if is_converted(model) else "BP")
    pipelined = period(*_tasks(costs, layers, sent))
    return StepCost(chip, name, len(batch), tuple(costs), serial, pipelined, tuple(_notes(model, layers)))


def _notes(model: nn.Module, layers: list[Layer]) -> Iterator[str]:
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


def _tasks(costs: list[Cost], layers: list[Layer], sent: list[Sent]) -> tuple[list[Task], dict[str, list[str]]]:
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
            if s.place == i and teaches(s.feedback):
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
