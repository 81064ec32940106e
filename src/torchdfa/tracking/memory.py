"""What the tracker has seen: features of the target and of its surroundings, by the frame."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor


class Memory:
    """Features of the last frames in which the target was held.

    Args:
        positives: Frames whose samples of the target are kept.
        negatives: Frames whose samples of the background are kept.
    """

    def __init__(self, positives: int, negatives: int):
        self._positives: deque[Tensor] = deque(maxlen=positives)
        self._negatives: deque[Tensor] = deque(maxlen=negatives)

    def add(self, positives: Tensor, negatives: Tensor) -> None:
        """Add a frame's features, (P, D) and (M, D); either may be empty."""
        if len(positives):
            self._positives.append(positives)
        if len(negatives):
            self._negatives.append(negatives)

    def positives(self, frames: int | None = None) -> Tensor:
        """Return the target's features from the last ``frames`` frames, or all, shape (P, D)."""
        return torch.cat(list(self._positives)[-frames if frames else 0 :])

    def negatives(self) -> Tensor:
        """Return the background's features, shape (M, D)."""
        return torch.cat(list(self._negatives))


class Cycle:
    """Goes through samples in random order, over and over, so that each comes up as often as any other."""

    def __init__(self, count: int, generator: torch.Generator):
        self._count, self._generator = count, generator
        self._order = torch.empty(0, dtype=torch.long)

    def next(self, count: int) -> Tensor:
        """Return the indices of the next ``count`` samples."""
        while len(self._order) < count:
            self._order = torch.cat([self._order, torch.randperm(self._count, generator=self._generator)])
        chosen, self._order = self._order[:count], self._order[count:]
        return chosen
