"""Feedback of the target instead of the error (Frenkel et al. 2021)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from torchdfa.feedback.dense import DenseFeedback

Output = Literal["softmax", "sigmoid"]


class TargetFeedback(DenseFeedback):
    """``-c · y* @ B`` with the targets ``y*`` of 0 and 1, and ``c`` the weight of a sample in the loss.

    Of the error ``e = c (p - y*)``, exactly the entries of the targets are negative, and ``p`` follows from the output.
    So the targets and ``c`` are read off the error; the loss needs no other interface.

    Args:
        weight: B, shape (K, H).
        output: What the loss makes probabilities of the outputs by.
        per_position: See :class:`torchdfa.Feedback`.
    """

    def __init__(self, weight: Tensor, output: Output, *, per_position: bool = False):
        super().__init__(weight, per_position=per_position)
        self.output: Output = output

    def reads(self, h: Tensor, output: Tensor) -> tuple[Tensor, ...]:
        """Return the scope's output."""
        return (output.detach(),)

    def sent(self, e: Tensor, output: Tensor) -> Tensor:
        """Return ``-c · y*`` for the error ``e = c (p - y*)``, both of the output's shape."""
        wide, logits = e.double(), output.double()
        p = logits.softmax(-1) if self.output == "softmax" else logits.sigmoid()
        # A target that the output is sure of (by 17 in float32) has no error left after rounding; other entries have.
        target = (wide < 0) | ((wide == 0) & (p > 0.5))
        # The other entries are exact beside it, and tell the weight.
        left = wide > 0
        left = left | ~left.any(-1, keepdim=True)
        target = target.to(wide.dtype)
        gap = ((p - target).abs() * left).sum(-1, keepdim=True)
        weight = (wide.abs() * left).sum(-1, keepdim=True) / gap.clamp(min=torch.finfo(gap.dtype).tiny)
        return (-weight * target).to(e.dtype)

    def carry(self, e: Tensor, shape: torch.Size, *reads: Tensor) -> Tensor:
        """Return the error at a cut activation of the given shape."""
        return self(self.sent(e, reads[0]).reshape(-1, self.errors)).reshape(shape)
