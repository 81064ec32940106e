"""A slow twin of :mod:`torchdfa.functional.broadcast` in plain autograd, the oracle of the tests.

``y + hBᵀ - stop(hBᵀ)`` has the value of ``y`` (to rounding) and sends ``e @ B`` to ``h`` by ordinary differentiation.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from torchdfa.feedback.base import Feedback


def reference_broadcast(output: Tensor, feedbacks: Sequence[Feedback], hidden: Sequence[Tensor]) -> Tensor:
    """Do what :func:`torchdfa.functional.broadcast.broadcast` does, by differentiating ``hBᵀ``."""
    logits = output.detach()
    for feedback, h in zip(feedbacks, hidden, strict=True):
        through = feedback.project(h, output.shape).reshape(output.shape).to(output.dtype)
        if through.requires_grad:
            # What a feedback sends in place of the error, such as a target, is no derivative either.
            through.register_hook(lambda e, feedback=feedback: feedback.sent(e, logits))
        output = output + (through - through.detach())
    return output
