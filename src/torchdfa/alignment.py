"""Angles between a method's gradient and the true one."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from torchdfa.convert import backprop, is_converted
from torchdfa.feedback import Feedback
from torchdfa.structure.base import call, undisturbed


def alignment(model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], x: Any, y: Any) -> dict[str, float]:
    """Return the angle, in degrees, between the gradient that ``model``'s rule gives and the true one, by parameter.

    Below 90 degrees a small step along the rule's gradient lowers the loss. A model that is not converted has angles
    of 0. Gradients, buffers (batch-norm statistics) and random state stay as they are; both gradients see the same
    dropout.

    Args:
        model: A converted model, in the mode in which the angles are wanted.
        loss_fn: ``loss_fn(model(x), y)`` is a scalar.
        x: A batch; a tuple of arguments or a dict of keyword arguments, where the model takes several.
        y: Its targets.

    Returns:
        Angles of the parameters that learn, but for those of feedback; NaN where one of the two gradients is zero.

    Raises:
        ValueError: No parameter of the model requires a gradient.
    """
    by_rule, true = both_gradients(model, loss_fn, x, y)
    return {name: angle(by_rule[name], true[name]) for name in by_rule}


Gradients = dict[str, Tensor | None]


def both_gradients(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], x: Any, y: Any
) -> tuple[Gradients, Gradients]:
    """Return the gradient that ``model``'s rule gives and the true one, by parameter; see :func:`alignment`."""
    own = {p for m in model.modules() if isinstance(m, Feedback) for p in m.parameters()}
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad and p not in own}
    if not parameters:
        raise ValueError("alignment: no parameter of the model requires a gradient.")

    def gradients() -> Gradients:
        with undisturbed(model), torch.enable_grad():
            loss = loss_fn(call(model, x), y)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        return dict(zip(parameters, found, strict=True))

    by_rule = gradients()
    with ExitStack() as stack:
        for module in model.modules():  # it may wrap a converted model, or hold one
            if is_converted(module):
                stack.enter_context(backprop(module))
        return by_rule, gradients()


def angle(a: Tensor | None, b: Tensor | None) -> float:
    """Return the angle between two tensors as vectors, in degrees; NaN if one is missing, zero or not finite."""
    if a is None or b is None:
        return math.nan
    u, v = a.detach().double().flatten(), b.detach().double().flatten()
    lengths = u.norm(), v.norm()
    if not all(0 < length.item() < math.inf for length in lengths):
        return math.nan
    u, v = u / lengths[0], v / lengths[1]
    # Kahan's formula: exact near 0 and 180 degrees, where the arc cosine loses half of its digits.
    return math.degrees(2 * math.atan2((u - v).norm().item(), (u + v).norm().item()))
