"""Boxes: tensors of shape (N, 4), each x, y, w, h in pixels; x, y is the left upper corner, the image's own is 0, 0.

Coordinates are continuous: the first pixel reaches from 0 to 1. OTB's files count from 1: their x is ours plus 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# A target narrower than this can't be told from its surroundings; samples and results are not made smaller.
SMALLEST = 3.0


class BoxError(ValueError):
    """A box has no size, is no box, or lies outside the frame."""


def overlaps(boxes: Tensor, box: Tensor) -> Tensor:
    """Return the intersection over union of each of ``boxes`` (N, 4) with ``box`` (4,), shape (N,)."""
    # Here, since torchvision imports torch's compiler, for which no other command should wait.
    from torchvision.ops import box_convert, box_iou

    return box_iou(box_convert(boxes, "xywh", "xyxy"), box_convert(box[None], "xywh", "xyxy"))[:, 0]


def check_box(box: Sequence[float], width: int, height: int) -> Tensor:
    """Return a box that a user gave as a tensor, cut at the frame's borders.

    Args:
        box: x, y, w, h.
        width: Of the frame.
        height: Of the frame.

    Raises:
        BoxError: It has not four finite numbers, no size, or less than 3 pixels of it lie in the frame.
    """
    try:
        numbers = [float(n) for n in box]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 4 or not all(math.isfinite(n) for n in numbers):
        raise BoxError(f"the box is {box!r}, expected four numbers: x, y, w, h in pixels.")
    x, y, w, h = numbers
    if w <= 0 or h <= 0:
        raise BoxError(f"the box {x:g},{y:g},{w:g},{h:g} has no size: w and h must be above 0.")
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if right - left < min(SMALLEST, w) or bottom - top < min(SMALLEST, h):
        raise BoxError(
            f"the box {x:g},{y:g},{w:g},{h:g} lies outside the frame, which is {width} wide and {height} high."
        )
    if right - left < SMALLEST or bottom - top < SMALLEST:
        raise BoxError(f"the box {x:g},{y:g},{w:g},{h:g} is too small to follow: {SMALLEST:g} pixels are needed.")
    return torch.tensor([left, top, right - left, bottom - top])


def inside(boxes: Tensor, width: int, height: int) -> Tensor:
    """Return the boxes (N, 4) with their centres in the frame and no side below 3 pixels or above the frame's."""
    size = boxes[:, 2:].clamp(min=SMALLEST).minimum(boxes.new_tensor([max(width, SMALLEST), max(height, SMALLEST)]))
    centre = (boxes[:, :2] + boxes[:, 2:] / 2).clamp(min=0).minimum(boxes.new_tensor([width, height]))
    return torch.cat([centre - size / 2, size], dim=1)
