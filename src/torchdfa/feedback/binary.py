"""Binary feedback, one bit an entry: stored, or made anew from a seed at every use (eq. 9 of Han & Yoo 2019)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from torchdfa.feedback import bits, lfsr
from torchdfa.feedback.base import Feedback
from torchdfa.ops import packed_product, seeded_product

Generator = Literal["hash", "lfsr"]
DRAW: dict[Generator, Callable[[Tensor, int, int], Tensor]] = {"hash": bits.draw, "lfsr": lfsr.draw}


class BinaryFeedback(Feedback):
    """``s · e @ B`` with ``B`` in ±1 and one scale ``s``; where the signs come from is its subclasses' matter."""

    binary = True
    scale: Tensor

    def __init__(self, errors: int, features: int, scale: Tensor, *, per_position: bool = False):
        super().__init__(errors, features, per_position=per_position)
        self.register_buffer("scale", scale)

    def packed(self) -> Tensor:
        """Return the signs as bytes (K, ceil(H / 8)), uint8, laid out as :mod:`torchdfa.feedback.bits` says."""
        raise NotImplementedError

    def signs(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the signs ±1, shape (K, H)."""
        return bits.unpack(self.packed(), self.features, dtype)

    def forward(self, e: Tensor) -> Tensor:
        """Return ``s · e @ B``, shape (N, H), for ``e`` of shape (N, K)."""
        return packed_product(e, self.packed(), self.scale, self.features)

    def dense(self) -> Tensor:
        """Return ``s · B``, shape (K, H)."""
        return self.scale * self.signs(self.scale.dtype)


class PackedFeedback(BinaryFeedback):
    """Signs stored one bit an entry.

    Args:
        positive: Where the feedback is +1, booleans (K, H).
        scale: s, 0-dimensional.
        per_position: See :class:`Feedback`.
    """

    packed_signs: Tensor

    def __init__(self, positive: Tensor, scale: Tensor, *, per_position: bool = False):
        errors, features = positive.shape
        super().__init__(errors, features, scale, per_position=per_position)
        self.register_buffer("packed_signs", bits.pack(positive))

    def packed(self) -> Tensor:
        """Return the stored bytes."""
        return self.packed_signs

    def forward(self, e: Tensor) -> Tensor:
        """Return ``s · e @ B``, shape (N, H), for ``e`` of shape (N, K)."""
        # Attributes of modules that are tensors are slow to read; at small sizes it shows.
        buffers: Any = self._buffers
        return packed_product(e, buffers["packed_signs"], buffers["scale"], self.features)


class SeededFeedback(BinaryFeedback):
    """Signs generated from a seed at every use; nothing but the seed's key and the scale is stored.

    Args:
        errors: K.
        features: H.
        key: What :func:`torchdfa.feedback.bits.key_of` made of the seed and the layer's name.
        scale: s, 0-dimensional.
        per_position: See :class:`Feedback`.
        generator: What makes the bits of the key.
    """

    key: Tensor

    def __init__(
        self,
        errors: int,
        features: int,
        key: int,
        scale: Tensor,
        *,
        per_position: bool = False,
        generator: Generator = "hash",
    ):
        super().__init__(errors, features, scale, per_position=per_position)
        self.generator: Generator = generator
        self.register_buffer("key", torch.tensor(key, device=scale.device))

    def packed(self) -> Tensor:
        """Draw the bytes anew."""
        return DRAW[self.generator](self.key, self.errors, self.features)

    def forward(self, e: Tensor) -> Tensor:
        """Return ``s · e @ B``, shape (N, H), for ``e`` of shape (N, K); hashed bits are never in memory."""
        if self.generator != "hash":
            return super().forward(e)
        buffers: Any = self._buffers
        return seeded_product(e, buffers["key"], buffers["scale"], self.features)
