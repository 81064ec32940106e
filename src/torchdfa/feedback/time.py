"""Feedback through time: from the errors at a run of steps to the states that enter these steps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from torchdfa.feedback.base import Feedback

Steps = Literal["all", "inner", "first"]
_ROWS = {"all": slice(None), "inner": slice(1, None), "first": slice(0, 1)}


class TimeFeedback(Feedback):
    """``Σ_{t' ≥ t} λ^(t' - t) e_t' @ B`` for the state that enters step ``t``: one matrix for all steps.

    The sums are taken first, so that the matrix is applied once, to all steps at a time.

    Args:
        matrix: Carries an error (…, K) to (…, H).
        decay: λ.
        steps: Which states there are: those that enter ``"all"`` steps, all but the first (``"inner"``), or the
            ``"first"``.
    """

    def __init__(self, matrix: Feedback, decay: float, steps: Steps):
        super().__init__(matrix.errors, matrix.features)
        self.matrix, self.decay, self.steps = matrix, decay, steps

    def _weights(self, count: int, like: Tensor) -> Tensor:
        """Return λ^(t' - t) for every state's step t and every step t' ≥ t, shape (states, steps)."""
        step = torch.arange(count, device=like.device)
        lag = (step - step.unsqueeze(1))[_ROWS[self.steps]]
        return self.decay ** lag.clamp(min=0).to(like.dtype) * (lag >= 0)

    def carry(self, e: Tensor, shape: torch.Size, *reads: Tensor) -> Tensor:
        """Return the errors at the states, shape (states, N, H), for the errors ``e`` at the steps, (T, N, K)."""
        sums = self._weights(len(e), e) @ e.flatten(1)
        return self.matrix.carry(sums.view(-1, self.errors), torch.Size((shape[:-1].numel(), self.features))).view(
            shape
        )

    def project(self, h: Tensor, output: torch.Size | None = None) -> Tensor:
        """Return the map whose transpose :meth:`carry` applies, shape (T, N, K), for states (states, N, H)."""
        through = self.matrix.project(h.reshape(-1, self.features)).view(len(h), -1)
        count = output[0] if output is not None else len(h) + (self.steps == "inner")
        return (self._weights(count, through).T @ through).view(count, *h.shape[1:-1], self.errors)

    def forward(self, e: Tensor) -> Tensor:
        """Return ``e @ B`` for one step, shape (N, H), for ``e`` of shape (N, K)."""
        return self.matrix(e)

    def dense(self) -> Tensor:
        """Return B, shape (K, H)."""
        return self.matrix.dense()

    def products(self, output: torch.Size, hidden: torch.Size) -> int:
        """Return the multiply-adds of the matrix; the sums take one more a step and entry."""
        return self.matrix.products(torch.Size((*hidden[:-1], self.errors)), hidden) + output.numel()

    def check(self, output: torch.Size, hidden: torch.Size) -> None:
        """Accept every shape: the recurrent layer itself has just made both."""

    def extra_repr(self) -> str:
        """Show which steps, and the decay."""
        return f"{self.steps} steps, decay {self.decay}"


class Feedbacks(nn.ModuleDict):
    """The feedbacks of one recurrent layer, by what they serve: ``time_l0``, ``input_l0``, ``time_l0_reverse``."""
