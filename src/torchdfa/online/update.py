"""Product and SGD update in one: the gradient of a weight is never stored."""

from __future__ import annotations

import torch
from torch import Tensor

# A block of rows of the weight and of its momentum stay in the cache from the product to the update.
_BLOCK_BYTES = 2**20


def update_weight(
    weight: Tensor, velocity: Tensor | None, error: Tensor, x: Tensor, *, lr: float, momentum: float, decay: float
) -> None:
    """Do ``V = μV + λW + Δᵀ X; W = W - ηV`` in place: a step of SGD on the gradient ``Δᵀ X``, which is not stored.

    Args:
        weight: W, shape (O, I).
        velocity: V, shape (O, I); None without momentum.
        error: Δ, at the layer's sums, shape (N, O).
        x: X, the layer's input, shape (N, I).
        lr: η.
        momentum: μ.
        decay: λ.
    """
    delta = error.t()
    rows = len(weight)
    if weight.device.type == "cpu":
        rows = max(1, _BLOCK_BYTES // (weight.shape[1] * weight.element_size()))
    for begin in range(0, len(weight), rows):
        part = slice(begin, begin + rows)
        if velocity is None:
            weight[part].addmm_(delta[part], x, beta=1 - lr * decay, alpha=-lr)
            continue
        w, v = weight[part], velocity[part]
        v.addmm_(delta[part], x, beta=momentum)
        if decay:
            v.add_(w, alpha=decay)
        w.sub_(v, alpha=lr)


def update_bias(
    bias: Tensor, velocity: Tensor | None, error: Tensor, *, lr: float, momentum: float, decay: float
) -> None:
    """Do the same for a bias, shape (O,), whose gradient is the sum of the error over the batch."""
    gradient = error.sum(0)
    if decay:
        gradient.add_(bias, alpha=decay)
    if velocity is not None:
        gradient = velocity.mul_(momentum).add_(gradient)
    bias.sub_(gradient, alpha=lr)


def gradient_norm(errors: list[Tensor], inputs: list[Tensor], weights: list[bool], biases: list[bool]) -> Tensor:
    """Return the norm of the whole gradient from the errors and inputs of the layers, without making it.

    ``‖Δᵀ X‖² = Σ_{n,m} (Δ Δᵀ)_{nm} (X Xᵀ)_{nm}``: two N × N matrices a layer.

    Args:
        errors: Δ of each layer, shape (N, O).
        inputs: X of each layer, shape (N, I).
        weights: Whether each layer's weight learns, and so counts.
        biases: Whether each layer's bias does.
    """
    total = errors[0].new_zeros((), dtype=torch.float64)
    for delta, x, weight, bias in zip(errors, inputs, weights, biases, strict=True):
        if weight:
            total += ((delta @ delta.t()) * (x @ x.t())).sum(dtype=torch.float64)
        if bias:
            total += delta.sum(0).square().sum(dtype=torch.float64)
    return total.clamp_(min=0).sqrt()
