"""Videos that are drawn, and a tracker's settings for them."""

import numpy as np

# A tracker of a few milliseconds a frame.
SMALL = {
    "precision": "float32", "crop": 48, "padding": 8, "hidden": (32, 16), "examined": 128, "first_positives": 100,
    "first_negatives": 300, "first_iterations": 30, "first_lr": 5e-3, "update_lr": 5e-3, "update_positives": 20,
    "update_negatives": 60, "candidates": 128, "regression_samples": 200, "regression_alpha": 10.0,
}  # fmt: skip


def scene(places, size=(96, 128), side=20, seed=0):
    """Return frames with a patch whose left upper corners are ``places``, and its boxes."""
    rng = np.random.default_rng(seed)
    background = rng.integers(60, 120, (*size, 3), dtype=np.uint8)
    patch = np.zeros((side, side, 3), np.uint8)
    patch[:, :, 0] = np.linspace(255, 80, side)[:, None]
    patch[:, :, 1] = np.linspace(30, 240, side)[None]
    frames, boxes = [], []
    for x, y in places:
        frame = background.copy()
        x, y = round(x), round(y)
        if x > -side and y > -side:
            frame[max(y, 0) : y + side, max(x, 0) : x + side] = patch[max(-y, 0) :, max(-x, 0) :]
        frames.append(frame)
        boxes.append((x, y, side, side))
    return frames, np.array(boxes, float)
