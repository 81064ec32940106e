"""Put a rule on a model and take it off again: the only file that touches hooks.

A forward pre-hook on each cut layer records its input ``h`` and hands the layer ``h.detach()``. When the scope's
forward ends, a hook passes its output through one autograd node that sends the error there to every recorded ``h``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from torchdfa.feedback import Feedback
from torchdfa.feedback.init import Site
from torchdfa.feedback.time import Feedbacks, TimeFeedback
from torchdfa.functional import broadcast
from torchdfa.functional.recurrent import (
    State,
    Weights,
    cut_steps,
    linear,
    live_steps,
    run_layers,
    suffixes,
    weights_of,
)
from torchdfa.modular import ModuleRule
from torchdfa.rules import BP, Rule
from torchdfa.structure import (
    CONVOLUTIONS,
    LAYERS,
    RECURRENT,
    Part,
    Structure,
    find_parts,
    inputs_of,
    pick,
    put,
    read_structure,
)

Model = TypeVar("Model", bound=nn.Module)
Node = Callable[[Tensor, Sequence[Feedback], Sequence[Tensor]], Tensor]
_MARK = "_torchdfa"


@dataclass(eq=False)
class Scope:
    """A module from whose output errors are sent, and what the forward under way has cut inside it.

    Attributes:
        part: The part of the module's output that the error is taken of; None for all of it.
        node: The autograd node, or its reference twin.
        enabled: False within :func:`backprop`.
        recording: Whether a forward is under way whose cuts are to be served.
        cuts: The cut layers' names and feedbacks, their inputs and these inputs' versions. Empty between forwards.
    """

    part: str | int | None = None
    node: Node = broadcast
    enabled: bool = True
    recording: bool = False
    cuts: list[tuple[str, Feedback, Tensor, int]] = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "recording": False, "cuts": []}


class _Hook:
    """Hooks are objects, since a copied or unpickled model must get hooks of its own, bound to its own scope."""

    def __init__(self, scope: Scope):
        self.scope = scope


class _Begin(_Hook):
    def __call__(self, module: nn.Module, arguments: Any) -> None:
        self.scope.cuts.clear()
        self.scope.recording = self.scope.enabled and torch.is_grad_enabled()


class _Cut(_Hook):
    def __init__(self, scope: Scope, name: str):
        super().__init__(scope)
        self.name = name
        self.missed = False

    def __call__(self, layer: nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
        scope = self.scope
        if not torch.is_grad_enabled():
            self.missed = scope.recording
            return None
        h: Tensor = arguments[0] if arguments else keywords["input"]
        if not (scope.enabled and h.requires_grad):
            return None
        if scope.recording:
            self.missed = False
            scope.cuts.append((self.name, _feedback_of(layer), h, _version(h)))
        elif self.missed:
            # The forward ran without gradients and is now run again with them: re-entrant checkpointing of a part of
            # the model. The scope's node was made without this cut, whose input would get no error at all.
            raise RuntimeError(
                f"{self.name!r} is cut, and lies in a part that is checkpointed with use_reentrant=True, where its "
                "error can't be delivered. Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            )
        elif torch._C._current_graph_task_id() == -1:
            raise RuntimeError(
                f"{self.name!r} is cut, and is called outside the forward of the model that was converted, or after "
                "its output: the error sent there can't reach it. Call the converted model itself, or go inside "
                "torchdfa.backprop(model)."
            )
        # Within a backward pass non-re-entrant checkpointing computes activations again, for the first forward's node.
        cut = h.detach()
        return ((cut, *arguments[1:]), keywords) if arguments else ((), {**keywords, "input": cut})


class _End(_Hook):
    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        scope = self.scope
        scope.recording = False
        if not scope.cuts:
            return None
        cuts, scope.cuts = scope.cuts, []
        whole = scope.part is None
        tensor = output if whole else pick(output, scope.part)  # type: ignore[arg-type]
        served = _serve(scope, tensor, cuts)
        return served if whole else put(output, scope.part, served)  # type: ignore[arg-type]


def _serve(scope: Scope, output: Tensor, cuts: Sequence[tuple[str, Feedback, Tensor, int]]) -> Tensor:
    for name, _, h, version in cuts:
        if _version(h) != version:
            raise RuntimeError(
                f"the input of {name!r} was changed in place after the layer used it, so that the error sent to it "
                "would reach the changed value. Use the out-of-place operation there."
            )
    names = [name for name, *_ in cuts]
    if not isinstance(output, Tensor):
        raise TypeError(f"one of {names}: the output of its module is a {type(output).__name__}, expected a tensor.")
    try:
        return scope.node(output, [feedback for _, feedback, _, _ in cuts], [h for _, _, h, _ in cuts])
    except ValueError as error:
        raise ValueError(f"one of {names}: {error}") from error


class _Unrolled(_Hook):
    """The forward of a recurrent layer whose states are cut: the scope is each run of ``chunk`` steps of a layer.

    Fused kernels give no access to what happens between steps, so that the layer is run by
    :mod:`torchdfa.functional.recurrent` where a state inside a run is cut. It is the layer's ``forward`` in its
    ``__dict__``, which hooks see as any other.
    """

    def __init__(self, scope: Scope, name: str, layer: nn.Module, chunk: int | None, within: bool):
        super().__init__(scope)
        self.name, self.layer, self.chunk, self.within = name, layer, chunk, within

    def __call__(self, input: Any, hx: Any = None) -> Any:
        layer = self.layer
        if not (self.scope.enabled and torch.is_grad_enabled()):
            return type(layer).forward(layer, input, hx)
        if isinstance(layer, nn.RNNBase):
            return run_layers(layer, input, hx, self.run)
        single = input.dim() == 1
        x = input.unsqueeze(0) if single else input
        lstm = isinstance(layer, nn.LSTMCell)
        if hx is None:
            hx = (x.new_zeros(len(x), layer.hidden_size),) * (2 if lstm else 1)
        states = tuple(s.unsqueeze(0) if s.dim() == 1 else s for s in (hx if isinstance(hx, tuple) else (hx,)))
        y, cells = self.run("", x.unsqueeze(0), (states[0], states[1] if lstm else None), [1])
        h = y[0, 0] if single else y[0]
        return (h, cells[0][0] if single else cells[0]) if lstm else h

    def run(self, suffix: str, x: Tensor, state: State, stops: list[int]) -> tuple[Tensor, list[Tensor]]:
        w = weights_of(self.layer, suffix)
        feedbacks = self.layer.feedback
        assert isinstance(feedbacks, Feedbacks)
        time = feedbacks[f"time{suffix}"] if f"time{suffix}" in feedbacks else None
        inward = feedbacks[f"input{suffix}"] if f"input{suffix}" in feedbacks else None
        length, outputs, cells = self.chunk or len(x), [], []
        for begin in range(0, len(x), length):
            part = x[begin : begin + length]
            entered = part if inward is None else part.detach()
            entering = state[0]
            first = isinstance(time, TimeFeedback) and time.steps != "inner"
            if self.within:
                y, after = cut_steps(w, linear(entered, w.inward, w.inward_bias), state, first=first)
                cells += [after[stop - begin - 1] for stop in stops if after is not None and 0 < stop - begin <= len(y)]
                cell = None if after is None else after[-1]
            else:
                y, cell, inner = self.live(w, entered, (entering.detach(), state[1]), begin, stops)
                cells += inner
            cuts = []
            if inward is not None and part.requires_grad:
                cuts.append((self.name, inward, part, _version(part)))
            if isinstance(time, TimeFeedback):
                rows = {"all": (entering.unsqueeze(0), y[:-1]), "inner": (y[:-1],), "first": (entering.unsqueeze(0),)}
                states = torch.cat(rows[time.steps])
                if len(states) and states.requires_grad:
                    cuts.append((self.name, time, states, _version(states)))
            if cuts:
                y = _serve(self.scope, y, cuts)
            outputs.append(y)
            state = (y[-1], cell)
        return torch.cat(outputs), cells

    @staticmethod
    def live(
        w: Weights, x: Tensor, state: State, begin: int, stops: list[int]
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Run steps with back-propagation, in pieces that end where an LSTM's c is asked for."""
        ends = sorted({*(stop - begin for stop in stops if 0 < stop - begin < len(x)), len(x)})
        outputs, cells, cell, done = [], [], state[1], 0
        for end in ends:
            y, after = live_steps(w, x[done:end], state)
            cell = None if after is None else after[-1]
            cells += [cell] if cell is not None and begin + end in stops else []
            outputs.append(y)
            state, done = (y[-1], cell), end
        return torch.cat(outputs), cell, cells


def _version(h: Tensor) -> int:
    return 0 if torch.compiler.is_compiling() else h._version


def _feedback_of(layer: nn.Module) -> Feedback:
    feedback = layer.feedback
    assert isinstance(feedback, Feedback)
    return feedback


@dataclass(eq=False)
class Conversion:
    """What convert did to a model, kept on it for revert, backprop and summary.

    Attributes:
        rules: The rule of each layer that has parameters of its own, and of each module that is cut, by name.
        scopes: All scopes.
        frozen: Names of the parameters that were switched off.
    """

    rules: dict[str, Rule]
    scopes: list[Scope]
    frozen: tuple[str, ...]


def convert(
    model: Model,
    rule: Rule | Mapping[str, Rule],
    *,
    output: str | int | None = None,
    example: Any | None = None,
) -> Model:
    """Make ``loss.backward()`` train ``model`` by ``rule``, in place, and return it.

    Parameters, their names and the modules' types stay as they are; feedback that learns adds its own. Convert before
    making the optimizer, before wrapping the model (DDP, FSDP, ``torch.compile``) and after moving its weights to where
    they train.

    >>> import torch, torchdfa as dfa
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> model = dfa.convert(model, dfa.DFA())
    >>> model[2].feedback.dense().shape
    torch.Size([3, 8])

    Args:
        model: Any module.
        rule: One rule for the model, or a rule a pattern: shell patterns on module names, of which the first that
            matches a layer decides. Layers that none matches keep BP.
        output: What the error is taken of, where the model returns no tensor: a key, attribute or position of what
            it returns, or the name of the module that computes it. By default it is what the model returns; where
            that comes out of an activation (softmax …) on a Linear layer, that layer's output (the papers' p - y).
        example: An input like those of training: a tensor, a tuple of arguments or a dict of keyword arguments, of any
            batch size. Needed where convolutions get direct feedback, since that covers every element of their input
            map, and where the model can't be traced.

    Raises:
        ValueError: The model is converted, wrapped or lazy; a pattern matches nothing; a rule fits no layer; a layer
            can't be cut; a product does not exist. The model is then as it was.
        TypeError: ``rule`` is no rule.
    """
    try:
        return _convert(model, rule, output, example)
    except ValueError as error:
        raise type(error)(f"convert: {error}") from error


def _convert(model: Model, rule: Rule | Mapping[str, Rule], output: str | int | None, example: Any | None) -> Model:
    _refuse(model)
    rules = _assign(model, rule)
    active = [r for r in rules.values() if not isinstance(r, BP) and not r.freezes]
    if not active:
        return _install(model, rules, [])
    parts = _divide(model, rules)
    entered = [part.begin for part, r in parts if r.between == "network"]
    structure = read_structure(model, output, example, local=not any(r.wide for r in active), also=entered)
    network = Span("", structure.end, None if output == structure.end else output)
    plans = [*_plan(model, rules, structure, network), *_plan_parts(model, rules, parts, structure, network, example)]
    if not plans:
        raise ValueError(
            f"{_shown(rule)} cuts nothing in {type(model).__name__}: none of its layers lies above another one with "
            "parameters, on the way to the scope's output. The forward calls "
            f"{', '.join(map(repr, structure.order)) or 'no layer'}.{_divided(parts)}"
        )
    return _install(model, rules, plans)


def revert(model: Model) -> Model:
    """Make a converted model a plain one again, in place, weights kept, and return it.

    Raises:
        ValueError: The model is not converted.
    """
    conversion = conversion_of(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in conversion.frozen:
        parameters[name].requires_grad_(True)
    for module in model.modules():
        for hooks, flags in (
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
            (module._forward_hooks, module._forward_hooks_with_kwargs),
        ):
            for key in [k for k, hook in hooks.items() if isinstance(hook, _Hook)]:
                del hooks[key]
                flags.pop(key, None)
        if isinstance(module._modules.get("feedback"), (Feedback, Feedbacks)):
            del module._modules["feedback"]
        if isinstance(module.__dict__.get("forward"), _Unrolled):
            del module.__dict__["forward"]
    delattr(model, _MARK)
    return model


@contextmanager
def backprop(model: nn.Module) -> Iterator[None]:
    """Within it, a converted model's gradients are the true ones.

    Both the forward and the backward pass belong inside.

    Raises:
        ValueError: The model is not converted.
    """
    scopes = conversion_of(model).scopes
    before = [scope.enabled for scope in scopes]
    for scope in scopes:
        scope.enabled = False
    try:
        yield
    finally:
        for scope, enabled in zip(scopes, before, strict=True):
            scope.enabled = enabled


@contextmanager
def watching(conversion: Conversion, node: Node) -> Iterator[None]:
    """Within it, forwards call ``node(output, feedbacks, hidden)`` in place of the broadcast: to see, not to learn."""
    before = [scope.node for scope in conversion.scopes]
    for scope in conversion.scopes:
        scope.node = node
    try:
        yield
    finally:
        for scope, old in zip(conversion.scopes, before, strict=True):
            scope.node = old


def is_converted(model: nn.Module) -> bool:
    """Tell whether a model is converted."""
    return _MARK in model.__dict__


def conversion_of(model: nn.Module) -> Conversion:
    """Return what convert did to a model.

    Raises:
        ValueError: The model is not converted.
    """
    conversion = model.__dict__.get(_MARK)
    if conversion is None:
        raise ValueError(f"this {type(model).__name__} is not converted; call torchdfa.convert(model, rule) first.")
    return conversion


def cut_of(layer: nn.Module) -> tuple[Feedback, bool] | None:
    """Return the feedback at the input of a layer, and whether its scope is the layer itself and not the network.

    None where the layer's input is not cut, or is not for now, within :func:`backprop`.
    """
    hooks = layer._forward_pre_hooks.values()
    scope = next((hook.scope for hook in hooks if isinstance(hook, _Cut)), None)
    if scope is None or not scope.enabled:
        return None
    return _feedback_of(layer), any(isinstance(hook, _Begin) and hook.scope is scope for hook in hooks)


def _refuse(model: nn.Module) -> None:
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel, torch.jit.ScriptModule)
    if isinstance(model, wrappers) or hasattr(model, "_orig_mod"):
        raise ValueError(f"the model is wrapped in {type(model).__name__}; convert what is inside, then wrap it.")
    for name, module in model.named_modules():
        if _MARK in module.__dict__:
            where = f"its module {name!r}" if name else f"this {type(model).__name__}"
            raise ValueError(f"{where} is converted already; call torchdfa.revert on it first.")
        if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[arg-type]
            raise ValueError(f"{name!r} is lazy; run the model once, so that its weights have shapes.")


def _assign(model: nn.Module, rule: Rule | Mapping[str, Rule]) -> dict[str, Rule]:
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
    rules: dict[str, Rule] = {}
    for pattern, part in rule.items():
        matching = {n: m for n, m in layers.items() if _matches(n, pattern)}
        if not matching:
            raise ValueError(f"the pattern {pattern!r} matches no layer; {_listed(layers)}")
        if not any(isinstance(m, part.fits) for m in matching.values()):
            raise ValueError(f"{_shown(part)} fits none of the layers that {pattern!r} matches; {_listed(matching)}")
        for name, module in matching.items():
            rules.setdefault(name, part if isinstance(module, part.fits) else BP())
    return {name: rules.get(name, BP()) for name in layers}


@dataclass(frozen=True)
class Span:
    """A scope, before it is put on a model.

    Attributes:
        begin: Name of the module with whose forward it begins.
        end: Name of the module with whose forward it ends.
        part: The part of that module's output that the error is taken of; None for all of it.
    """

    begin: str
    end: str
    part: str | int | None = None


@dataclass(frozen=True)
class Plan:
    """A cut to be made at the input of the module ``name``, or in a recurrent one: the rule, and what serves it."""

    name: str
    rule: Rule
    feedback: Feedback | Feedbacks
    span: Span


def _plan(model: nn.Module, rules: Mapping[str, Rule], structure: Structure, network: Span) -> list[Plan]:
    """Make the feedback of every layer to cut under the rules that know layers, not modules."""
    modules = dict(model.named_modules())
    wanted = {n: r for n, r in rules.items() if not isinstance(r, BP) and not r.freezes and not r.modular}
    unseen = [name for name in wanted if name not in structure.order]
    if unseen:
        hint = (
            ""
            if structure.inputs
            else " Or pass example=x, if it lies inside a module of torch.nn, which a trace doesn't enter."
        )
        raise ValueError(
            f"{unseen[0]!r} is never called as a layer in the forward (its weights may be used by the module around "
            "it, as in nn.MultiheadAttention), so it can't be cut. Give it the rule BP: "
            f"{{{unseen[0]!r}: torchdfa.BP(), ...}}.{hint}"
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
        feedback = rule.feedback(_local_site(name, layer) if rule.local else _site(model, name, layer, structure))
        if feedback is not None:
            plans.append(Plan(name, rule, feedback, Span(name, name) if rule.local else network))
    return plans


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
    network: Span,
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
            site = _site(model, part.begin, modules[part.begin], structure)
            plans.append(Plan(part.begin, rule, rule.feedback(site), network))
        if not (rule.within or rule.between == "module"):
            continue
        span = Span(part.begin, part.end)
        for name, inner, first, inside in _layers_of(part, inputs.get(part.begin)):
            cut = rule.within if not first else rule.between == "module" and name in structure.fed
            if cut and rules.get(name) == rule:
                feedback = rule.feedback(_part_site(part, inner, modules[name], inside))
                plans.append(Plan(name, rule, feedback, span))
    return plans


def _plan_recurrent(part: Part, rule: ModuleRule, fed: bool) -> list[Plan]:
    """Make the feedbacks of a recurrent layer: to the states, and to the inputs of its layers."""
    name, layer = part.begin, part.module
    if getattr(layer, "proj_size", 0):
        raise ValueError(f"{name!r} is an LSTM with proj_size, whose states can't be cut. Give it the rule BP.")
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


def _layers_of(part: Part, given: Any | None) -> Iterator[tuple[str, str, bool, Structure]]:
    """Go through a part's layers: name, name in the part, whether no layer lies below it there, structure."""
    inside = read_structure(part.module, None, given)
    for inner in inside.order:
        if inner in inside.leading:
            yield part.name(inner), inner, inner not in inside.above, inside


def _part_site(part: Part, inner: str, layer: nn.Module, structure: Structure) -> Site:
    name = part.name(inner)
    if isinstance(layer, nn.Linear):
        return replace(_site(part.module, inner, layer, structure), name=name)
    path = part.paths.path(inner, name)

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


def _install(model: Model, rules: dict[str, Rule], plans: list[Plan]) -> Model:
    modules = dict(model.named_modules())
    for plan in plans:
        if hasattr(modules[plan.name], "feedback"):
            raise ValueError(
                f"{plan.name!r} has an attribute `feedback` of its own, the name under which convert keeps its "
                "feedback."
            )
    parameters = [
        (f"{name}.{p}".lstrip("."), value)
        for name, rule in rules.items()
        if rule.freezes
        for p, value in modules[name].named_parameters(recurse=False)
    ]
    frozen = tuple(name for name, value in parameters if value.requires_grad)
    for _, value in parameters:
        value.requires_grad_(False)
    scopes = {plan.span: Scope(plan.span.part) for plan in plans}
    unrolled = {plan.span for plan in plans if isinstance(plan.feedback, Feedbacks)}
    for span, scope in scopes.items():
        if span not in unrolled:
            modules[span.begin].register_forward_pre_hook(_Begin(scope), prepend=True)
    for plan in plans:
        module = modules[plan.name]
        module.add_module("feedback", plan.feedback)
        if isinstance(plan.feedback, Feedbacks):
            assert isinstance(plan.rule, ModuleRule)
            # An instance's attribute: what a module calls is its forward, and Module.__call__ looks there first.
            module.__dict__["forward"] = _Unrolled(
                scopes[plan.span], plan.name, module, plan.rule.chunk, plan.rule.within
            )
            continue
        module.register_forward_pre_hook(_Cut(scopes[plan.span], plan.name), with_kwargs=True)
    for span, scope in scopes.items():
        if span not in unrolled:
            modules[span.end].register_forward_hook(_End(scope))
    named = {**rules, **{plan.name: plan.rule for plan in plans}}
    ordered = {name: named[name] for name in modules if name in named}
    setattr(model, _MARK, Conversion(ordered, list(scopes.values()), frozen))
    return model


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
    shown = [f"{name!r} ({type(module).__name__})" for name, module in list(layers.items())[:20]]
    more = f" and {len(layers) - 20} more" if len(layers) > 20 else ""
    return f"there are {', '.join(shown)}{more}." if shown else "it has no layers with parameters."
