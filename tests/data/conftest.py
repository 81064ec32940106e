"""Fixtures shared by the tests of torchdfa.data."""

import os
from pathlib import Path

import pytest
import torch

from torchdfa.data import ImageSet


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_set():
    """Make a random ImageSet with the given numbers of images a class, in shuffled order."""

    def make(counts, shape=(3, 8, 8), seed=0):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        labels = labels[torch.randperm(len(labels), generator=generator)]
        images = torch.randint(0, 256, (len(labels), *shape), generator=generator, dtype=torch.uint8)
        return ImageSet(images, labels, tuple(f"class {index}" for index in range(len(counts))))

    return make


@pytest.fixture
def real_data():
    """Give the function that finds a folder of real data, or skips the test."""

    def find(folder):
        root = os.environ.get("TORCHDFA_DATA")
        if not root:
            pytest.skip("TORCHDFA_DATA is not set; it names the folder of real data")
        if not Path(root, folder).is_dir():
            pytest.skip(f"TORCHDFA_DATA holds no {folder}")
        return Path(root)

    return find
