"""What every feedback can do: carry the error of a scope's output to an activation that was cut."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn


class Feedback(nn.Module):
    """A linear map from the error ``e`` at a scope's output to the error at a cut activation.

    A feedback is a child of the layer whose input it serves (``layer.feedback``). What a fixed one stores are buffers:
    they are in the ``state_dict``, move with ``.to()``, and are no parameters. One that learns has a parameter.

    Attributes:
        errors: K, the number of entries of the error that one row of it reads.
        features: H, the number of entries of the activation that one row of it writes.
        per_position: Whether it serves each position (token) by itself, as a Linear layer does: then the error and
            the activation agree in all dimensions but the last. Otherwise it maps all of a sample's error to all of
            its activation.
        learns: Whether the first tensor that it reads is a parameter, for which :meth:`gradient` makes a gradient.
        binary: Whether its entries are ±1, one bit each, times one scale.
    """

    learns: ClassVar[bool] = False
    binary: ClassVar[bool] = False

    def __init__(self, errors: int, features: int, *, per_position: bool = False):
        super().__init__()
        self.errors, self.features, self.per_position = errors, features, per_position

    def forward(self, e: Tensor) -> Tensor:
        """Return ``e @ B``, shape (N, H), in the type of ``e``, for an error ``e`` of shape (N, K)."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """Return the map as a floating-point matrix ``B`` of shape (K, H), its scale included."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes that the feedback keeps in memory."""
        return sum(b.numel() * b.element_size() for b in (*self.buffers(), *self.parameters()))

    @property
    def kept(self) -> int:
        """Number of entries of ``B`` that exist, stored or generated: those of sparse feedback with their padding."""
        return self.errors * self.features

    @property
    def nbytes_float32(self) -> int:
        """Bytes that the same map takes as a dense float32 matrix, the measure that papers compare with."""
        return 4 * self.errors * self.features

    def reads(self, h: Tensor, output: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors that :meth:`carry` and :meth:`gradient` are to be given, as they are in this forward.

        Args:
            h: The cut activation, shape (N, H...).
            output: The scope's output, shape (N, ..., K).
        """
        return ()

    def carry(self, e: Tensor, shape: torch.Size, *reads: Tensor) -> Tensor:
        """Return the error at a cut activation of the given shape, for the error ``e`` of the scope's output."""
        return self(e.reshape(-1, self.errors)).reshape(shape)

    def gradient(self, e: Tensor, *reads: Tensor) -> Tensor:
        """Return the gradient of the feedback's own parameter, ``reads[0]``."""
        raise NotImplementedError

    def sent(self, e: Tensor, output: Tensor) -> Tensor:
        """Return what is carried in place of the error ``e``, both of the output's shape."""
        return e

    def project(self, h: Tensor, output: torch.Size | None = None) -> Tensor:
        """Return ``h @ Bᵀ``, the map whose transpose :meth:`carry` applies.

        Args:
            h: An activation, shape (N, H...).
            output: Shape of the scope's output, where h alone does not decide it.
        """
        return h.reshape(-1, self.features) @ self.dense().to(h.dtype).T

    def products(self, output: torch.Size, hidden: torch.Size) -> int:
        """Return the multiply-adds of carrying an error of shape ``output`` to an activation of shape ``hidden``."""
        return output.numel() * self.features

    def check(self, output: torch.Size, hidden: torch.Size) -> None:
        """Raise ValueError if an output and a cut activation of these shapes don't fit this feedback."""
        if self.per_position:
            ends = (*output[-1:], *hidden[-1:])
            fits = ends == (self.errors, self.features) and output[:-1] == hidden[:-1]
            expected = f"(..., {self.errors}) and (..., {self.features}), equal in the other dimensions"
        else:
            fits = (
                output.numel() * self.features == hidden.numel() * self.errors
                and (len(output) <= 1 or output[0] == hidden[0])
                and output[1:].numel() in (1, self.errors)
            )
            expected = f"(N, ...) with {self.errors} entries a sample and (N, ...) with {self.features}"
        if not fits:
            raise ValueError(
                f"the scope's output has shape {tuple(output)} and the cut activation {tuple(hidden)}; this feedback "
                f"expects {expected}. Convert the model with `example=` set to an input like the ones you train on, "
                "or cut fewer layers."
            )

    def extra_repr(self) -> str:
        """Show K → H and the bytes in ``print(model)``."""
        return f"{self.errors} → {self.features}, {self.nbytes} bytes"
