"""Which layers of a model a rule cuts, with what feedback, and where their errors come from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from torchdfa.feedback import Feedback
from torchdfa.feedback.init import Site
from torchdfa.feedback.target import TargetFeedback
from torchdfa.feedback.time import Feedbacks, TimeFeedback
from torchdfa.functional.recurrent import Weights, suffixes, weights_of
from torchdfa.modular import ModuleRule
from torchdfa.rules import BP, Rule
from torchdfa.structure import (
    CONVOLUTIONS,
    CUTTABLE,
    LAYERS,
    RECURRENT,
    Arguments,
    NotATensorError,
    Output,
    Part,
    PartName,
    Structure,
    describe,
    find_parts,
    inputs_of,
    read_structure,
)


@dataclass(frozen=True)
class Span:
    """A scope, before it is put on a model.

    Attributes:
        begin: Name of the module with whose forward it begins.
        end: Name of the module with whose forward it ends.
        parts: The parts of that module's output that the error is taken of; none for all of it.
    """

    begin: str
    end: str
    parts: tuple[PartName, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A cut to be made at the input of the module ``name``, or in a recurrent one: the rule, and what serves it."""

    name: str
    rule: Rule
    feedback: Feedback | Feedbacks
    span: Span


def assign(model: nn.Module, rule: Rule | Mapping[str, Rule]) -> dict[str, Rule]:
    """Return the rule of every module that has parameters of its own."""
    # Layers under torch.nn.utils.parametrize may have no parameters of their own.
    layers = {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, LAYERS) or next(m.parameters(recurse=False), None) is not None
    }
    if isinstance(rule, Rule):
        chosen = {n: rule if isinstance(m, rule.chooses) else BP() for n, m in layers.items()}
        if not any(isinstance(m, rule.chooses) for m in layers.values()):
            raise ValueError(f"{_shown(rule)} fits no layer of {type(model).__name__}; {_listed(layers)}")
        return chosen
    if not isinstance(rule, Mapping) or not all(isinstance(r, Rule) for r in rule.values()):
        raise TypeError(
            f"convert: rule is {rule!r}, expected a rule such as torchdfa.DFA(), or a dict of pattern to rule."
        )
    if not rule:
        raise ValueError("the rule is {}, which names no pattern.")
    rules: dict[str, Rule] = {}
    for pattern, part in rule.items():
        matching = {n: m for n, m in layers.items() if _matches(n, pattern)}
        if not matching:
            raise ValueError(f"the pattern {pattern!r} matches no layer; {_listed(layers)}")
        if not any(isinstance(m, part.fits) for m in matching.values()):
            raise ValueError(f"{_shown(part)} fits none of the layers that {pattern!r} matches; {_listed(matching)}")
        if all(name in rules for name in matching):
            raise ValueError(
                f"the pattern {pattern!r} decides nothing: patterns before it match all of its layers, and the first "
                "that matches a layer decides. Put the narrower pattern first."
            )
        for name, module in matching.items():
            rules.setdefault(name, part if isinstance(module, part.fits) else BP())
    return {name: rules.get(name, BP()) for name in layers}


def make_plans(
    model: nn.Module, rule: Rule | Mapping[str, Rule], rules: Mapping[str, Rule], output: Output, example: Any
) -> list[Plan]:
    """Return the cuts that a rule makes in a model.

    Args:
        model: Any module.
        rule: As it was given.
        rules: What :func:`assign` made of it.
        output: As in :func:`torchdfa.convert`.
        example: As in :func:`torchdfa.convert`.

    Raises:
        ValueError: A layer can't be cut, a product does not exist, or nothing is cut.
    """
    active = [r for r in rules.values() if not isinstance(r, BP) and not r.freezes]
    if not active:
        return []
    if isinstance(model, CUTTABLE):
        raise ValueError(f"the model is a single {type(model).__name__}, with no layer below it to send errors to.")
    parts = _divide(model, rules)
    entered = [part.begin for part, r in parts if r.between == "network"]
    structure = read_structure(model, output, example, local=not any(r.wide for r in active), also=entered)
    if isinstance(output, (str, int)) and not structure.end:
        structure = replace(structure, parts={output: structure})  # one part is served as several are
    plans = [*_plan_layers(model, rules, structure), *_plan_parts(model, rules, parts, structure, example)]
    if not plans:
        raise ValueError(
            f"{_shown(rule)} cuts nothing in {type(model).__name__}: none of its layers lies above another one with "
            "parameters, on the way to the scope's output. The forward calls "
            f"{', '.join(map(repr, structure.order)) or 'no layer'}.{_divided(parts)}"
        )
    for plan in plans:
        if any(b.is_floating_point() and not b.is_meta and not b.isfinite().all() for b in plan.feedback.buffers()):
            raise ValueError(
                f"the feedback of {plan.name!r} is not finite: its size, or all of it, is made of the weights from "
                "there to the output, of which some are NaN or infinite, or times `scale` exceed their type."
            )
    return plans


def _plan_layers(model: nn.Module, rules: Mapping[str, Rule], structure: Structure) -> list[Plan]:
    """Make the feedback of every layer to cut under the rules that know layers, not modules."""
    modules = dict(model.named_modules())
    wanted = {n: r for n, r in rules.items() if not isinstance(r, BP) and not r.freezes and not r.modular}
    unseen = [name for name in wanted if name not in structure.order]
    if unseen:
        mode = ", in evaluation mode" if structure.inputs else ""
        hint = (
            ""
            if structure.inputs
            else " Or pass example=x, if it lies inside a module of torch.nn, which a trace doesn't enter."
        )
        bp = ", ".join(f"{pattern!r}: torchdfa.BP()" for pattern in _around(unseen, structure.order))
        raise ValueError(
            f"{unseen[0]!r} is never called as a layer in the forward{mode} (its weights may be used by the module "
            f"around it, as in nn.MultiheadAttention), so it can't be cut. Give it the rule BP: {{{bp}, ...}}.{hint}"
        )
    plans: list[Plan] = []
    spared: set[Rule] = set()
    for name in structure.order:
        rule = wanted.get(name)
        if rule is None:
            continue
        if rule.spares_first and rule not in spared:
            spared.add(rule)
            continue
        if name not in structure.fed or not (rule.local or name in structure.leading):
            continue
        layer = modules[name]
        if not rule.local:
            plans += _plan_cut(model, name, rule, structure)
        elif (feedback := rule.feedback(_local_site(name, layer))) is not None:
            plans.append(Plan(name, rule, feedback, Span(name, name)))
    return plans


def _plan_cut(model: nn.Module, name: str, rule: Rule, structure: Structure) -> list[Plan]:
    """Make the feedback that carries the network's error to a module, from the parts of the output that it leads to."""
    seen = structure.toward(name)
    if why := seen.astray.get(name):
        raise ValueError(f"{name!r} can't be cut: {why}, or give it the rule BP.")
    feedback = rule.feedback(_site(model, name, model.get_submodule(name), seen))
    if len(seen.parts) > 1 and isinstance(feedback, TargetFeedback):
        raise ValueError(
            f"{name!r} leads to the parts {', '.join(map(repr, seen.parts))} of the output, and "
            f"{type(rule).__name__} reads the targets off the error of one. Give it another rule, by name."
        )
    return [] if feedback is None else [Plan(name, rule, feedback, Span("", seen.end, tuple(seen.parts)))]


def _around(unseen: Sequence[str], seen: Sequence[str]) -> list[str]:
    """Return patterns for the largest modules in which all layers are unseen; of many, for their last names."""
    found: dict[str, None] = {}
    for name in unseen:
        words = name.split(".")
        prefixes = (".".join(words[:n]) for n in range(1, len(words) + 1))
        found[next(p for p in prefixes if not any(s == p or s.startswith(f"{p}.") for s in seen))] = None
    most = 3
    return list(found) if len(found) <= most else list(dict.fromkeys(f"*{n.rpartition('.')[2]}" for n in found))


def _matches(name: str, pattern: str) -> bool:
    """Tell whether a pattern matches a layer, or a module around it."""
    words = name.split(".")
    return any(fnmatchcase(".".join(words[:n]), pattern) for n in range(1, len(words) + 1))


def _divide(model: nn.Module, rules: Mapping[str, Rule]) -> list[tuple[Part, ModuleRule]]:
    """Return the modules that the module-wise rules find in a model."""
    found: list[tuple[Part, ModuleRule]] = []
    for rule in dict.fromkeys(r for r in rules.values() if isinstance(r, ModuleRule)):
        layers = [name for name, r in rules.items() if r == rule]
        found += [(part, rule) for part in find_parts(model, layers, rule.patterns)]
    return found


def _plan_parts(
    model: nn.Module,
    rules: Mapping[str, Rule],
    parts: Sequence[tuple[Part, ModuleRule]],
    structure: Structure,
    example: Any | None,
) -> list[Plan]:
    """Make the feedback of every cut under the module-wise rules."""
    modules = dict(model.named_modules())
    inputs = {} if example is None else inputs_of(model, example, {part.begin for part, _ in parts})
    plans: list[Plan] = []
    for part, rule in parts:
        if isinstance(part.module, RECURRENT):
            plans += _plan_recurrent(part, rule, part.begin in structure.fed)
            continue
        if rule.between == "network" and _entered(part, rule, structure):
            plans += _plan_cut(model, part.begin, rule, structure)
        if not (rule.within or rule.between == "module"):
            continue
        inside, pieces = _inside(part, inputs.get(part.begin))
        span = Span(part.begin, part.end, pieces)
        for inner in inside.order:
            if inner not in inside.leading:
                continue
            name, first = part.name(inner), inner not in inside.above
            cut = rule.within if not first else rule.between == "module" and name in structure.fed
            if cut and rules.get(name) == rule and inner not in part.gated:
                feedback = rule.feedback(_part_site(part, inner, modules[name], inside))
                plans.append(Plan(name, rule, feedback, span))
    return plans


_FORWARDS = {kind.forward for kind in RECURRENT}


def _plan_recurrent(part: Part, rule: ModuleRule, fed: bool) -> list[Plan]:
    """Make the feedbacks of a recurrent layer: to the states, and to the inputs of its layers."""
    name, layer = part.begin, part.module
    if getattr(layer, "proj_size", 0):
        raise ValueError(f"{name!r} is an LSTM with proj_size, whose states can't be cut. Give it the rule BP.")
    if type(layer).forward not in _FORWARDS:
        raise ValueError(
            f"{name!r} is a {type(layer).__name__} with a forward of its own, which running it step by step would pass "
            "by. Give it the rule BP, or put what it adds into a module around it."
        )
    made = Feedbacks()
    steps = rule.steps
    single = not isinstance(layer, nn.RNNBase) or rule.chunk == 1
    for i, names in enumerate(suffixes(layer)):
        for suffix in names:
            w = weights_of(layer, suffix)
            if steps is not None and not (single and steps == "inner"):
                site = _matrix_site(f"{name}.time{suffix}", layer, w, w.across)
                made[f"time{suffix}"] = TimeFeedback(rule.feedback(site), rule.decay, steps)
            if rule.between is not None and (fed or i):
                site = _matrix_site(f"{name}.input{suffix}", layer, w, w.inward)
                made[f"input{suffix}"] = rule.feedback(site)
    return [Plan(name, rule, made, Span(name, name))] if len(made) else []


def _matrix_site(name: str, layer: nn.Module, w: Weights, matrix: Tensor) -> Site:
    """Return the site of a state or an input of a recurrent layer, whose product is its part in the candidate."""
    gain, part = {"lstm": (0.25, 2), "gru": (0.25 if matrix is w.across else 0.5, 2)}.get(w.kind, (1.0, 0))
    rows = matrix.detach()[part * w.hidden : (part + 1) * w.hidden]
    return Site(name, layer, w.hidden, matrix.shape[1], True, lambda: gain * rows.double())


def _entered(part: Part, rule: ModuleRule, structure: Structure) -> bool:
    if part.begin in structure.fed or part.begin in structure.order:
        return part.begin in structure.fed and part.begin in structure.leading
    raise ValueError(
        f"{type(rule).__name__} sends the network's error to the input of {part.begin!r}, whose shape is not known. "
        "Pass example=x, an input like the ones you train on."
    )


def _inside(part: Part, given: Arguments | None) -> tuple[Structure, tuple[PartName, ...]]:
    """Read a part's structure, and which piece of its output is the activation: the first, where there are several."""
    shown = f"the module {part.begin!r}, a {type(part.module).__name__},"
    try:
        try:
            return read_structure(part.module, None, given), ()
        except NotATensorError as error:
            if not isinstance(error.value, (tuple, list)):
                raise
            return read_structure(part.module, 0, given), (0,)
    except NotATensorError as error:
        raise ValueError(
            f"{shown} returns {describe(error.value)}, expected a tensor, or a tuple that begins with one. Choose "
            "other modules by modules=."
        ) from error


def _part_site(part: Part, inner: str, layer: nn.Module, structure: Structure) -> Site:
    name = part.name(inner)
    if isinstance(layer, nn.Linear):
        return replace(_site(part.module, inner, layer, structure), name=name)
    path = part.paths.path(inner)

    def product() -> Tensor:
        raise NotImplementedError("the product along a path depends on the geometry that is chosen for it")

    return Site(name, layer, path.outputs, path.inputs, False, product, path)


def _local_site(name: str, layer: nn.Module) -> Site:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    matrix = weight.detach().flatten(1)
    return Site(name, layer, matrix.shape[0], matrix.shape[1], True, matrix.double)


def _site(model: nn.Module, name: str, layer: nn.Module, structure: Structure) -> Site:
    def product() -> Tensor:
        return structure.product(model, name)

    if structure.output is not None:
        hidden, output = structure.inputs[name], structure.output
        if not isinstance(layer, CONVOLUTIONS) and len(hidden) > 1 and hidden[:-1] == output[:-1]:
            return Site(name, layer, output[-1], hidden[-1], True, product)
        if len(output) > 1 and hidden[0] != output[0]:
            raise ValueError(
                f"{name!r} takes inputs of shape {tuple(hidden)}, and the scope's output has shape {tuple(output)}: "
                f"the errors of {output[0]} samples can't be sent to {hidden[0]} rows. Give it the rule BP."
            )
        return Site(name, layer, math.prod(output[1:]), math.prod(hidden[1:]), False, product)
    if not isinstance(layer, nn.Linear):
        raise ValueError(
            f"direct feedback to {name!r}, a {type(layer).__name__}, covers every element of its input map, whose "
            "size is not known. Pass example=x, an input like the ones you train on."
        )
    if structure.errors is None:
        raise ValueError(
            f"the width of the scope's output is not known, since {structure.chain_end}. Pass example=x, an input like "
            "the ones you train on."
        )
    return Site(name, layer, structure.errors, layer.in_features, True, product)


def _divided(parts: Sequence[tuple[Part, ModuleRule]]) -> str:
    if not parts:
        return ""
    shown = [part.begin if part.begin == part.end else f"{part.begin} to {part.end}" for part, _ in parts]
    return f" Its modules are {', '.join(map(repr, shown))}; name larger ones by modules=."


def _shown(rule: Rule | Mapping[str, Rule]) -> str:
    return (
        type(rule).__name__
        if isinstance(rule, Rule)
        else " and ".join(sorted({type(r).__name__ for r in rule.values()}))
    )


def _listed(layers: Mapping[str, nn.Module]) -> str:
    return f"there are {listed(layers, 20)}." if layers else "it has no layers with parameters."


def listed(layers: Mapping[str, nn.Module], most: int) -> str:
    """Return the names and types of layers, and how many more than the most that are shown there are."""
    shown = [f"{name!r} ({type(module).__name__})" for name, module in list(layers.items())[:most]]
    more = f" and {len(layers) - most} more" if len(layers) > most else ""
    return ", ".join(shown) + more
