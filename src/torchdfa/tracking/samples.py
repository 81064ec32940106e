"""Drawing boxes around a target: candidates of where it may be now, and samples to learn from (Nam & Han 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torchdfa.tracking.boxes import inside, overlaps

# Rounds of drawing before fewer samples than asked for are returned: a target that fills the frame has few negatives.
_ROUNDS = 12


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How boxes are drawn around a target, or over a whole image.

    With m the mean of the target's width and height and z a random number from -1 to 1, one for each use:
    the centre moves by ``shift · m · z`` in x and in y, the size is multiplied by ``scale ** z``, width over height by
    ``aspect ** (2 z)``.

    Attributes:
        kind: What z is: ``"gaussian"``, N(0, 0.5²) cut at ±1; ``"uniform"``; ``"whole"``, uniform with centres
            anywhere in the image.
        shift: Largest shift of the centre over m.
        scale: Largest change of size.
        aspect: Largest change of each side that changes the shape.
    """

    kind: Literal["gaussian", "uniform", "whole"]
    shift: float = 0.0
    scale: float = 1.0
    aspect: float = 1.0


# Of the target, of overlap 0.7 or more: the spread is that of MDNet's public Python version.
POSITIVES = Spread(kind="gaussian", shift=0.1, scale=1.3)


def draw(box: Tensor, count: int, spread: Spread, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw ``count`` boxes around ``box`` (4,), shape (count, 4).

    Args:
        box: The target.
        count: Of boxes.
        spread: How far they lie from the target.
        size: Width and height of the image; centres outside are moved to its border.
        generator: Of the random numbers.
    """
    if spread.kind == "gaussian":
        z = torch.randn(count, 4, generator=generator).mul_(0.5).clamp_(-1, 1)
    else:
        z = torch.rand(count, 4, generator=generator).mul_(2).sub_(1)
    if spread.kind == "whole":
        centre = (z[:, :2] + 1) / 2 * torch.tensor(size)
    else:
        centre = box[:2] + box[2:] / 2 + spread.shift * box[2:].mean() * z[:, :2]
    shape = torch.stack([spread.aspect ** z[:, 3], spread.aspect ** -z[:, 3]], dim=1)
    sides = box[2:] * (spread.scale ** z[:, 2:3]) * shape
    return inside(torch.cat([centre - sides / 2, sides], dim=1), *size)


def draw_overlapping(
    box: Tensor,
    count: int,
    spread: Spread,
    size: tuple[int, int],
    generator: torch.Generator,
    *,
    above: float = 0.0,
    below: float = 1.0,
) -> Tensor:
    """Draw boxes whose overlap (IoU) with the target lies from ``above`` to ``below``.

    Returns:
        Shape (count, 4); fewer, perhaps none, where they are too rare to be found by drawing.
    """
    found = box.new_empty(0, 4)
    for _ in range(_ROUNDS):
        if len(found) >= count:
            break
        boxes = draw(box, 2 * count, spread, size, generator)
        overlap = overlaps(boxes, box)
        found = torch.cat([found, boxes[(overlap >= above) & (overlap <= below)]])
    return found[:count]
