"""Read a model's structure by running it once on an example input, which gives shapes and works for any model."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from torchdfa.structure.base import LAYERS, Arguments, Structure, call, input_of, undisturbed
from torchdfa.structure.moved import moved_samples
from torchdfa.structure.outputs import Output, behind_softmax, demand_tensor, pick


def run_structure(
    model: nn.Module,
    output: Output,
    example: Any,
    traced: Structure,
    *,
    local: bool = False,
    also: Collection[str] = (),
) -> Structure:
    """Complete a structure, as far as it was traced, by a forward on an example.

    Args:
        model: Any module; its mode, its gradients, its buffers and the random state stay as they are.
        output: The scope's output, as in :func:`torchdfa.convert`.
        example: A tensor, a tuple of arguments, or a dict of keyword arguments.
        traced: What is known without running.
        local: Leave out what concerns the scope's output.
        also: Names of other modules whose inputs are to be cut, which are then read as layers are.

    Raises:
        ValueError: The scope's output is no tensor, comes out of a softmax, or is computed more than once; or a layer
            is called with inputs of several shapes.
    """
    # A layer's inputs, the autograd nodes of its outputs, and whether it ran without gradients.
    seen: dict[str, list[tuple[Tensor, Any, bool]]] = {}
    ends: list[Any] = []

    def record(name: str, arguments: tuple[Any, ...], keywords: dict[str, Any], made: Any) -> None:
        h = input_of(name, modules[name], arguments, keywords)
        h = h.data if isinstance(h, PackedSequence) else h
        while isinstance(made, tuple):  # recurrent layers return their states too
            made = made[0]
        seen.setdefault(name, []).append((h, getattr(made, "grad_fn", None), not torch.is_grad_enabled()))

    modules = dict(model.named_modules())
    handles = [
        m.register_forward_hook(lambda _, a, k, made, name=name: record(name, a, k, made), with_kwargs=True)
        for name, m in modules.items()
        if isinstance(m, LAYERS) or name in also
    ]
    handles.append(modules[traced.end].register_forward_hook(lambda _, a, o: ends.append(o)))
    outputs: list[tuple[str, Any]] = []
    if not local and output is not None and not traced.end:
        handles += [
            m.register_forward_hook(lambda _, a, o, name=name: outputs.append((name, o)))
            for name, m in modules.items()
            if name
        ]
    _run(model, example, handles)
    received = {name: [h for h, _, _ in calls] for name, calls in seen.items()}
    for name, inputs in received.items():
        if len({h.shape for h in inputs}) > 1:
            raise ValueError(
                f"{name!r} is called with inputs of different shapes in one forward, "
                f"{[tuple(h.shape) for h in inputs]}; "
                "one feedback can't serve them. Give it the rule BP, by name."
            )
    # What runs without gradients may be re-entrant checkpointing: its layers count, for the cut to refuse it by name.
    structure = replace(
        traced,
        order=tuple(seen),
        fed=frozenset(name for name, calls in seen.items() if any(h.requires_grad or blind for h, _, blind in calls)),
        inputs={name: inputs[0].shape for name, inputs in received.items()},
        above=_above(seen),
    )
    if local:
        return structure
    if len(ends) != 1:
        raise ValueError(
            f"the scope's output {traced.end!r} is computed {len(ends)} times in a forward, expected once."
        )

    def seen_from(output: Any, traced: Structure) -> Structure:
        value = demand_tensor(output)
        nodes = _nodes(value)
        there = {name: [node in nodes or blind for _, node, blind in calls] for name, calls in seen.items()}
        if type(value.grad_fn).__name__.startswith(("Softmax", "LogSoftmax")):
            raise ValueError(behind_softmax())
        with _still(model):
            astray = moved_samples(received, value)
        for name, led in there.items():
            if any(led) and not all(led):
                astray[name] = (
                    f"of its {len(led)} calls in a forward {led.count(False)} don't lead to the output, whose error "
                    "all of them would get. Convert the module that is called several times by itself"
                )
        return replace(
            structure,
            leading=frozenset(name for name, led in there.items() if any(led)),
            errors=traced.errors,
            output=value.shape,
            chain=traced.chain,
            chain_end=traced.chain_end,
            parts={},
            astray=astray,
        )

    if isinstance(output, tuple):
        # What can't be traced has no parts yet, but the reason why.
        chains = {part: traced.parts.get(part, traced) for part in output}
        return structure.joined({part: seen_from(pick(ends[0], part), chain) for part, chain in chains.items()})
    value = ends[0] if output is None or traced.end else pick(ends[0], output)
    found = seen_from(value, traced)
    # A part that is what some module returns is taken there, before the model makes a loss of it.
    makers = [name for name, o in outputs if o is value and sum(name == other for other, _ in outputs) == 1]
    return replace(found, end=makers[0] if makers else traced.end)


def _above(seen: Mapping[str, list[tuple[Tensor, Any, bool]]]) -> frozenset[str]:
    """Return the modules whose input was made with the output of another."""
    outputs = {node for calls in seen.values() for _, node, _ in calls if node is not None}
    return frozenset(n for n, calls in seen.items() if any(outputs & _nodes(h) or blind for h, _, blind in calls))


def inputs_of(model: nn.Module, example: Any, names: Collection[str]) -> dict[str, Arguments]:
    """Return what modules are called with in a forward on an example, by name."""
    found: dict[str, Arguments] = {}
    modules = dict(model.named_modules())

    def hook(name: str) -> RemovableHandle:
        def record(_: nn.Module, positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            found[name] = Arguments(positional, keywords).copy()

        return modules[name].register_forward_pre_hook(record, with_kwargs=True)

    # Without gradients, since what has them can't be copied: of which re-entrant checkpointing warns.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        _run(model, example, [hook(name) for name in names], gradients=False)
    return found


def _run(model: nn.Module, example: Any, handles: Sequence[RemovableHandle], *, gradients: bool = True) -> None:
    """Run a model on an example, with hooks that are removed afterwards."""
    try:
        with _still(model), torch.set_grad_enabled(gradients):
            call(model, example)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Within it a model is in evaluation mode, with gradients for all of it; afterwards it is as it was."""
    with undisturbed(model):
        model.eval()
        for p in model.parameters():
            p.requires_grad_(p.is_floating_point())
        yield


def _nodes(output: Tensor) -> set[Any]:
    """Return the autograd nodes that a tensor was made by."""
    found: set[Any] = set()
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return found
