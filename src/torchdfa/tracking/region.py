"""A part of a frame sent through the trunk once, from whose maps the features of any box are pooled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from torchdfa.tracking.backbones import Trunk
from torchdfa.tracking.geometry import Grid

# Points of the map that are read, bilinearly, in each direction of a cell of a pooled box.
_POINTS = 2
# Pixels of a region, at most: the whole of a large frame around a small target, enlarged, would never end.
_LARGEST = 1_500_000


@dataclass(frozen=True)
class View:
    """A rectangle of a frame, whole pixels, and the size that it is brought to.

    Attributes:
        left: Its first column, which may lie outside the frame.
        top: Its first row, likewise.
        width: In pixels of the frame.
        height: Likewise.
        columns: Of the trunk's input.
        rows: Likewise.
    """

    left: int
    top: int
    width: int
    height: int
    columns: int
    rows: int

    def cut(self, frame: Tensor, fill: tuple[float, ...]) -> Tensor:
        """Return the picture (1, 3, rows, columns) of a frame (3, H, W), uint8, filled up with the colour ``fill``."""
        _, height, width = frame.shape
        picture = (torch.tensor(fill) * 255).round().to(torch.uint8).view(3, 1, 1).repeat(1, self.height, self.width)
        top, bottom = max(self.top, 0), min(self.top + self.height, height)
        left, right = max(self.left, 0), min(self.left + self.width, width)
        if top < bottom and left < right:
            part = frame[:, top:bottom, left:right]
            picture[:, top - self.top : bottom - self.top, left - self.left : right - self.left] = part
        shrinks = self.rows < self.height or self.columns < self.width
        return F.interpolate(picture[None].float(), (self.rows, self.columns), mode="bilinear", antialias=shrinks)

    def onto(self, boxes: Tensor, grid: Grid) -> Tensor:
        """Return boxes of the frame (N, 4), xywh, as corners (N, 4) on a map, whose cell i reaches from i to i + 1."""
        scale = boxes.new_tensor([self.columns / self.width, self.rows / self.height])
        corner = (boxes[:, :2] - boxes.new_tensor([self.left, self.top])) * scale
        size = boxes[:, 2:] * scale
        first = (corner - grid.offset) / grid.stride + 0.5
        return torch.cat([first, first + size / grid.stride], dim=1)


def view_of(box: Tensor, target: int, reach: float, align: int) -> View:
    """Return the view around a box (4,) in which it measures ``target`` pixels, the root of its area.

    Args:
        box: In the frame.
        target: Pixels of the trunk's input.
        reach: From the box's centre to the view's border, over the mean of its width and height.
        align: The input's sides are multiples of this.
    """
    x, y, w, h = box.tolist()
    scale = target / math.sqrt(w * h)
    half = reach * (w + h) / 2
    return _view(x + w / 2, y + h / 2, 2 * half, 2 * half, scale, align)


def whole_view(box: Tensor, size: tuple[int, int], target: int, align: int) -> View:
    """Return the view of the whole frame at that scale, or of as much around the box as a region may hold."""
    x, y, w, h = box.tolist()
    scale = target / math.sqrt(w * h)
    width, height = size
    share = math.sqrt(_LARGEST / (width * height)) / scale
    if share >= 1:
        return _view(width / 2, height / 2, width, height, scale, align)
    width, height = width * share, height * share
    centre_x = min(max(x + w / 2, width / 2), size[0] - width / 2)
    centre_y = min(max(y + h / 2, height / 2), size[1] - height / 2)
    return _view(centre_x, centre_y, width, height, scale, align)


def _view(x: float, y: float, width: float, height: float, scale: float, align: int) -> View:
    columns, rows = (max(align, math.ceil(side * scale / align) * align) for side in (width, height))
    width, height = (max(1, round(side / scale)) for side in (columns, rows))
    return View(round(x - width / 2), round(y - height / 2), width, height, columns, rows)


class Normal:
    """Brings each channel of the trunk's maps to mean 0 and deviation 1 over the frame that it was made from."""

    def __init__(self, maps: list[Tensor]):
        self._mean = [m.mean((0, 2, 3), keepdim=True) for m in maps]
        self._scale = [1 / m.std((0, 2, 3), keepdim=True).clamp(min=1e-3) for m in maps]

    def __call__(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the maps, one a layer, each (1, C, h, w), brought to that scale."""
        return [(m - a) * b for m, a, b in zip(maps, self._mean, self._scale, strict=True)]


class Region:
    """A view of a frame and the trunk's maps of it.

    Args:
        view: What part of the frame it is.
        maps: One a layer, each (1, C, h, w).
        grids: Where their cells lie in the view's picture.
    """

    def __init__(self, view: View, maps: list[Tensor], grids: tuple[Grid, ...]):
        self.view, self.maps, self.grids = view, maps, grids

    def pool(self, boxes: Tensor, bins: int, widen: float = 1.0) -> Tensor:
        """Return the features of boxes (N, 4) of the frame, shape (N, C·bins²) with C the channels of all maps.

        Each layer's map is averaged in bins × bins cells of the box by ``roi_align``, after the box is widened about
        its centre.
        """
        # Here, since torchvision imports torch's compiler, for which no other command should wait.
        from torchvision.ops import roi_align

        size = boxes[:, 2:] * widen
        boxes = torch.cat([boxes[:, :2] + (boxes[:, 2:] - size) / 2, size], dim=1)
        pooled = [
            roi_align(m, [self.view.onto(boxes, grid)], bins, sampling_ratio=_POINTS, aligned=True).flatten(1)
            for m, grid in zip(self.maps, self.grids, strict=True)
        ]
        return torch.cat(pooled, dim=1)


def look(trunk: Trunk, frame: Tensor, view: View) -> Region:
    """Send a view of a frame (3, H, W), uint8, through the trunk."""
    with torch.inference_mode():
        maps = trunk(view.cut(frame, trunk.mean))
    return Region(view, maps, trunk.grids)
