"""CIFAR-10, CIFAR-100 and sets in their layout, in the official Python version or the binary version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from torchdfa.data.errors import DataError
from torchdfa.data.images import ImageSet
from torchdfa.data.pickles import PickledArray, read_pickle
from torchdfa.data.sources import damaged, download_folder, missing, places, read_bytes, require

SHAPE = (3, 32, 32)
PIXELS = 3072
# More than class names ever take; a file that claims to hold them and is larger is not read.
_NAMES_BYTES = 1 << 24


class Version(Protocol):
    """One of the forms in which a set is published: the names of its files and how to read them."""

    @property
    def folder(self) -> str:
        """Folder that holds the files."""
        ...

    @property
    def train(self) -> tuple[str, ...]:
        """Files of training images."""
        ...

    @property
    def test(self) -> tuple[str, ...]:
        """Files of test images."""
        ...

    @property
    def names(self) -> str:
        """File of class names."""
        ...

    def read_names(self, path: Path) -> tuple[str, ...]:
        """Read the class names."""
        ...

    def read_records(self, path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Read pixels (count, 3072), uint8, and labels (count,), integer."""
        ...


@dataclass(frozen=True)
class Binary:
    """The binary version: records of label bytes and 3,072 pixel bytes, and class names one a line.

    Attributes:
        folder: Folder that holds the files.
        train: Files of training images.
        test: Files of test images.
        names: File of class names.
        label_bytes: Label bytes before a record's pixels; the last of them is the class.
    """

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    label_bytes: int

    def read_names(self, path: Path) -> tuple[str, ...]:
        """Read the class names, one a line; blank lines do not count.

        Raises:
            DataError: If the file is missing or is not text.
        """
        try:
            lines = read_bytes(path, _NAMES_BYTES).decode().splitlines()
        except UnicodeDecodeError as error:
            raise damaged(path, f"bytes that are not UTF-8 text ({error.reason})", "class names, one a line") from error
        return tuple(line.strip() for line in lines if line.strip())

    def read_records(self, path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Read pixels (count, 3072), uint8, and labels (count,), uint8.

        Raises:
            DataError: If the file is missing or has another number of bytes.
        """
        record = self.label_bytes + PIXELS
        content = np.frombuffer(read_bytes(path, 2 * count * record), np.uint8)
        if len(content) != count * record:
            expected = f"{count * record:,} bytes ({count:,} records of {record:,})"
            raise damaged(path, f"{len(content):,} bytes", expected)
        records = content.reshape(count, record)
        return records[:, self.label_bytes :], records[:, self.label_bytes - 1]


@dataclass(frozen=True)
class Pickled:
    """The Python version: pickled dictionaries, read without the power to run code.

    Attributes:
        folder: Folder that holds the files.
        train: Files of training images.
        test: Files of test images.
        names: File of class names.
        label_key: Key of the list of labels.
        names_key: Key of the list of class names.
    """

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    label_key: str
    names_key: str

    def read_names(self, path: Path) -> tuple[str, ...]:
        """Read the class names.

        Raises:
            DataError: If the file is missing, broken or refused.
        """
        names = _entry(path, read_pickle(path, _NAMES_BYTES), self.names_key)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise damaged(path, f"{self.names_key!r} that is no list of names", "a list of class names")
        return tuple(names)

    def read_records(self, path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Read pixels (count, 3072), uint8, and labels (count,), int64.

        Raises:
            DataError: If the file is missing, broken, refused or has another number of images.
        """
        # Bytes written as text take two for one; beside them are labels and file names.
        content = read_pickle(path, 3 * count * PIXELS + _NAMES_BYTES)
        pixels, labels = _entry(path, content, "data"), _entry(path, content, self.label_key)
        if not isinstance(pixels, PickledArray) or pixels.shape != (count, PIXELS):
            found = f"shape {pixels.shape}" if isinstance(pixels, PickledArray) else type(pixels).__name__
            raise damaged(path, f"'data' of {found}", f"a uint8 array of shape ({count}, {PIXELS})")
        if not isinstance(labels, list) or len(labels) != count or not all(type(label) is int for label in labels):
            raise damaged(
                path, f"{self.label_key!r} that is no list of {count:,} integers", f"{count:,} integer labels"
            )
        try:
            return pixels.array(), np.array(labels, dtype=np.int64)
        except OverflowError as error:
            raise damaged(path, "a label beyond 64 bits", "class indices") from error


@dataclass(frozen=True)
class Layout:
    """A set of 32 x 32 colour images in the CIFAR layout.

    Attributes:
        title: Name of the set, for error messages.
        classes: Number of classes.
        train_count: Images in all training files together.
        test_count: Images in all test files together.
        versions: Forms in which the set is published, the preferred one first.
        torchvision: Class of ``torchvision.datasets`` that knows the download, or None if there is none; what it
            downloads is the first version.
        hint: Where the files come from.
    """

    title: str
    classes: int
    train_count: int
    test_count: int
    versions: tuple[Version, ...]
    torchvision: str | None
    hint: str


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_HUNDRED_BINARY = ("train.bin",), ("test.bin",), "fine_label_names.txt", 2

CIFAR10 = Layout(
    title="CIFAR-10",
    classes=10,
    train_count=50_000,
    test_count=10_000,
    versions=(
        Pickled("cifar-10-batches-py", _BATCHES, ("test_batch",), "batches.meta", "labels", "label_names"),
        Binary(
            "cifar-10-batches-bin",
            tuple(f"{name}.bin" for name in _BATCHES),
            ("test_batch.bin",),
            "batches.meta.txt",
            label_bytes=1,
        ),
    ),
    torchvision="CIFAR10",
    hint="Load with download=True, or unpack the Python or the binary version from "
    "https://www.cs.toronto.edu/~kriz/cifar.html.",
)
CIFAR100 = Layout(
    title="CIFAR-100",
    classes=100,
    train_count=50_000,
    test_count=10_000,
    versions=(
        Pickled("cifar-100-python", ("train",), ("test",), "meta", "fine_labels", "fine_label_names"),
        Binary("cifar-100-binary", *_HUNDRED_BINARY),
    ),
    torchvision="CIFAR100",
    hint="Load with download=True, or unpack the Python or the binary version from "
    "https://www.cs.toronto.edu/~kriz/cifar.html.",
)
TINY_IMAGENET100_32 = Layout(
    title="Tiny-ImageNet, 100 classes at 32 x 32",
    classes=100,
    train_count=50_000,
    test_count=5_000,
    versions=(Binary("tiny-imagenet100-32", *_HUNDRED_BINARY),),
    torchvision=None,
    hint="It has no download: make the files from 100 classes of Tiny-ImageNet, in CIFAR-100's binary layout.",
)


def load_cifar(layout: Layout, root: Path, download: bool) -> tuple[ImageSet, ImageSet]:
    """Load the training and test images of a set in the CIFAR layout.

    Args:
        layout: Set to load.
        root: Folder of all data.
        download: Whether to download files that are not there.

    Returns:
        Training and test images, each of shape (N, 3, 32, 32).

    Raises:
        DataError: If the files are missing, damaged, refused or cannot be downloaded.
        ImportError: If a download needs torchvision and it is not installed.
    """
    candidates = [(version, folder) for version in layout.versions for folder in places(root, [version.folder])]
    version, folder = next(
        ((version, folder) for version, folder in candidates if folder.is_dir()), (layout.versions[0], None)
    )
    if folder is None:
        if not download or layout.torchvision is None:
            expected = " or ".join(f"{version.train[0]} and so on" for version in layout.versions)
            raise missing(layout.title, [folder for _, folder in candidates], expected, layout.hint)
        folder = download_folder(layout.title, root, version.folder, _downloader(layout.torchvision))
    names = version.read_names(folder / version.names)
    if len(names) != layout.classes:
        raise damaged(folder / version.names, f"{len(names)} class names", f"{layout.classes}")
    return (
        _read_images(version, folder, version.train, layout.train_count, names),
        _read_images(version, folder, version.test, layout.test_count, names),
    )


def _read_images(
    version: Version, folder: Path, files: tuple[str, ...], total: int, names: tuple[str, ...]
) -> ImageSet:
    count = total // len(files)
    images = np.empty((len(files), count, PIXELS), np.uint8)
    labels = np.empty((len(files), count), np.int64)
    for index, file in enumerate(files):
        images[index], labels[index] = version.read_records(folder / file, count)
        wrong = np.flatnonzero((labels[index] < 0) | (labels[index] >= len(names)))
        if len(wrong):
            found = f"label {labels[index][wrong[0]]} at image {wrong[0]}"
            raise damaged(folder / file, found, f"labels in 0..{len(names) - 1}")
    return ImageSet(torch.from_numpy(images).view(-1, *SHAPE), torch.from_numpy(labels).view(-1), names)


def _downloader(name: str) -> Callable[[str], object]:
    source = getattr(require("torchvision.datasets"), name)
    archives = require("torchvision.datasets.utils")

    # torchvision's dataset class itself would unpickle the files without restriction.
    def download(scratch: str) -> None:
        archives.download_and_extract_archive(source.url, scratch, filename=source.filename, md5=source.tgz_md5)

    return download


def _entry(path: Path, content: object, key: str) -> object:
    if not isinstance(content, dict):
        raise damaged(path, f"a pickled {type(content).__name__}", "a dictionary")
    if key not in content:
        raise DataError(f"{path}: found keys {sorted(map(str, content))}, expected {key!r} among them.")
    return content[key]
