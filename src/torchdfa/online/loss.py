"""The loss of a head, and its gradient at the logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class NonFiniteLossError(ArithmeticError):
    """The loss of a step, or the norm that ``clip`` needs, is infinite or no number; nothing was updated."""


def cross_entropy(logits: Tensor, y: Tensor, class_weights: Tensor | None = None) -> tuple[float, Tensor]:
    """Return the mean of softmax cross-entropy over the batch, and its gradient at the logits.

    Args:
        logits: Shape (N, K).
        y: Class indices, shape (N,).
        class_weights: A factor of the loss of each class's samples, shape (K,).

    Raises:
        ValueError: The labels are no class indices, one a sample.
    """
    if y.is_floating_point() or y.dtype == torch.bool or y.shape != logits.shape[:1]:
        raise ValueError(
            f"step: labels of shape {tuple(y.shape)} and type {y.dtype}, expected {len(logits)} class indices."
        )
    index = y.long().unsqueeze(1)
    log_p = F.log_softmax(logits, dim=1)
    try:
        picked = log_p.gather(1, index)
    except RuntimeError as error:
        low, high = (int(bound) for bound in index.aminmax())
        if 0 <= low and high < logits.shape[1]:
            raise
        raise ValueError(f"step: labels from {low} to {high}, expected 0 to {logits.shape[1] - 1}.") from error
    e = log_p.exp_().scatter_add_(1, index, picked.new_full((), -1).expand_as(picked))
    if class_weights is not None:
        weights = class_weights[index]
        picked, e = picked * weights, e * weights
    return -picked.mean().item(), e.div_(len(logits))
