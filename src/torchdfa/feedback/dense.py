"""Real-valued feedback, stored as a matrix (Nøkland 2016, eq. 6 of Han & Yoo 2019)."""

from __future__ import annotations

from torch import Tensor

from torchdfa.feedback.base import Feedback


class DenseFeedback(Feedback):
    """``e @ B`` with a stored floating-point ``B``.

    Args:
        weight: B, shape (K, H).
        per_position: See :class:`Feedback`.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, *, per_position: bool = False):
        super().__init__(*weight.shape, per_position=per_position)
        self._hold(weight)

    def _hold(self, weight: Tensor) -> None:
        self.register_buffer("weight", weight)

    def forward(self, e: Tensor) -> Tensor:
        """Return ``e @ B``, shape (N, H), for ``e`` of shape (N, K)."""
        return e @ self.weight.to(e.dtype)

    def dense(self) -> Tensor:
        """Return B, shape (K, H)."""
        return self.weight
