"""MNIST and Fashion-MNIST in the idx format, gzipped or not."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchdfa.data.errors import DataError
from torchdfa.data.images import ImageSet
from torchdfa.data.sources import damaged, download_folder, missing, places, read_bytes, require

# The magic number's third byte is the element type (8: unsigned byte), its fourth the number of dimensions.
UNSIGNED_BYTE = 0x08
# Bytes of a file, also unpacked; MNIST's largest has 47 million.
LARGEST = 1 << 30


@dataclass(frozen=True)
class Source:
    """A set in MNIST's four files.

    Attributes:
        title: Name of the set, for error messages.
        classes: Class names, in the order of the labels.
        folders: Folders that may hold the files; the last one is where a download goes.
        torchvision: Class of ``torchvision.datasets`` that knows the download.
    """

    title: str
    classes: tuple[str, ...]
    folders: tuple[str, ...]
    torchvision: str


MNIST = Source("MNIST", tuple("0123456789"), ("mnist", "MNIST/raw"), "MNIST")
FASHION_MNIST = Source(
    "Fashion-MNIST",
    (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    ("fashion-mnist", "FashionMNIST/raw"),
    "FashionMNIST",
)

_PARTS = {"train": "train", "test": "t10k"}


def load_idx(source: Source, root: Path, download: bool) -> tuple[ImageSet, ImageSet]:
    """Load the training and test images of a set in MNIST's files.

    Args:
        source: Set to load.
        root: Folder of all data.
        download: Whether to download files that are not there.

    Returns:
        Training and test images, each of shape (N, 1, H, W).

    Raises:
        DataError: If the files are missing, damaged or cannot be downloaded.
        ImportError: If a download needs torchvision and it is not installed.
    """
    searched = places(root, source.folders)
    folder = next((place for place in searched if _find(place, "train", "images")), None)
    if folder is None:
        if not download:
            hint = "Load with download=True, or put the four files there."
            raise missing(source.title, searched, "train-images-idx3-ubyte, .gz or not, and so on", hint)
        dataset = getattr(require("torchvision.datasets"), source.torchvision)
        folder = download_folder(
            source.title, root, source.folders[-1], lambda scratch: dataset(scratch, download=True)
        )
    train, test = (_read_images(folder, part, source.classes) for part in _PARTS)
    return train, test


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read an idx file of unsigned bytes.

    Args:
        path: File, gzipped if its name ends in ``.gz``.
        dimensions: Number of dimensions that it must have.

    Returns:
        Array of that many dimensions, uint8.

    Raises:
        DataError: If the file is missing, is not such an idx file or has another size than its header says.
    """
    content = read_bytes(path, LARGEST)
    if path.suffix == ".gz":
        try:
            # A few kilobytes can unpack to gigabytes: no more is unpacked than a set of this kind can hold.
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
                content = stream.read(LARGEST + 1)
        except (OSError, EOFError, zlib.error, struct.error) as error:
            raise damaged(path, f"a broken gzip stream ({error})", "a complete one") from error
        if len(content) > LARGEST:
            raise damaged(path, f"more than {LARGEST:,} bytes when unpacked", "no more")
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise damaged(path, f"{len(content)} bytes", f"an idx header of {header} bytes")
    magic, *shape = struct.unpack(f">{1 + dimensions}I", content[:header])
    if magic != UNSIGNED_BYTE << 8 | dimensions:
        expected = f"0x{UNSIGNED_BYTE << 8 | dimensions:08x} (unsigned bytes, {dimensions} dimensions)"
        raise damaged(path, f"the magic number 0x{magic:08x}", expected)
    size = math.prod(shape)
    if len(content) - header != size or size == 0:
        shown = " x ".join(str(side) for side in shape)
        raise damaged(path, f"{len(content) - header:,} bytes of data", f"{max(size, 1):,} (its header says {shown})")
    # The copy is writable, as torch wants it, and lets go of the file's content.
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())


def _read_images(folder: Path, part: str, classes: tuple[str, ...]) -> ImageSet:
    images_path, labels_path = (_existing(folder, part, kind) for kind in _KINDS)
    images = read_idx(images_path, _KINDS["images"])
    labels = read_idx(labels_path, _KINDS["labels"])
    if len(images) != len(labels):
        raise damaged(labels_path, f"{len(labels)} labels", f"{len(images)}, as many as the images of {images_path}")
    wrong = (labels >= len(classes)).nonzero().flatten()
    if len(wrong):
        position = int(wrong[0])
        found = f"label {int(labels[position])} at image {position}"
        raise damaged(labels_path, found, f"labels in 0..{len(classes) - 1}")
    return ImageSet(images[:, None], labels.long(), classes)


# Number of dimensions of each kind of file.
_KINDS = {"images": 3, "labels": 1}


def _find(folder: Path, part: str, kind: str) -> Path | None:
    """Find a file under any of the names it goes by, the unpacked one first."""
    stem = f"{_PARTS[part]}-{kind}"
    names = [f"{stem}{mark}idx{_KINDS[kind]}-ubyte{end}" for end in ("", ".gz") for mark in "-."]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _existing(folder: Path, part: str, kind: str) -> Path:
    path = _find(folder, part, kind)
    if path is None:
        name = f"{_PARTS[part]}-{kind}-idx{_KINDS[kind]}-ubyte"
        raise DataError(
            f"{folder / name}: found no such file, gzipped or not, beside the other files. The folder is incomplete: "
            "add the file, or remove the folder and load again to download it."
        )
    return path
