"""What a step needs beside the products of :mod:`torchdfa.ops`: the biases' update, and the gradient's norm."""

from __future__ import annotations

import torch
from torch import Tensor


def update_bias(
    bias: Tensor, velocity: Tensor | None, error: Tensor, *, lr: float, momentum: float, decay: float
) -> None:
    """Take a step of SGD in place on a bias, shape (O,); its gradient is the sum of the error (N, O) over the batch."""
    gradient = error.sum(0)
    if decay:
        gradient.add_(bias, alpha=decay)
    if velocity is not None:
        gradient = velocity.mul_(momentum).add_(gradient)
    bias.sub_(gradient, alpha=lr)


def gradient_norm(errors: list[Tensor], inputs: list[Tensor], weights: list[bool], biases: list[bool]) -> Tensor:
    """Return the norm of the whole gradient from the errors and inputs of the layers, without making it.

    ``‖Δᵀ X‖² = Σ_{n,m} (Δ Δᵀ)_{nm} (X Xᵀ)_{nm}``: two N × N matrices a layer. They are made of rows over their largest
    entries, in float32 at least, so that no square overflows or vanishes.

    Args:
        errors: Δ of each layer, shape (N, O).
        inputs: X of each layer, shape (N, I).
        weights: Whether each layer's weight learns, and so counts.
        biases: Whether each layer's bias does.
    """
    total = errors[0].new_zeros((), dtype=torch.float64)
    for delta, x, weight, bias in zip(errors, inputs, weights, biases, strict=True):
        if weight:
            (first, large), (second, larger) = _gram(delta), _gram(x)
            scale = large * larger
            total += scale @ (first * second).double() @ scale
        if bias:
            total += delta.sum(0, dtype=torch.float64).square().sum()
    return total.clamp_(min=0).sqrt()


def _gram(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the products (N, N) of rows (N, D), each over its largest entry; and those entries (N,), float64."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True).clamp_(min=torch.finfo(rows.dtype).tiny)
    rows = rows / largest
    return rows @ rows.t(), largest[:, 0].double()
