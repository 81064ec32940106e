import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from torchdfa.data import DataError, load
from torchdfa.data.idx import read_idx

NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def idx(array):
    return struct.pack(f">{1 + array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_set(folder, seed=0, ending="", mark="-"):
    """Write a set's four files and return their arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    arrays = []
    for count in (12, 5):
        arrays += [generator.integers(0, 256, (count, 7, 6)), generator.integers(0, 10, count)]
    for name, array in zip(NAMES, arrays, strict=True):
        content = idx(array)
        name = name.replace("-idx", f"{mark}idx") + ending
        (folder / name).write_bytes(gzip.compress(content) if ending else content)
    return arrays


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize(
    ("name", "folder", "root"),
    [
        ("mnist", "mnist", "."),
        ("mnist", "mnist", "mnist"),
        ("mnist", "MNIST/raw", "."),
        ("mnist", "MNIST/raw", "MNIST"),
        ("mnist", "MNIST/raw", "MNIST/raw"),
        ("fashion-mnist", "fashion-mnist", "."),
        ("fashion-mnist", "fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw", "."),
    ],
)
def test_reads_every_place_and_spelling(tmp_path, ending, mark, name, folder, root):
    arrays = write_set(tmp_path / folder, ending=ending, mark=mark)
    dataset = load(name, tmp_path / root, download=False)
    read = [dataset.train.images, dataset.train.labels, dataset.test.images, dataset.test.labels]
    for array, tensor in zip(arrays, read, strict=True):
        assert np.array_equal(tensor.squeeze(1).numpy() if tensor.ndim == 4 else tensor.numpy(), array)
    assert dataset.train.shape == (1, 7, 6)
    assert dataset.train.classes[9] == {"mnist": "9", "fashion-mnist": "Ankle boot"}[name]


def test_the_two_sets_are_not_mixed_up(tmp_path):
    write_set(tmp_path / "mnist")
    with pytest.raises(DataError, match="Fashion-MNIST not found"):
        load("fashion-mnist", tmp_path, download=False)
    with pytest.raises(DataError, match="Fashion-MNIST not found"):
        load("fashion-mnist", tmp_path / "mnist", download=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-1], "41 bytes of data, expected 42"),
        (lambda content: content + b"x", "43 bytes of data, expected 42"),
        (lambda content: content[:15], "15 bytes, expected an idx header of 16"),
        (lambda content: b"", "0 bytes, expected an idx header"),
        (lambda content: b"\x00\x00\x08\x01" + content[4:], "magic number 0x00000801, expected 0x00000803"),
        (lambda content: b"\x00\x00\x0d\x03" + content[4:], "magic number 0x00000d03"),
        (lambda content: content[:4] + b"\xff" * 12 + content[16:], "its header says 4294967295"),
        (lambda content: content[:4] + bytes(4) + content[8:16], "0 bytes of data, expected 1"),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_damaged_images_are_refused(tmp_path, change, message, ending):
    path = tmp_path / f"train-images-idx3-ubyte{ending}"
    content = change(idx(np.ones((1, 7, 6))))
    path.write_bytes(gzip.compress(content) if ending else content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


def test_every_damage_to_a_gzip_stream_is_noticed(tmp_path):
    path = tmp_path / "labels.gz"
    array = np.random.default_rng(0).integers(0, 10, 300)
    whole = gzip.compress(idx(array), mtime=0)
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 16
        for content in (bytes(flipped), whole[:position]):
            path.write_bytes(content)
            try:
                read = read_idx(path, 1)
            except DataError as error:
                assert str(path) in str(error)
            else:
                # Bytes 4 to 9 of the header hold a time and a system's name, which do not matter.
                assert content == bytes(flipped) and 3 < position < 10
                assert np.array_equal(read.numpy(), array)


def test_labels_must_fit_the_images_and_classes(tmp_path):
    write_set(tmp_path / "mnist")
    path = tmp_path / "mnist" / NAMES[3]
    path.write_bytes(idx(np.zeros(4)))
    with pytest.raises(DataError, match="found 4 labels, expected 5"):
        load("mnist", tmp_path, download=False)
    path.write_bytes(idx(np.array([0, 1, 10, 3, 4])))
    with pytest.raises(
        DataError, match=r"t10k-labels-idx1-ubyte: found label 10 at image 2, expected labels in 0\.\.9"
    ):
        load("mnist", tmp_path, download=False)


@pytest.mark.parametrize("name", NAMES[1:])
def test_incomplete_folder_names_the_missing_file(tmp_path, name):
    write_set(tmp_path / "mnist")
    (tmp_path / "mnist" / name).unlink()
    with pytest.raises(DataError, match=f"{name}: found no such file"):
        load("mnist", tmp_path, download=True)


def test_download_goes_through_torchvision_and_is_kept(tmp_path, monkeypatch):
    calls = []

    def fake(root, download):
        calls.append(download)
        write_set(Path(root) / "FashionMNIST" / "raw", ending=".gz")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", fake)
    first = load("fashion-mnist", tmp_path)
    second = load("fashion-mnist", tmp_path, download=False)
    assert torch.equal(first.test.images, second.test.images)
    assert calls == [True]
    assert [entry.name for entry in tmp_path.iterdir()] == ["FashionMNIST"]


def test_real_fashion_mnist(real_data):
    dataset = load("fashion-mnist", real_data("fashion-mnist"), download=False)
    assert dataset.train.images.shape == (60_000, 1, 28, 28)
    assert torch.bincount(dataset.test.labels).tolist() == [1000] * 10
