"""Feedback with the signs of the layer's present weights, and other magnitudes (Liao et al. 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchdfa.feedback.base import Feedback
from torchdfa.feedback.bits import draw
from torchdfa.feedback.conv import Conv, ConvFeedback, Geometry

# A weight is hashed to multiples of this, so that any update of it draws other magnitudes.
_GRAIN = 2.0**-30


class Magnitudes(nn.Module):
    """Magnitudes for the signs of a weight: equal, fixed, or drawn anew whenever the weights have changed.

    The last are a hash of the weights, so that they are the same on every rank and in a repeated forward.

    Args:
        size: Mean magnitude, 0-dimensional.
        fixed: Magnitudes of a weight's shape, mean 1; None: equal ones, or drawn ones where there is a key.
        key: Of the drawn ones, as :func:`torchdfa.feedback.bits.key_of` makes it.
    """

    size: Tensor
    fixed: Tensor | None
    key: Tensor | None

    def __init__(self, size: Tensor, fixed: Tensor | None = None, key: int | None = None):
        super().__init__()
        self.register_buffer("size", size)
        self.register_buffer("fixed", fixed)
        self.register_buffer("key", None if key is None else torch.tensor(key, device=size.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the magnitudes times the signs of ``weight``, in its shape and type."""
        signs = self.size.to(weight.dtype) * weight.sign()
        if self.fixed is not None:
            return signs * self.fixed.to(weight.dtype)
        if self.key is None:
            return signs
        grains = (weight.double() / _GRAIN).to(torch.int64).flatten()
        # Each times an odd number of its own, so that changes that cancel in a plain sum are seen too.
        mixed = self.key + grains.dot(torch.arange(1, 2 * len(grains), 2, device=weight.device))
        octets = draw(mixed, len(weight), 8 * weight[0].numel()).view(weight.shape)
        return signs * (octets.to(weight.dtype) + 0.5) / 128


class SignFeedback(Feedback):
    """``e @ (M ⊙ sign W)`` with the weight ``W`` of a Linear layer as it is in the forward.

    Args:
        layer: The Linear layer.
        magnitudes: M.
    """

    def __init__(self, layer: nn.Linear, magnitudes: Magnitudes):
        super().__init__(layer.out_features, layer.in_features, per_position=True)
        self.magnitudes = magnitudes
        self._layer = (layer,)  # in a tuple: the feedback is the layer's child, not the other way round

    def reads(self, h: Tensor, output: Tensor) -> tuple[Tensor, ...]:
        """Return the layer's weight."""
        return (self._layer[0].weight.detach(),)

    def carry(self, e: Tensor, shape: torch.Size, *reads: Tensor) -> Tensor:
        """Return the error at the layer's input."""
        return (e.reshape(-1, self.errors) @ self.magnitudes(reads[0]).to(e.dtype)).reshape(shape)

    def forward(self, e: Tensor) -> Tensor:
        """Return ``e @ B``, shape (N, H), for ``e`` of shape (N, K), with the weight as it is now."""
        return e @ self.dense().to(e.dtype)

    def dense(self) -> Tensor:
        """Return ``M ⊙ sign W``, shape (K, H), with the weight as it is now."""
        return self.magnitudes(self._layer[0].weight.detach())


class SignConvFeedback(ConvFeedback):
    """The transpose of a convolution with ``M ⊙ sign W`` for its weight ``W`` as it is in the forward.

    Args:
        layer: The convolution.
        magnitudes: M.
    """

    def __init__(self, layer: Conv, magnitudes: Magnitudes):
        super().__init__(layer.weight.detach(), Geometry.of(layer))
        self.magnitudes = magnitudes
        self._layer = (layer,)

    def _hold(self, weight: Tensor) -> None:
        """Keep nothing: the weight is the layer's."""

    def reads(self, h: Tensor, output: Tensor) -> tuple[Tensor, ...]:
        """Return the layer's weight."""
        return (self._layer[0].weight.detach(),)

    def kernel(self, dtype: torch.dtype) -> Tensor:
        """Return ``M ⊙ sign W`` with the weight as it is now."""
        return self.magnitudes(self._layer[0].weight.detach()).to(dtype)

    @property
    def kernel_dtype(self) -> torch.dtype:
        """Floating-point type of the layer's weight."""
        return self._layer[0].weight.dtype

    def carry(self, e: Tensor, shape: torch.Size, *reads: Tensor) -> Tensor:
        """Return the error at the convolution's input, of the given shape, for the error ``e`` at its output."""
        return self._transpose(e, shape, self.magnitudes(reads[0]).to(e.dtype)).reshape(shape)
