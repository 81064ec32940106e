"""Put a rule on a model and take it off again."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from torchdfa.feedback.init import NoProductError
from torchdfa.hooks import Node, Scope, install, remove
from torchdfa.plans import Plan, assign, listed, make_plans
from torchdfa.rules import Rule
from torchdfa.structure import LAYERS, PartName, undisturbed

Model = TypeVar("Model", bound=nn.Module)
_MARK = "_torchdfa"


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
    output: PartName | Sequence[PartName] | None = None,
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
            it returns, or the name of the module that computes it. Or several parts of what it returns, as of a
            network with several heads: a layer then gets the errors of those that it leads to, side by side. By default
            it is what the model returns; where that comes out of an activation (softmax …) on a Linear layer, that
            layer's output (the papers' p - y).
        example: An input like those of training: a tensor, a tuple of arguments or a dict of keyword arguments, of any
            batch size. Needed where convolutions get direct feedback, since that covers every element of their input
            map, and where the model can't be traced.

    Raises:
        ValueError: The model is converted, wrapped or lazy; a pattern matches nothing; a rule fits no layer; a layer
            can't be cut; a product does not exist. The model is then as it was.
        TypeError: ``rule`` is no rule.
    """
    try:
        _refuse(model)
        rules = assign(model, rule)
        parts = output if output is None or isinstance(output, (str, int)) else tuple(output)
        if parts == ():
            raise ValueError("output=() names no part of what the model returns.")
        with undisturbed(model):  # to read a weight under spectral_norm takes a step of its power iteration
            _warn_of_unknown(model, rule)
            plans = make_plans(model, rule, rules, parts, example)
        return _install(model, rules, plans)
    except ValueError as error:
        kind = NoProductError if isinstance(error, NoProductError) else ValueError
        raise kind(f"convert: {error}") from error


def revert(model: Model) -> Model:
    """Make a converted model a plain one again, in place, weights kept, and return it.

    Raises:
        ValueError: The model is not converted.
    """
    conversion = conversion_of(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in conversion.frozen:
        if name in parameters:  # its layer may have been replaced
            parameters[name].requires_grad_(True)
    remove(model)
    delattr(model, _MARK)
    _forget_compiled()
    return model


@contextmanager
def backprop(model: nn.Module) -> Iterator[None]:
    """Within it, a converted model's gradients are the true ones, in all threads.

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
        inside = [name for name, module in model.named_modules() if is_converted(module)]
        hint = f"; its module {inside[0]!r} is: pass that" if inside else "; call torchdfa.convert(model, rule) first"
        raise ValueError(f"this {type(model).__name__} is not converted{hint}.")
    return conversion


def _refuse(model: nn.Module) -> None:
    if isinstance(model, nn.DataParallel):
        raise ValueError(
            "the model is wrapped in DataParallel, whose threads would share what a forward records; use "
            "DistributedDataParallel: convert what is inside, then wrap it."
        )
    wrappers = (nn.parallel.DistributedDataParallel, torch.jit.ScriptModule)
    if isinstance(model, wrappers) or hasattr(model, "_orig_mod") or hasattr(model, "_forward_module"):
        raise ValueError(f"the model is wrapped in {type(model).__name__}; convert what is inside, then wrap it.")
    for name, module in model.named_modules():
        if _MARK in module.__dict__:
            where = f"its module {name!r}" if name else f"this {type(model).__name__}"
            raise ValueError(f"{where} is converted already; call torchdfa.revert on it first.")
        if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[arg-type]
            raise ValueError(f"{name!r} is lazy; run the model once, so that its weights have shapes.")


def _warn_of_unknown(model: nn.Module, rule: Rule | Mapping[str, Rule]) -> None:
    """Warn of layers with weight matrices that a rule for all layers does not know, and so does not cut."""
    if not (isinstance(rule, Rule) and nn.Conv2d in rule.chooses):
        return
    unknown = {
        name: module
        for name, module in model.named_modules()
        if not isinstance(module, (*LAYERS, nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm))
        and next(module.children(), None) is None
        and isinstance(weight := getattr(module, "weight", None), nn.Parameter)
        and weight.dim() > 1
    }
    if unknown:
        warnings.warn(
            f"{type(rule).__name__} cuts Linear and convolution layers, and does not know "
            f"{listed(unknown, 3)}: these keep back-propagation, and hand errors down to the layers below.",
            stacklevel=3,
        )


def _forget_compiled() -> None:
    """Have torch.compile compile again: code that it made before would pass the hooks by, or call those taken off."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _own_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return a module's own parameters, and what its parametrized ones are made of."""
    found = list(module.named_parameters(recurse=False))
    made = getattr(module, "parametrizations", None)
    return found + ([] if made is None else list(made.named_parameters("parametrizations")))


def _install(model: Model, rules: dict[str, Rule], plans: list[Plan]) -> Model:
    scopes = install(model, plans)
    modules = dict(model.named_modules())
    parameters = [
        (f"{name}.{p}".lstrip("."), value)
        for name, rule in rules.items()
        if rule.freezes
        for p, value in _own_parameters(modules[name])
    ]
    frozen = tuple(name for name, value in parameters if value.requires_grad)
    for _, value in parameters:
        value.requires_grad_(False)
    named = {**rules, **{plan.name: plan.rule for plan in plans}}
    ordered = {name: named[name] for name in modules if name in named}
    setattr(model, _MARK, Conversion(ordered, scopes, frozen))
    _forget_compiled()
    return model
