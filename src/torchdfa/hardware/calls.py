"""What a training step of a network does, call by call: its layers, and the errors that feedback carries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchdfa.convert import conversion_of, is_converted, watching
from torchdfa.feedback import Feedback
from torchdfa.structure import CUTTABLE
from torchdfa.structure.base import input_of


@dataclass(frozen=True)
class Layer:
    """A call of a Linear or convolution layer.

    Attributes:
        name: Of the layer.
        call: Its name, with a number from its second call on.
        rows: M: samples times positions.
        inner: K: inputs of one output.
        outputs: N, of all groups.
        groups: Of a convolution.
        input_size: Elements of its input.
        learns: Whether its weight does.
        sends: Whether an error goes from its output to its input.
        local: By feedback in place of its transposed weights.
        teaches: Whether that feedback learns.
    """

    name: str
    call: str
    rows: int
    inner: int
    outputs: int
    groups: int
    input_size: int
    learns: bool
    sends: bool
    local: bool
    teaches: bool

    @property
    def first(self) -> bool:
        """Whether it is the layer's first call."""
        return self.call == self.name


@dataclass(frozen=True)
class Sent:
    """An error that feedback carries from a module's output to an input inside it.

    Attributes:
        name: Of what is cut at its input.
        call: Its name, with a number from its second call on.
        feedback: That carries it.
        products: Of feedback weights and errors, for the whole batch.
        output_size: Elements of the output.
        hidden_size: Elements of the input.
        place: Of the first layer that runs on the input, in the order of calls.
        source: Of the layer that ran last before the output was there.
    """

    name: str
    call: str
    feedback: Feedback
    products: int
    output_size: int
    hidden_size: int
    place: int
    source: int


def teaches(feedback: nn.Module | None) -> bool:
    """Return whether a feedback is learnt: a parameter, which the optimizer updates."""
    return isinstance(feedback, Feedback) and feedback.learns and any(p.requires_grad for p in feedback.parameters())


def calls(model: nn.Module, batch: Tensor) -> tuple[list[Layer], list[Sent]]:
    """Run the model once; return its layers in the order of their calls, and the errors that feedback carries."""
    layers: list[Layer] = []
    sent: list[Sent] = []
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
            Layer(
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
                teaches=own and teaches(module._modules.get("feedback")),
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
            sent.append(Sent(name, call, feedback, products, output.numel(), h.numel(), place, len(layers) - 1))
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
