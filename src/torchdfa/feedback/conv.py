"""Feedback through a convolution: the transpose of one with fixed weights, in a layer's own geometry or another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import grad as conv_grad

from torchdfa.feedback import bits
from torchdfa.feedback.base import Feedback

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
Upsample = Literal["transposed", "nearest"]
# Their annotations say int where a tuple is taken, too.
_INPUT_ERROR: dict[int, Any] = {1: conv_grad.conv1d_input, 2: conv_grad.conv2d_input, 3: conv_grad.conv3d_input}
_WEIGHT_GRADIENT: dict[int, Any] = {
    1: conv_grad.conv1d_weight,
    2: conv_grad.conv2d_weight,
    3: conv_grad.conv3d_weight,
}
_CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Channels:
    """Those channels of an error that a feedback reads.

    Attributes:
        total: Channels of the error.
        spans: Ranges of them, from and to, in order.
    """

    total: int
    spans: tuple[tuple[int, int], ...]

    def take(self, error: Tensor) -> Tensor:
        """Return these channels of an error, shape (N, C...)."""
        parts = [error[:, begin:end] for begin, end in self.spans]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def put(self, maps: Tensor, dim: int) -> Tensor:
        """Return maps of all channels, these as given and zeros for the others: the transpose of :meth:`take`."""
        places = torch.cat([torch.arange(begin, end, device=maps.device) for begin, end in self.spans])
        return maps.new_zeros([*maps.shape[:dim], self.total, *maps.shape[dim + 1 :]]).index_copy(dim, places, maps)


@dataclass(frozen=True)
class Geometry:
    """How a convolution's kernel meets its input; tuples have an entry for each spatial dimension, the first first.

    Attributes:
        kernel: Taps.
        stride: Input positions from one output position to the next.
        dilation: Input positions from one tap to the next.
        pads: Padding before and after; negative: positions left out.
        groups: Groups of channels that are convolved apart.
        mode: Of the padding, as torch names it.
        upsample: How an error of lower resolution comes up: ``"transposed"`` is the convolution's transpose, whose
            taps are ``stride`` apart; ``"nearest"`` repeats the error to the input's size first, for a convolution of
            stride 1 that keeps the size.
        channels: Those of the output that there are outputs for; None: all.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    groups: int = 1
    mode: str = "zeros"
    upsample: Upsample = "transposed"
    channels: Channels | None = None

    @classmethod
    def of(cls, layer: Conv) -> Geometry:
        """Return a layer's own geometry."""
        pads = layer._reversed_padding_repeated_twice
        pairs = tuple(zip(pads[-2::-2], pads[::-2], strict=True))
        return cls(
            tuple(layer.kernel_size),
            tuple(layer.stride),
            tuple(layer.dilation),
            pairs,
            layer.groups,
            layer.padding_mode,
        )

    @property
    def even(self) -> Geometry:
        """The geometry at stride 1 that keeps the size."""
        pads = tuple(((n - 1) // 2, n // 2) for n in self.extent)
        return replace(self, stride=(1,) * len(self.stride), pads=pads, upsample="transposed")

    @property
    def extent(self) -> tuple[int, ...]:
        """Input positions from the first tap to the last, both included."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def output(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial size of the output for an input's."""
        each = zip(size, self.pads, self.extent, self.stride, strict=True)
        return tuple((n + left + right - extent) // stride + 1 for n, (left, right), extent, stride in each)


class ConvFeedback(Feedback):
    """The transpose of a convolution with weights ``B``: what back-propagation does, with ``B`` for the weights.

    With a layer's own geometry it is feedback alignment's. With another it stands for several layers: dilated to
    their receptive field, in groups, at the stride of them all.

    Args:
        weight: B, shape (C that are read of the error, C of the activation / groups, kernel...).
        geometry: Of the convolution.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, geometry: Geometry):
        channels = geometry.channels
        super().__init__(len(weight) if channels is None else channels.total, weight.shape[1] * geometry.groups)
        self.geometry, self.rows = geometry, len(weight)
        self._hold(weight)

    def _hold(self, weight: Tensor) -> None:
        self.register_buffer("weight", weight)

    def kernel(self, dtype: torch.dtype) -> Tensor:
        """Return B, shape (C that are read of the error, C of the activation / groups, kernel...)."""
        return self.weight.to(dtype)

    def carry(self, e: Tensor, shape: torch.Size, *reads: Tensor) -> Tensor:
        """Return the error at the convolution's input, of the given shape, for the error ``e`` at its output."""
        return self._transpose(e, shape, self.kernel(e.dtype)).reshape(shape)

    def _transpose(self, e: Tensor, shape: torch.Size, kernel: Tensor) -> Tensor:
        g = self.geometry
        dims = len(g.stride)
        size = list(shape[-dims:])
        batch = e if e.dim() == dims + 2 else e.unsqueeze(0)
        batch = batch if g.channels is None else g.channels.take(batch)
        if g.upsample == "nearest":
            for dim, n in enumerate(size, start=2):
                batch = batch.index_select(dim, _sources(n, batch.shape[dim], e.device))
            g = g.even
        plain = g.mode == "zeros" and all(left == right >= 0 for left, right in g.pads)
        padded = size if plain else [n + left + right for n, (left, right) in zip(size, g.pads, strict=True)]
        if plain and g.stride == (1,) * dims and all(x > p for x, (p, _) in zip(g.extent, g.pads, strict=True)):
            # The transpose of a convolution of stride 1 is a convolution with the kernel turned round: the kind of
            # convolution that processors' libraries do best.
            turned = kernel.unflatten(0, (g.groups, -1)).transpose(1, 2).flatten(0, 1).flip(list(range(2, dims + 2)))
            padding = [x - 1 - p for x, (p, _) in zip(g.extent, g.pads, strict=True)]
            return _CONVOLVE[dims](batch, turned, None, 1, padding, g.dilation, g.groups)
        error = _INPUT_ERROR[dims](
            [len(batch), self.features, *padded],
            kernel,
            batch,
            stride=g.stride,
            padding=[left for left, _ in g.pads] if plain else 0,
            dilation=g.dilation,
            groups=g.groups,
        )
        return error if plain else _unpad(error, size, g.pads, g.mode)

    def project(self, h: Tensor, output: torch.Size | None = None) -> Tensor:
        """Return the convolution of ``h`` with B, the map whose transpose ``carry`` applies."""
        return self._convolve(h, self.kernel(h.dtype))

    def _convolve(self, h: Tensor, kernel: Tensor) -> Tensor:
        g = self.geometry
        dims = len(g.stride)
        fine, coarse = h.shape[-dims:], g.output(h.shape[-dims:])
        g = g.even if g.upsample == "nearest" else g
        h = F.pad(h, [n for pair in reversed(g.pads) for n in pair], mode="constant" if g.mode == "zeros" else g.mode)
        y = _CONVOLVE[dims](h, kernel, None, g.stride, 0, g.dilation, g.groups)
        if self.geometry.upsample == "nearest":
            for dim, (n, m) in enumerate(zip(fine, coarse, strict=True), start=y.dim() - dims):
                empty = y.new_zeros([*y.shape[:dim], m, *y.shape[dim + 1 :]])
                y = empty.index_add(dim, _sources(n, m, y.device), y)
        return y if g.channels is None else g.channels.put(y, y.dim() - dims - 1)

    def correlate(self, e: Tensor, h: Tensor) -> Tensor:
        """Return the products of an error and the activation it was made of, summed tap by tap: a gradient of B."""
        g = self.geometry
        dims = len(g.stride)
        e, h = (t if t.dim() == dims + 2 else t.unsqueeze(0) for t in (e, h))
        h = F.pad(h, [n for pair in reversed(g.pads) for n in pair], mode="constant" if g.mode == "zeros" else g.mode)
        shape = (e.shape[1], h.shape[1] // g.groups, *g.kernel)
        return _WEIGHT_GRADIENT[dims](h.to(e.dtype), shape, e, stride=g.stride, dilation=g.dilation, groups=g.groups)

    def check(self, output: torch.Size, hidden: torch.Size) -> None:
        """Raise ValueError if a map of the shape ``hidden`` does not become one of the shape ``output``."""
        dims = len(self.geometry.stride)
        whole = (*hidden[: -dims - 1], self.errors, *self.geometry.output(hidden[-dims:]))
        if tuple(output) != whole or hidden[-dims - 1] != self.features:
            raise ValueError(
                f"the scope's output has shape {tuple(output)} and the cut activation {tuple(hidden)}; this feedback "
                f"expects {self.features} channels there, and an output of {whole}."
            )

    def dense(self) -> Tensor:
        """Return B itself, the kernel: as a matrix it depends on the maps' size; see :meth:`matrix`."""
        return self.kernel(self.kernel_dtype)

    @property
    def kernel_dtype(self) -> torch.dtype:
        """Floating-point type of what is stored."""
        return self.weight.dtype

    def matrix(self, size: Sequence[int]) -> Tensor:
        """Return the map as a matrix, shape (entries of the error, entries of the activation): for small cases.

        Args:
            size: Spatial size of the activation's map.
        """
        entries = self.features * math.prod(size)
        units = torch.eye(entries, dtype=self.kernel_dtype, device=self.dense().device)
        return self.project(units.view(entries, self.features, *size)).flatten(1).T

    def products(self, output: torch.Size, hidden: torch.Size) -> int:
        """Return the multiply-adds of carrying an error of shape ``output`` to an activation of shape ``hidden``."""
        g, dims = self.geometry, len(self.geometry.stride)
        positions = hidden[-dims:] if g.upsample == "nearest" else output[-dims:]
        samples = output[: -dims - 1].numel()
        return samples * math.prod(positions) * self.rows * (self.features // g.groups) * math.prod(g.kernel)

    @property
    def kept(self) -> int:
        """Number of entries of B, the kernel."""
        return self.rows * (self.features // self.geometry.groups) * math.prod(self.geometry.kernel)

    @property
    def nbytes_float32(self) -> int:
        """Bytes of B as float32."""
        return 4 * self.kept

    def extra_repr(self) -> str:
        """Show the kernel's shape, and the geometry where it is not a layer's own."""
        shape = (self.rows, self.features // self.geometry.groups, *self.geometry.kernel)
        return f"{shape}, dilation {self.geometry.dilation}, groups {self.geometry.groups}, {self.nbytes} bytes"


class BinaryConvFeedback(ConvFeedback):
    """A convolution's transpose with weights ±1, one bit a tap, times one scale.

    Args:
        positive: Where B is +1, booleans of the shape of :class:`ConvFeedback`'s weight.
        scale: s, 0-dimensional.
        geometry: Of the convolution.
    """

    binary = True
    packed_signs: Tensor
    scale: Tensor

    def __init__(self, positive: Tensor, scale: Tensor, geometry: Geometry):
        super().__init__(positive, geometry)
        self.register_buffer("scale", scale)

    def _hold(self, weight: Tensor) -> None:
        self.register_buffer("packed_signs", bits.pack(weight.flatten(1)))

    def kernel(self, dtype: torch.dtype) -> Tensor:
        """Return s · B, shape (C that are read of the error, C of the activation / groups, kernel...)."""
        per_group, taps = self.features // self.geometry.groups, self.geometry.kernel
        signs = bits.unpack(self.packed_signs, per_group * math.prod(taps), dtype)
        return (self.scale.to(dtype) * signs).view(self.rows, per_group, *taps)

    @property
    def kernel_dtype(self) -> torch.dtype:
        """Floating-point type of the scale."""
        return self.scale.dtype


def _sources(fine: int, coarse: int, device: torch.device) -> Tensor:
    """Return, for each of ``fine`` positions, which of ``coarse`` ones lies nearest."""
    return torch.arange(fine, device=device) * coarse // fine


def _unpad(error: Tensor, spatial: Sequence[int], pads: Sequence[tuple[int, int]], mode: str) -> Tensor:
    """Apply the transpose of padding: every padded position hands its error to the position it was copied from."""
    if mode == "zeros":
        return F.pad(error, [-n for pair in reversed(pads) for n in pair])
    first = error.dim() - len(pads)
    for dim, (n, (left, right)) in enumerate(zip(spatial, pads, strict=True), start=first):
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
