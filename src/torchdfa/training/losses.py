"""Losses of classifiers, by name: functions of logits (N, K) and class numbers (N,); the mean or the sum."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

Loss = Callable[..., Tensor]


def binary(logits: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """Return the binary cross-entropy of a logistic unit a class, summed over classes (Nøkland 2016)."""
    total = F.binary_cross_entropy_with_logits(logits, F.one_hot(y, logits.shape[1]).to(logits.dtype), reduction="sum")
    return total / len(y) if reduction == "mean" else total


LOSSES: dict[str, Loss] = {"cross_entropy": F.cross_entropy, "binary": binary}
