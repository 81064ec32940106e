import hashlib
import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from torchdfa.data import DataError, load, names
from torchdfa.data.datasets import DATASETS


def test_names():
    assert set(names()) == {"digits", "cifar10", "cifar100", "tiny-imagenet100-32", "mnist", "fashion-mnist"}
    assert names() == tuple(DATASETS)


@pytest.mark.parametrize("name", ["nope", "", "CIFAR10", "/no/such/folder"])
def test_unknown_name_lists_the_known_ones(name):
    with pytest.raises(DataError, match="unknown data set") as caught:
        load(name)
    assert all(known in str(caught.value) for known in [*names(), "folder:PATH"])


def test_a_text_is_told_from_an_unknown_name():
    with pytest.raises(DataError, match=r"'tiny-shakespeare' is a text, .*load_text\('tiny-shakespeare'\)"):
        load("tiny-shakespeare")


def test_digits():
    dataset = load("digits")
    assert dataset.name == "digits"
    assert (len(dataset.train), len(dataset.test)) == (1437, 360)
    assert dataset.train.shape == (1, 8, 8) and dataset.train.classes == tuple("0123456789")
    from sklearn.datasets import load_digits

    original = load_digits()
    expected = np.round(original.images * 255 / 16).astype(np.uint8)
    assert (expected.min(), expected.max()) == (0, 255)
    read = torch.cat([dataset.train.images, dataset.test.images]).squeeze(1).numpy()
    labels = torch.cat([dataset.train.labels, dataset.test.labels]).tolist()

    def content(images, targets):
        return sorted((image.tobytes(), int(target)) for image, target in zip(images, targets, strict=True))

    assert content(read, labels) == content(expected, original.target)
    shares = torch.bincount(dataset.test.labels) / torch.bincount(torch.tensor(labels))
    assert (shares - 0.2).abs().max() < 0.006


def test_digits_split_never_changes():
    """Results on the digits are comparable only as long as everyone has the same test images."""
    test = load("digits").test
    digest = hashlib.sha256(test.images.numpy().tobytes() + test.labels.numpy().tobytes()).hexdigest()
    assert digest[:16] == "566f7b7e00f64529"


def test_image_size_applies_to_every_set():
    dataset = load("digits", image_size=16)
    assert dataset.train.shape == dataset.test.shape == (1, 16, 16)
    with pytest.raises(DataError, match="image_size must be a positive"):
        load("digits", image_size=0)


def test_missing_package_says_what_to_install(monkeypatch):
    real = importlib.import_module

    def without_sklearn(name, *arguments):
        if name.startswith("sklearn"):
            raise ModuleNotFoundError(name)
        return real(name, *arguments)

    monkeypatch.setattr("torchdfa.data.sources.importlib.import_module", without_sklearn)
    with pytest.raises(ImportError, match=r'sklearn\.datasets is needed.*pip install "torchdfa\[train\]"'):
        load("digits")


def test_import_needs_no_optional_package():
    code = "import sys\nfor name in ('sklearn', 'torchvision', 'PIL'): sys.modules[name] = None\nimport torchdfa.data\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
