"""Feedback that learns from the activation it serves and the error it carries (Kolen & Pollack 1994)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchdfa.feedback.base import Feedback
from torchdfa.feedback.conv import ConvFeedback
from torchdfa.feedback.dense import DenseFeedback


class _Learned(Feedback):
    """What feedback that learns has in common: its weight is a parameter, and it reads the activation."""

    learns = True
    weight: Tensor

    def _hold(self, weight: Tensor) -> None:
        self.weight = nn.Parameter(weight)

    def reads(self, h: Tensor, output: Tensor) -> tuple[Tensor, ...]:
        """Return the feedback's weight and the activation."""
        return self.weight, h.detach()

    def dense(self) -> Tensor:
        """Return B, in the shape in which it is kept."""
        return self.weight.detach()


class KolenPollackFeedback(_Learned, DenseFeedback):
    """A dense feedback whose gradient is ``eᵀ h``: an optimizer changes it as it changes the weights.

    With the layer itself as the scope that is the gradient of the layer's weights, and weight decay draws the two
    together (Kolen & Pollack 1994; Akrout et al. 2019). With the network as the scope the feedback grows along the
    correlation of the output's error with the activation (Webster et al. 2021).
    """

    def carry(self, e: Tensor, shape: torch.Size, *reads: Tensor) -> Tensor:
        """Return ``e @ B`` in the activation's shape."""
        return (e.reshape(-1, self.errors) @ reads[0].to(e.dtype)).reshape(shape)

    def gradient(self, e: Tensor, *reads: Tensor) -> Tensor:
        """Return ``eᵀ h``, shape (K, H)."""
        return e.reshape(-1, self.errors).T @ reads[1].reshape(-1, self.features).to(e.dtype)

    def project(self, h: Tensor, output: torch.Size | None = None) -> Tensor:
        """Return ``h @ Bᵀ``."""
        return h.reshape(-1, self.features) @ self.weight.to(h.dtype).T


class KolenPollackConvFeedback(_Learned, ConvFeedback):
    """A convolution's transpose whose kernel has the gradient of the convolution's own."""

    def carry(self, e: Tensor, shape: torch.Size, *reads: Tensor) -> Tensor:
        """Return the error at the convolution's input, of the given shape, for the error ``e`` at its output."""
        return self._transpose(e, shape, reads[0].to(e.dtype)).reshape(shape)

    def gradient(self, e: Tensor, *reads: Tensor) -> Tensor:
        """Return the gradient of the convolution's weights, in the shape of B."""
        return self.correlate(e, reads[1])
