"""What people look at: the box drawn into a frame, a window that shows it, and the picking of a box by mouse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from torchdfa.tracking.frames import FrameReader

_FOUND, _LOST = (60, 220, 60), (250, 120, 20)


class NoDisplayError(RuntimeError):
    """There is no display to show a window on."""


def draw_box(frame: Any, box: Sequence[float], score: float, text: str = "") -> np.ndarray:
    """Return a frame (H, W, 3), RGB bytes, with the box and a line of text drawn into it.

    The box is green where the target was found (``score`` above 0), orange where it was not.
    """
    import cv2

    picture = np.ascontiguousarray(FrameReader()(frame).permute(1, 2, 0).numpy())
    colour = _FOUND if score > 0 else _LOST
    x, y, w, h = (round(n) for n in box)
    thick = max(1, round(picture.shape[0] / 240))
    cv2.rectangle(picture, (x, y), (x + w, y + h), colour, thick)
    if text:
        size = max(0.35, picture.shape[0] / 700)
        at = (4, round(8 + 24 * size))
        cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 3 * thick, cv2.LINE_AA)
        cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, thick, cv2.LINE_AA)
    return picture


class Window:
    """A window that shows one frame after another.

    Raises:
        NoDisplayError: There is no display.
    """

    def __init__(self, title: str):
        self._plt = _interactive("to show frames on")
        self._figure: Any = self._plt.figure(title)
        self._axes = self._figure.add_axes((0, 0, 1, 1))
        self._axes.axis("off")
        self._image: Any = None

    def show(self, frame: np.ndarray) -> bool:
        """Show a frame (H, W, 3); return whether the window is still open."""
        if not self._plt.fignum_exists(self._figure.number):
            return False
        if self._image is None:
            self._image = self._axes.imshow(frame)
        self._image.set_data(frame)
        self._figure.canvas.draw_idle()
        self._plt.pause(0.001)
        return True

    def close(self) -> None:
        """Close the window."""
        self._plt.close(self._figure)


def pick_box(frame: Any) -> tuple[float, float, float, float]:
    """Let the user draw a box around the target in a window, and return it: x, y, w, h.

    Raises:
        NoDisplayError: There is no display.
        ValueError: The window was closed without a box.
    """
    plt = _interactive("to pick one on; give it: --box x,y,w,h")
    from matplotlib.backend_bases import MouseButton
    from matplotlib.widgets import RectangleSelector

    figure, axes = plt.subplots(num="Draw a box around the target, then close the window")
    axes.imshow(FrameReader()(frame).permute(1, 2, 0).numpy())
    axes.axis("off")
    selector = RectangleSelector(axes, lambda *_: None, useblit=True, interactive=True, button=[MouseButton.LEFT])
    plt.show(block=True)
    left, right, top, bottom = selector.extents
    plt.close(figure)
    if right - left < 1 or bottom - top < 1:
        raise ValueError("no box was drawn around the target.")
    # matplotlib puts the middle of the first pixel at 0; boxes start at its border.
    return (left + 0.5, top + 0.5, right - left, bottom - top)


def _interactive(purpose: str) -> Any:
    """Return pyplot with a backend that has windows."""
    import matplotlib
    from matplotlib import pyplot as plt
    from matplotlib.backends.registry import BackendFilter, backend_registry

    windows = {name.lower() for name in backend_registry.list_builtin(BackendFilter.INTERACTIVE)}
    if matplotlib.get_backend().lower() not in windows:
        raise NoDisplayError(f"there is no display {purpose}.")
    try:
        plt.close(plt.figure())
    except Exception as error:
        raise NoDisplayError(f"there is no display {purpose} ({error}).") from error
    return plt
