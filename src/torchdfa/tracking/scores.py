"""One-pass evaluation, as OTB's toolkit defines it (Wu, Lim & Yang 2015)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

OVERLAPS = np.linspace(0, 1, 21)
DISTANCES = np.arange(51)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """How well boxes fit the annotated ones, over one sequence or several.

    Attributes:
        success: Share of the frames whose overlap is above each of :data:`OVERLAPS`, shape (21,).
        precision: Share of the frames whose centre is off by each of :data:`DISTANCES` pixels or less, shape (51,).
    """

    success: Array
    precision: Array

    @property
    def auc(self) -> float:
        """Mean of the success curve; 20/21 at most, for no overlap is above 1."""
        return float(self.success.mean())

    @property
    def p20(self) -> float:
        """Share of the frames whose centre is off by 20 pixels or less."""
        return float(self.precision[20])


def evaluate(boxes: ArrayLike, truth: ArrayLike) -> Score:
    """Score the boxes of one sequence.

    Args:
        boxes: Predicted, shape (T, 4): x, y, w, h. The first one is replaced by the annotated one, from which a tracker
            starts; one that is not finite or has no size by the one before it.
        truth: Annotated, shape (T, 4).

    Raises:
        ValueError: The shapes differ.
    """
    predicted, truth = np.array(boxes, dtype=float), np.asarray(truth, dtype=float)
    if predicted.shape != truth.shape or truth.ndim != 2 or truth.shape[1:] != (4,) or not len(truth):
        raise ValueError(f"evaluate: boxes {predicted.shape} and annotation {truth.shape}, expected (T, 4) both.")
    predicted[0] = truth[0]
    for i in range(1, len(predicted)):
        if not np.isfinite(predicted[i]).all() or (predicted[i, 2:] <= 0).any():
            predicted[i] = predicted[i - 1]
    overlap, distance = _overlap(predicted, truth), _distance(predicted, truth)
    return Score(
        success=(overlap[:, None] > OVERLAPS).mean(0),
        precision=(distance[:, None] <= DISTANCES).mean(0),
    )


def mean(scores: list[Score]) -> Score:
    """Average the curves of several sequences, each with the same weight."""
    return Score(
        success=np.mean([s.success for s in scores], axis=0), precision=np.mean([s.precision for s in scores], axis=0)
    )


def _overlap(a: Array, b: Array) -> Array:
    left, right = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    shared = np.prod(np.maximum(right - left, 0), axis=1)
    union = np.prod(a[:, 2:], axis=1) + np.prod(b[:, 2:], axis=1) - shared
    return np.clip(shared / (union + np.finfo(float).eps), 0, 1)


def _distance(a: Array, b: Array) -> Array:
    centres = [box[:, :2] + (box[:, 2:] - 1) / 2 for box in (a, b)]
    return np.sqrt(((centres[0] - centres[1]) ** 2).sum(1))
