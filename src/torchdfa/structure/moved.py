"""Find out whether a model's forward moves samples to other rows: direct errors would reach the wrong ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def moved_samples(inputs: Mapping[str, Sequence[Tensor]], output: Tensor) -> dict[str, str]:
    """Return the modules whose input does not have each sample in the row that the output has it in, with what to say.

    Two gradients of the output are compared, in the second of which the error of every sample is multiplied by a factor
    of its own: what a row of an input depends on shows in its factor. Rows that several samples share, as in a graph
    network or under attention across samples, tell nothing, and are let be.

    Args:
        inputs: What modules were called with in a forward, by name; shapes (N, ...).
        output: The scope's output in that forward, shape (N, ...).
    """
    if not (output.requires_grad and output.dim() and len(output) > 1):
        return {}
    asked = [(name, h) for name, calls in inputs.items() for h in calls if h.requires_grad and h.dim()]
    error = torch.rand(output.shape, generator=torch.Generator().manual_seed(0)).to(output) + 0.5
    # Powers of two, by which a gradient is multiplied without rounding.
    factors = torch.tensor([2.0 ** (1 + i % 8) for i in range(len(output))], device=output.device)
    scaled = error * factors.to(output.dtype).view(-1, *[1] * (output.dim() - 1))
    try:
        once, again = (
            torch.autograd.grad(output, [h for _, h in asked], e, retain_graph=True, allow_unused=True)
            for e in (error, scaled)
        )
    except RuntimeError:  # something below has no derivative
        return {}
    found: dict[str, str] = {}
    for (name, _), a, b in zip(asked, once, again, strict=True):
        if a is not None and b is not None and (where := _where(a.double(), b.double(), factors.double())):
            found[name] = (
                f"at its input samples lie {where} than in the output, so that errors would "
                "reach other samples. Reorder them outside of the model"
            )
    return found


def _where(once: Tensor, again: Tensor, factors: Tensor) -> str:
    """Say where samples are, given an input's gradient without and with a factor a sample; "" for in their rows."""
    n = len(factors)

    def factors_along(dim: int) -> Tensor | None:
        """Return each row's factor along a dimension, 0 without a gradient; None where a row has no single one."""
        a, b = (t.movedim(dim, 0).flatten(1) for t in (once, again))
        size = a.square().sum(1)
        factor = (a * b).sum(1) / size.clamp(min=torch.finfo(size.dtype).tiny)
        off = (b - factor[:, None] * a).norm(dim=1)
        return None if (off > 1e-3 * b.norm(dim=1)).any() else torch.where(size > 0, factor, 0.0)

    def agrees(factor: Tensor | None) -> bool:
        return factor is not None and bool(((factor == 0) | ((factor / factors - 1).abs() < 1e-3)).all())

    along = factors_along(0) if len(once) == n else None
    if len(once) != n or agrees(along):
        return ""
    if along is not None:
        return "in other rows"
    if once.dim() > 2 and once.shape[1] == n and agrees(factors_along(1)):
        return "along another dimension"
    return ""
