"""Box regression: from the features of a box to the box that the target has (Girshick et al. 2014, as in MDNet)."""

from __future__ import annotations

import torch
from torch import Tensor


class BoxRegression:
    """Ridge regression from features to (dx/w, dy/h, log w, log h), learnt in the first frame.

    Args:
        features: Of the samples, shape (N, D).
        boxes: The samples, shape (N, 4).
        target: The box that they should become, shape (4,).
        alpha: Penalty on the weights.
    """

    def __init__(self, features: Tensor, boxes: Tensor, target: Tensor, alpha: float):
        offset = (target[:2] + target[2:] / 2 - boxes[:, :2] - boxes[:, 2:] / 2) / boxes[:, 2:]
        wanted = torch.cat([offset, (target[2:] / boxes[:, 2:]).log()], dim=1)
        self._weight, self._bias = ridge(features, wanted, alpha)

    def __call__(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Return the boxes (N, 4) corrected by their features (N, D)."""
        change = features @ self._weight.t() + self._bias
        size = boxes[:, 2:] * change[:, 2:].clamp(-1, 1).exp()
        centre = boxes[:, :2] + boxes[:, 2:] / 2 + boxes[:, 2:] * change[:, :2]
        return torch.cat([centre - size / 2, size], dim=1)


def ridge(x: Tensor, y: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return W (K, D) and b (K,) that minimise ‖x Wᵀ + b - y‖² + α ‖W‖²; b is not penalised.

    It is solved in the dual, an N × N system, which is the smaller one here: ``W = Yᵀ (X Xᵀ + αI)⁻¹ X`` with X, Y less
    their means. scikit-learn's ``Ridge`` takes about six times as long.

    Args:
        x: Shape (N, D).
        y: Shape (N, K).
        alpha: Above 0.

    Raises:
        ValueError: It is too small for the system to be solved.
    """
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = (x @ x.t()).double() + alpha * torch.eye(len(x), dtype=torch.float64)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if failed:
        raise ValueError(f"regression_alpha={alpha:g} is too small for these features, or they are not finite.")
    weight = torch.cholesky_solve(y.double(), factor).t().to(x) @ x
    return weight, y_mean - weight @ x_mean
