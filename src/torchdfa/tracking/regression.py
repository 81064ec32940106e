"""Box regression: from the features of a box to the box that the target has (Girshick et al. 2014, as in MDNet)."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import Ridge
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
        ridge = Ridge(alpha=alpha).fit(features.double().numpy(), wanted.double().numpy())
        self._weight = torch.from_numpy(np.ascontiguousarray(ridge.coef_)).float()
        self._bias = torch.from_numpy(np.asarray(ridge.intercept_)).float()

    def __call__(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Return the boxes (N, 4) corrected by their features (N, D)."""
        change = features @ self._weight.t() + self._bias
        size = boxes[:, 2:] * change[:, 2:].clamp(-1, 1).exp()
        centre = boxes[:, :2] + boxes[:, 2:] / 2 + boxes[:, 2:] * change[:, :2]
        return torch.cat([centre - size / 2, size], dim=1)
