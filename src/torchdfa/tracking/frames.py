"""Frames as the tracker takes them: any image of bytes or 16-bit words, grey or colour, as RGB bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class FrameError(ValueError):
    """A frame can't be used: its type, shape or size is wrong."""


class FrameReader:
    """Brings frames to uint8 tensors (3, H, W).

    16-bit frames are stretched linearly; the darkest and the brightest value of the first frame become 0 and 255, and
    later ones are brought to the same scale, cut at its ends. Sensors use 10, 12 or 14 of the bits, and the image says
    not which.
    """

    def __init__(self) -> None:
        self._kind: tuple[Any, int, int] | None = None
        self._range: tuple[float, float] | None = None

    def __call__(self, frame: Any) -> Tensor:
        """Return the frame as RGB bytes.

        Args:
            frame: An array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of uint8 or uint16.

        Raises:
            FrameError: It is none, or differs from the first frame in type or size.
        """
        array = np.asarray(frame)
        if array.ndim == 2:
            array = array[:, :, None]
        if array.dtype not in (np.uint8, np.uint16):
            raise FrameError(f"a frame of type {array.dtype}, expected uint8 or uint16 (H, W) or (H, W, 3).")
        if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
            shape = np.asarray(frame).shape
            raise FrameError(f"a frame of shape {shape}, expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).")
        kind = (array.dtype, *array.shape[:2])
        if self._kind is None:
            self._kind = kind
            self._range = (float(array.min()), float(array.max()))
        elif self._kind != kind:
            dtype, height, width = self._kind
            raise FrameError(
                f"a frame of {kind[2]} × {kind[1]} pixels, {kind[0]}, where the first one had {width} × {height}, "
                f"{dtype}."
            )
        array = array[:, :, :3]
        if array.dtype == np.uint16:
            assert self._range is not None
            low, high = self._range
            stretched = (array.astype(np.float32) - low) * (255 / max(high - low, 1))
            array = stretched.round().clip(0, 255).astype(np.uint8)
        if array.shape[2] == 1:
            array = array.repeat(3, axis=2)
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
