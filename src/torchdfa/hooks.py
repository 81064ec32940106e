"""The hooks that carry a rule out: the only file that knows how a forward is cut.

A forward pre-hook on each cut layer records its input ``h`` and hands the layer ``h.detach()``. When the scope's
forward ends, a hook passes its output through one autograd node that sends the error there to every recorded ``h``.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torchdfa.feedback import Feedback
from torchdfa.feedback.time import Feedbacks, TimeFeedback
from torchdfa.functional import broadcast
from torchdfa.functional.cut_runs import cut_runs
from torchdfa.functional.recurrent import State, Weights, live_steps, run_layers, weights_of
from torchdfa.modular import ModuleRule
from torchdfa.plans import Plan, Span
from torchdfa.structure import PartName, join, pick, put, split
from torchdfa.structure.base import input_of, with_input
from torchdfa.structure.outputs import parts

Node = Callable[[Tensor, Sequence[Feedback], Sequence[Tensor]], Tensor]


@dataclass(eq=False)
class Forward:
    """What a forward that is under way has cut in a scope.

    Attributes:
        recording: Whether one is under way whose cuts are to be served.
        cuts: The cut layers' names and feedbacks, their inputs and these inputs' versions. Empty between forwards.
        missed: Names of layers to be cut that ran without gradients, in a forward that has them.
        served: How many inputs got their error's way when it ended.
    """

    recording: bool = False
    cuts: list[tuple[str, Feedback, Tensor, int]] = field(default_factory=list)
    missed: set[str] = field(default_factory=set)
    served: int = 0


@dataclass(eq=False)
class Scope:
    """A module from whose output errors are sent.

    Attributes:
        parts: The parts of the module's output that the error is taken of; none for all of it.
        names: Of the layers whose input is cut.
        node: The autograd node, or its reference twin.
        enabled: False within :func:`backprop`.
        forwards: The forward under way, by thread: one may train a model that others evaluate.
    """

    parts: tuple[PartName, ...] = ()
    names: tuple[str, ...] = ()
    node: Node = broadcast
    enabled: bool = True
    forwards: dict[int, Forward] = field(default_factory=dict)

    @property
    def forward(self) -> Forward:
        """The forward under way in this thread."""
        thread = _thread()
        if thread not in self.forwards:
            self.forwards[thread] = Forward()
        return self.forwards[thread]

    def __getstate__(self) -> dict[str, Any]:
        # A copy made within backprop() trains by its rule, as the model itself does afterwards.
        return {**self.__dict__, "forwards": {}, "enabled": True}


def _thread() -> int:
    return threading.get_ident()


# What torch.compiler.assume_constant_result does, without importing the compiler, which takes as long as all of torch.
_thread._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _Hook:
    """Hooks are objects, since a copied or unpickled model must get hooks of its own, bound to its own scope."""

    def __init__(self, scope: Scope):
        self.scope = scope


class _Begin(_Hook):
    def __call__(self, module: nn.Module, arguments: Any) -> None:
        forward = self.scope.forward
        forward.cuts.clear()
        forward.recording = self.scope.enabled and torch.is_grad_enabled()


class _Cut(_Hook):
    def __init__(self, scope: Scope, name: str):
        super().__init__(scope)
        self.name = name

    def __call__(self, layer: nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
        scope, forward = self.scope, self.scope.forward
        if not torch.is_grad_enabled():
            if forward.recording:
                forward.missed.add(self.name)
            else:
                forward.missed.discard(self.name)
            return None
        h: Tensor = input_of(self.name, layer, arguments, keywords)
        if not (scope.enabled and h.requires_grad):
            return None
        if forward.recording:
            forward.missed.discard(self.name)
            forward.cuts.append((self.name, _feedback_of(layer), h, _version(h)))
        elif self.name in forward.missed:
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
        return with_input(layer, arguments, keywords, h.detach())


class _End(_Hook):
    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        scope, forward = self.scope, self.scope.forward
        forward.recording = False
        if not torch.compiler.is_compiling():
            forward.served = len(forward.cuts)
        if not forward.cuts:
            return None
        cuts, forward.cuts = forward.cuts, []
        if not scope.parts:
            return _serve(scope, output, cuts)
        if not torch.compiler.is_compiling():
            _warn_of_losses(output, scope.parts)
        tensors = [pick(output, part) for part in scope.parts]
        served = split(_serve(scope, join(tensors), cuts), tensors)
        for part, tensor in zip(scope.parts, served, strict=True):
            output = put(output, part, tensor)
        return output


def _warn_of_losses(output: Any, taken: Sequence[PartName]) -> None:
    """Warn of losses that a model made of its output before the error's way was tied to that."""
    for name, value in parts(output).items():
        if isinstance(value, Tensor) and not value.dim() and value.requires_grad and name not in taken:
            shown = " and ".join(map(repr, taken))
            warnings.warn(
                f"the model returns a scalar {name!r} beside {shown}, at which the error is taken. If it is a loss "
                f"made of {shown} inside the model, its gradient sends no error to the layers that are cut: make the "
                "loss outside, or pass convert the name of the module that makes that output.",
                stacklevel=2,
            )


class _Over:
    """A hook on the model, called after an exception too: nothing that was cut may be left, or be taken for served."""

    def __init__(self, scopes: Sequence[Scope]):
        self.scopes = scopes

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        left: list[str] = []
        unserved: list[str] = []
        for scope in self.scopes:
            forward = scope.forward
            left += [name for name, *_ in forward.cuts]
            if forward.served < len(scope.names) and scope.enabled:
                unserved += scope.names
            forward.recording, forward.served = False, 0
            forward.cuts.clear()
        if output is None:  # the forward failed
            return
        if left:
            raise RuntimeError(
                f"{left[0]!r} is cut, and the forward ended without the output at which its error is taken. Was a "
                "module replaced after the model was converted? Then revert and convert it again; or go inside "
                "torchdfa.backprop(model), or torch.no_grad()."
            )
        # Layers that were not called, or below which nothing learns, are looked for in vain as well, and found cut.
        if unserved and torch.is_grad_enabled() and (gone := _not_cut(module, unserved)):
            raise RuntimeError(
                f"{gone[0]!r} was cut when the model was converted, and is no longer: it was replaced, and would keep "
                "back-propagation. Revert the model and convert it again; or go inside torchdfa.backprop(model), or "
                "torch.no_grad()."
            )


def _not_cut(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return those of the layers that are no longer in the model, under whatever name: an adapter may be around one."""
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    there = {hook.name for hook in hooks if isinstance(hook, _Cut)}
    return [name for name in names if name not in there]


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
        states = tuple(s.unsqueeze(0) if s.dim() == 1 else s for s in (hx if isinstance(hx, (tuple, list)) else (hx,)))
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
        first = isinstance(time, TimeFeedback) and time.steps != "inner"
        entered = x if inward is None else x.detach()
        runs = cut_runs(w, entered, state, length) if self.within else None
        for k, (part, there) in enumerate(zip(x.split(length), entered.split(length), strict=True)):
            begin, entering = k * length, state[0]
            if runs is not None:
                y, after = runs[k](state, live=not first)
                cells += [after[stop - begin - 1] for stop in stops if after is not None and 0 < stop - begin <= len(y)]
                cell = None if after is None else after[-1]
            else:
                y, cell, inner = self.live(w, there, (entering.detach(), state[1]), begin, stops)
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


def install(model: nn.Module, plans: Sequence[Plan]) -> list[Scope]:
    """Cut a model as planned, and return its scopes.

    Raises:
        ValueError: A layer has an attribute of the name under which its feedback is kept.
    """
    modules = dict(model.named_modules())
    for plan in plans:
        if hasattr(modules[plan.name], "feedback"):
            raise ValueError(
                f"{plan.name!r} has an attribute `feedback` of its own, the name under which convert keeps its "
                "feedback."
            )
    unrolled = {plan.span for plan in plans if isinstance(plan.feedback, Feedbacks)}
    cut: dict[Span, list[str]] = {plan.span: [] for plan in plans}
    for plan in plans:
        if plan.span not in unrolled:
            cut[plan.span].append(plan.name)
    scopes = {span: Scope(span.parts, tuple(names)) for span, names in cut.items()}
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
    model.register_forward_hook(_Over(list(scopes.values())), always_call=True)
    return list(scopes.values())


def remove(model: nn.Module) -> None:
    """Take hooks and feedback off a model."""
    for module in model.modules():
        for hooks, *flags in (
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
            (module._forward_hooks, module._forward_hooks_with_kwargs, module._forward_hooks_always_called),
        ):
            for key in [k for k, hook in hooks.items() if isinstance(hook, (_Hook, _Over))]:
                del hooks[key]
                for flag in flags:
                    flag.pop(key, None)
        if isinstance(module._modules.get("feedback"), (Feedback, Feedbacks)):
            del module._modules["feedback"]
        if isinstance(module.__dict__.get("forward"), _Unrolled):
            del module.__dict__["forward"]


def cut_of(layer: nn.Module) -> tuple[Feedback, bool] | None:
    """Return the feedback at the input of a layer, and whether its scope is the layer itself and not the network.

    None where the layer's input is not cut, or is not for now, within :func:`torchdfa.backprop`.
    """
    hooks = layer._forward_pre_hooks.values()
    scope = next((hook.scope for hook in hooks if isinstance(hook, _Cut)), None)
    if scope is None or not scope.enabled:
        return None
    return _feedback_of(layer), any(isinstance(hook, _Begin) and hook.scope is scope for hook in hooks)
