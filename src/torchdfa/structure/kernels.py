"""The kernels of what leads from convolutions to the output of a part of a network, at the taps of their feedback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchdfa.feedback.conv import Geometry

if TYPE_CHECKING:
    from torchdfa.structure.path import Path, Reach

# Outputs whose kernels are composed at a time.
_CHUNK = 128


@dataclass(frozen=True)
class Wanted:
    """A convolution whose kernels are wanted: the path from its input, and the geometry at whose taps."""

    path: Path
    geometry: Geometry


def compose(path: Path, wanted: Mapping[str, Wanted], like: Tensor, most: int | None = None) -> dict[str, Tensor]:
    """Return the composed kernels of a path and of the convolutions on it, in full precision.

    The error of one output position is sent back through the transposed convolutions; what arrives at the input of
    one of them is its kernel there: eq. 7 of Han & Yoo (2019) for convolutions, of all in one pass.

    Args:
        path: From the lowest convolution.
        wanted: What is wanted of it and of others on it, by their names in the part.
        like: A tensor of the type and on the device to compute in.
        most: Compose the kernels of at most so many outputs, evenly spaced.

    Returns:
        Weights of feedback, channels block-diagonal, shape (outputs, inputs / groups, kernel...). Left out are
        convolutions that lead to outputs to which the path does not, or to less than two of those that were taken.
    """
    places = [-(-r.left // r.stride) for r in path.reach]
    starts = _starts(places, path.reach)
    size = [start + r.extent for start, r in zip(starts, path.reach, strict=True)]
    channels = path.reached.nonzero().flatten()
    channels = channels[:: 1 if most is None else -(-len(channels) // most)].to(like.device)
    kernels: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for rows in channels.split(_CHUNK):

        def note(name: str, value: Tensor, rows: Tensor = rows) -> Tensor:
            if name not in wanted:
                return value
            # Of its own: what else takes this value has another part in the error.
            own = value.view_as(value)
            own.register_hook(lambda kernel: kernels[name].append(_picked(kernel, rows, wanted[name], places)))
            return own

        with torch.enable_grad():
            x = like.new_zeros(len(rows), path.inputs, *size, requires_grad=True)
            y = path.apply(x, note)
            unit = torch.zeros_like(y)
            unit[(torch.arange(len(rows), device=y.device), rows, *places)] = 1
            torch.autograd.grad(y, x, unit)
    found = {name: torch.cat(parts) for name, parts in kernels.items() if parts}
    least = {name: w.path.outputs if most is None else min(2, w.path.outputs) for name, w in wanted.items()}
    return {name: kernel for name, kernel in found.items() if len(kernel) >= least[name]}


def _starts(places: list[int], reach: tuple[Reach, ...]) -> list[int]:
    """Return where the receptive field of an output position begins."""
    return [o * r.stride - r.left for o, r in zip(places, reach, strict=True)]


def _picked(kernel: Tensor, rows: Tensor, wanted: Wanted, places: list[int]) -> Tensor:
    """Return the taps of the kernels of those outputs to which a convolution leads."""
    path, geometry = wanted.path, wanted.geometry
    reached = path.reached.to(rows.device)
    own = reached[rows].nonzero().flatten()
    taps = _taps(kernel[own], _starts(places, path.reach), [r.extent for r in path.reach], geometry)
    rank = reached.cumsum(0)[rows[own]] - 1
    group = rank // (path.outputs // geometry.groups)
    return taps.unflatten(1, (geometry.groups, -1))[torch.arange(len(own), device=rows.device), group]


def _taps(kernel: Tensor, starts: list[int], extents: list[int], geometry: Geometry) -> Tensor:
    """Pick the taps of a geometry, centred on the composed kernel; those that lie outside it are zero."""
    whole = zip(starts, extents, geometry.kernel, geometry.dilation, geometry.extent, strict=True)
    for dim, (start, extent, taps, step, reach) in enumerate(whole, start=2):
        position = (extent - reach) // 2 + step * torch.arange(taps, device=kernel.device)
        inside = (position >= 0) & (position < extent)
        kernel = kernel.index_select(dim, start + position.clamp(0, extent - 1))
        kernel = kernel * inside.to(kernel.dtype).view(-1, *[1] * (kernel.dim() - dim - 1))
    return kernel
