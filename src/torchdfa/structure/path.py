"""What leads from a convolution's input to the output of the part of a network it lies in, as one convolution."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from torchdfa.feedback.conv import Channels, Geometry, Upsample
from torchdfa.structure.kernels import Wanted, compose

if TYPE_CHECKING:
    from torchdfa.structure.follow import Paths

# Outputs of which a mean is taken where the size of all kernels is asked for, and multiply-adds to spend on them.
_SAMPLE, _SAMPLED_PRODUCTS = 32, 2 * 10**10


@dataclass(frozen=True)
class Reach:
    """Which input positions one output position depends on, one spatial dimension; see :class:`Geometry`."""

    extent: int = 1
    stride: int = 1
    left: int = 0
    right: int = 0

    def through(self, kernel: int, stride: int, dilation: int, left: int, right: int) -> Reach:
        """Return the reach after one more window."""
        return Reach(
            self.extent + (kernel - 1) * dilation * self.stride,
            self.stride * stride,
            self.left + left * self.stride,
            self.right + right * self.stride,
        )

    def beside(self, other: Reach) -> Reach:
        """Return the reach of a sum of two maps."""
        left = max(self.left, other.left)
        extent = left + max(self.extent - self.left, other.extent - other.left)
        return Reach(extent, self.stride, left, extent - left + self.left + self.right - self.extent)


# How a feedback convolution is to be made, whatever it stands for: groups, dilation, upsampling.
Shape = tuple[int, int | str, Upsample]
Note = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class Path:
    """The way from a convolution's input to a part's output, with everything but convolutions and pooling ignored.

    Attributes:
        inner: Name of the convolution in the part.
        name: As messages call it.
        inputs: Channels at its input.
        reached: Which channels of the part's output it leads to, booleans; others come from beside it.
        reach: Receptive field of one output position, a spatial dimension.
        weights: Of all convolutions on the way.
        above: Names in the part of the other convolutions on the way.
        apply: Applies the composed linear map, average pooling standing for any pooling, to (N, inputs, size...). Given
            a function, it calls it with the name and the input of every convolution on the way, its own first, and
            goes on with what that returns.
        paths: Those of the part.
    """

    inner: str
    name: str
    inputs: int
    reached: Tensor
    reach: tuple[Reach, ...]
    weights: int
    above: tuple[str, ...]
    apply: Callable[[Tensor, Note], Tensor]
    paths: Paths

    @property
    def outputs(self) -> int:
        """How many channels of the part's output it leads to."""
        return int(self.reached.sum())

    def geometry(self, groups: int, dilation: int | str, upsample: Upsample) -> Geometry:
        """Return the geometry of a feedback convolution of three taps a dimension that stands for this path.

        Args:
            groups: Groups of channels.
            dilation: Between taps; ``"matched"``: that which gives the receptive field of the path.
            upsample: How strides are made up for.

        Raises:
            ValueError: The channels can't be divided into the groups.
        """
        if self.inputs % groups or self.outputs % groups:
            raise ValueError(
                f"groups={groups} at {self.name!r}: the error has {self.outputs} channels and the activation "
                f"{self.inputs}, and both must be multiples of it."
            )
        kernel = tuple(3 if r.extent > 1 else 1 for r in self.reach)
        steps = tuple(
            max(1, (r.extent - 1) // 2) if dilation == "matched" else int(dilation) if k > 1 else 1
            for r, k in zip(self.reach, kernel, strict=True)
        )
        stride = tuple(r.stride for r in self.reach)
        pads = []
        for r, k, d in zip(self.reach, kernel, steps, strict=True):
            extent = d * (k - 1) + 1
            before = (r.extent - extent) // 2
            pads.append((r.left - before, r.right - (r.extent - extent - before)))
        upsample = upsample if any(s > 1 for s in stride) else "transposed"
        return Geometry(kernel, stride, steps, tuple(pads), groups, "zeros", upsample, _spans(self.reached))

    @property
    def sample(self) -> int:
        """Outputs whose kernels tell the size of all well enough; fewer where composing one takes long."""
        products = self.weights * math.prod(r.extent for r in self.reach)
        return max(2, min(_SAMPLE, _SAMPLED_PRODUCTS // products))

    def kernels(self, shape: Shape, like: Tensor, *, sampled: bool) -> Tensor:
        """Return the composed kernels at the taps of the geometry of a shape; see :func:`.compose`.

        One pass gives also those of the convolutions above; they are kept until they are asked for.

        Args:
            shape: Arguments of :meth:`geometry`.
            like: A tensor of the type and on the device to compute in.
            sampled: Of some outputs alone, enough to tell the size of all.
        """
        ready = self.paths.ready.setdefault((shape, like.dtype, like.device, sampled), {})
        if ready.get(self.inner) is None:
            wanted = {self.inner: Wanted(self, self.geometry(*shape))}
            for name in self.above:
                # What can't be is told where it is asked for.
                with suppress(ValueError):
                    if name not in ready:
                        other = self.paths.path(name)
                        wanted[name] = Wanted(other, other.geometry(*shape))
            ready.update(compose(self, wanted, like, self.sample if sampled else None))
        found, ready[self.inner] = ready[self.inner], None
        assert found is not None
        return found


def _spans(reached: Tensor) -> Channels | None:
    """Return which channels are reached as ranges; None where all are."""
    if reached.all():
        return None
    edges = F.pad(reached.to(torch.int8), (1, 1)).diff().nonzero().flatten().tolist()
    return Channels(len(reached), tuple(zip(edges[::2], edges[1::2], strict=True)))
