"""The 8 x 8 handwritten digits that come with scikit-learn."""

from __future__ import annotations

import torch

from torchdfa.data.images import ImageSet, split
from torchdfa.data.sources import require

# The pixels count the set points of 4 x 4 blocks.
FULL = 16
TEST_SIZE = 360


def load_digits() -> tuple[ImageSet, ImageSet]:
    """Load the digits, 1,437 to train on and 360 to test on; the stratified split is always the same.

    Returns:
        Training and test images, each of shape (N, 1, 8, 8).

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    bunch = require("sklearn.datasets").load_digits()
    images = torch.from_numpy(bunch.images)[:, None].mul(255 / FULL).round().to(torch.uint8)
    labels = torch.from_numpy(bunch.target).long()
    return split(ImageSet(images, labels, tuple(str(name) for name in bunch.target_names)), TEST_SIZE, seed=0)
