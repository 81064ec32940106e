"""A slow twin of :mod:`torchdfa.functional.broadcast` in plain autograd, the oracle of the tests.

``y + hBᵀ - stop(hBᵀ)`` has the value of ``y`` (to rounding) and sends ``e @ B`` to ``h`` by ordinary differentiation.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from torchdfa.feedback.base import Feedback
from torchdfa.feedback.conv import ConvFeedback


def reference_broadcast(output: Tensor, feedbacks: Sequence[Feedback], hidden: Sequence[Tensor]) -> Tensor:
    """Do what :func:`torchdfa.functional.broadcast.broadcast` does, by differentiating ``hBᵀ``."""
    for feedback, h in zip(feedbacks, hidden, strict=True):
        if isinstance(feedback, ConvFeedback):
            through = feedback.project(h)
        else:
            through = h.reshape(-1, feedback.features) @ feedback.dense().to(h.dtype).T
        through = through.reshape(output.shape).to(output.dtype)
        output = output + (through - through.detach())
    return output
