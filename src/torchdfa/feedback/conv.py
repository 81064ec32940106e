"""Feedback through a convolution's own geometry, with other weights: feedback alignment in convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import grad as conv_grad

from torchdfa.feedback.base import Feedback

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
# Their annotations say int where a tuple is taken, too.
_INPUT_ERROR: dict[int, Any] = {1: conv_grad.conv1d_input, 2: conv_grad.conv2d_input, 3: conv_grad.conv3d_input}


class ConvFeedback(Feedback):
    """The transpose of a convolution with weights ``B``: what back-propagation does, with ``B`` for the weights.

    Args:
        weight: B, shape (C_out, C_in / groups, kernel...), as the layer's weight.
        layer: The convolution whose stride, padding, padding mode, dilation and groups it takes over.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, layer: Conv):
        super().__init__(layer.out_channels, layer.in_channels)
        self.register_buffer("weight", weight)
        self.stride, self.dilation, self.groups = layer.stride, layer.dilation, layer.groups
        self.mode = layer.padding_mode
        # Pairs (left, right) a spatial dimension, first dimension first.
        pads = layer._reversed_padding_repeated_twice
        self.pads = tuple(zip(pads[-2::-2], pads[::-2], strict=True))

    def carry(self, e: Tensor, shape: torch.Size) -> Tensor:
        """Return the error at the convolution's input, of the given shape, for the error ``e`` at its output."""
        dims = len(self.pads)
        batch = e if e.dim() == dims + 2 else e.unsqueeze(0)
        symmetric = self.mode == "zeros" and all(left == right for left, right in self.pads)
        if symmetric:
            spatial, padding = list(shape[-dims:]), [left for left, _ in self.pads]
        else:
            spatial, padding = [n + sum(pads) for n, pads in zip(shape[-dims:], self.pads, strict=True)], 0
        error = _INPUT_ERROR[dims](
            [len(batch), self.features, *spatial],
            self.weight.to(e.dtype),
            batch,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        if not symmetric:
            error = _unpad(error, shape[-dims:], self.pads, self.mode)
        return error.reshape(shape)

    def check(self, output: torch.Size, hidden: torch.Size) -> None:
        """Accept every shape: the layer itself has just produced the output from this input."""

    def project(self, h: Tensor) -> Tensor:
        """Return the convolution of ``h`` with B, the map whose transpose ``carry`` applies."""
        pads = [n for pair in reversed(self.pads) for n in pair]
        h = F.pad(h, pads, mode="constant" if self.mode == "zeros" else self.mode)
        convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(self.pads)]
        return convolve(h, self.weight.to(h.dtype), None, self.stride, 0, self.dilation, self.groups)

    @property
    def nbytes_float32(self) -> int:
        """Bytes of B as float32."""
        return 4 * self.weight.numel()

    def extra_repr(self) -> str:
        """Show the kernel's shape."""
        return f"{tuple(self.weight.shape)}, {self.nbytes} bytes"


def _unpad(error: Tensor, spatial: Sequence[int], pads: Sequence[tuple[int, int]], mode: str) -> Tensor:
    """Apply the transpose of padding: every padded position hands its error to the position it was copied from."""
    first = error.dim() - len(pads)
    for dim, (n, (left, right)) in enumerate(zip(spatial, pads, strict=True), start=first):
        if mode == "zeros":
            error = error.narrow(dim, left, n)
            continue
        position = torch.arange(-left, n + right, device=error.device)
        if mode == "circular":
            source = position % n
        elif mode == "replicate":
            source = position.clamp(0, n - 1)
        else:  # reflect
            source = (n - 1) - ((n - 1) - position.abs()).abs()
        target = error.new_zeros([*error.shape[:dim], n, *error.shape[dim + 1 :]])
        error = target.index_add(dim, source, error)
    return error
