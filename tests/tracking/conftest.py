"""A small trunk and a folder of videos."""

import numpy as np
import pytest
import torch
from scenes import SMALL, scene
from torch import nn

from torchdfa.tracking import TrackerConfig
from torchdfa.tracking.backbones import Trunk


@pytest.fixture
def small():
    return TrackerConfig(**SMALL)


def make_trunk():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 12, 5, 2, padding=2), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, padding=1), nn.ReLU())
    return Trunk(network, ("1", "3"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(scope="session")
def trunk():
    return make_trunk()


@pytest.fixture
def otb(tmp_path):
    """A folder in OTB's format with two videos, one of two targets, and attributes of one."""
    import cv2

    root = tmp_path / "OTB"
    for name, step in (("Left", -2), ("Right", 2)):
        frames, boxes = scene([(50 + step * i, 40) for i in range(8)], seed=len(name))
        (root / name / "img").mkdir(parents=True)
        for i, frame in enumerate(frames, 1):
            cv2.imwrite(str(root / name / "img" / f"{i:04d}.jpg"), frame[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        text = "\n".join(",".join(f"{n:g}" for n in b + np.array([1, 1, 0, 0])) for b in boxes)
        (root / name / "groundtruth_rect.txt").write_text(text + "\n")
    (root / "Right" / "attrs.txt").write_text("SV, FM\n")
    return root
