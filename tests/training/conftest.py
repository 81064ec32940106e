"""Fixtures shared by the tests of torchdfa.training."""

import json

import pytest
import torch
from safetensors.torch import load_file

from torchdfa.data import load
from torchdfa.models import MLP
from torchdfa.training import TrainConfig


@pytest.fixture(scope="session")
def digits():
    return load("digits")


@pytest.fixture
def quick():
    """Make the configuration of a run of 8 steps an epoch, with dropout and augmentation."""

    def make(**settings):
        small = {"train_size": 395, "batch_size": 50, "epochs": 2, "augment": True, "precision": "32-true"}
        return TrainConfig(**({**small, "model": MLP(hidden=(16, 16), dropout=0.2)} | settings))

    return make


@pytest.fixture
def same():
    """Tell whether two models, or files of weights, are the same bit for bit."""

    def tensors(source):
        return source.state_dict() if isinstance(source, torch.nn.Module) else load_file(source)

    def compare(first, second):
        first, second = tensors(first), tensors(second)
        return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)

    return compare


@pytest.fixture
def read_json():
    return lambda path: json.loads(path.read_text())
