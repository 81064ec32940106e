"""OpenCV's trackers, to stand beside ours in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from torchdfa.tracking.boxes import check_box
from torchdfa.tracking.frames import FrameReader

PEERS = ("CSRT", "KCF", "MIL")


class OpenCVTracker:
    """A tracker of OpenCV's, with its default settings, called as :class:`torchdfa.tracking.Tracker` is.

    Args:
        name: CSRT (Lukežič et al. 2017), KCF (Henriques et al. 2014) or MIL (Babenko et al. 2009).

    Raises:
        ValueError: There is no such tracker.
        ImportError: The installed OpenCV has it not.
    """

    def __init__(self, name: str):
        if name not in PEERS:
            raise ValueError(f"OpenCV's trackers here are {', '.join(PEERS)}; found {name!r}.")
        import cv2

        make = getattr(cv2, f"Tracker{name}_create", None)
        if make is None:
            raise ImportError(
                f"the installed OpenCV has no tracker {name}. Another of its packages hides that of "
                "opencv-contrib-python-headless: uninstall all packages opencv-*, then install that one alone."
            )
        self._make: Any = make

    def init(self, frame: Any, box: Sequence[float]) -> None:
        """Learn the target from its first frame (H, W, 3) RGB; the box is x, y, w, h."""
        self._reader = FrameReader()
        picture = self._picture(frame)
        x, y, w, h = check_box(box, picture.shape[1], picture.shape[0]).tolist()
        self._tracker = self._make()
        self._box = (x, y, w, h)
        self._tracker.init(picture, tuple(round(n) for n in self._box))

    def update(self, frame: Any) -> tuple[tuple[float, float, float, float], float]:
        """Return the box in the next frame and 1, or the box of before and -1 where the target was lost."""
        found, box = self._tracker.update(self._picture(frame))
        if found:
            x, y, w, h = (float(n) for n in box)
            self._box = (x, y, w, h)
        return self._box, 1.0 if found else -1.0

    def _picture(self, frame: Any) -> np.ndarray:
        return np.ascontiguousarray(self._reader(frame).permute(1, 2, 0).numpy()[:, :, ::-1])
