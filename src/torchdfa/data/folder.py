"""Image folders: one folder a class, below one folder for training and one for testing."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchdfa.data.errors import DataError
from torchdfa.data.images import ImageSet, resize
from torchdfa.data.sources import require

EXTENSIONS = (".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
# The first of these that exists holds the test images.
TEST_FOLDERS = ("test", "val")


def load_folder(path: Path, image_size: int | None = None) -> tuple[ImageSet, ImageSet]:
    """Load ``path/train/<class>/*`` and ``path/test/<class>/*`` (or ``path/val/<class>/*``) as colour images.

    Classes are the names of the folders in sorted order; images may lie in folders below them. Names that start with
    a dot are passed over.

    Args:
        path: Folder above ``train``.
        image_size: Side in pixels of the squares to which images are resized; None takes them as they are, and then
            all must have the same size.

    Returns:
        Training and test images, each of shape (N, 3, H, W).

    Raises:
        DataError: If a folder is missing or empty, an image cannot be decoded, or sizes or classes differ.
        ImportError: If Pillow is not installed.
    """
    train_folder = path / "train"
    test_folder = next((path / name for name in TEST_FOLDERS if (path / name).is_dir()), path / TEST_FOLDERS[0])
    for folder in (train_folder, test_folder):
        if not folder.is_dir():
            raise DataError(
                f"{folder}: found no such folder, expected an image folder with train/<class>/ and test/<class>/ "
                "(or val/<class>/) in it."
            )
    train_files, test_files = _files(train_folder), _files(test_folder)
    if train_files.keys() != test_files.keys():
        different = sorted(train_files.keys() ^ test_files.keys())
        raise DataError(
            f"{test_folder}: found other classes than in {train_folder}, expected the same ones; only one of the two "
            f"has {', '.join(different)}."
        )
    first = next(iter(train_files.values()))[0]
    size = _decode(first, image_size).shape[-2:]
    return _read_images(train_files, image_size, size, first), _read_images(test_files, image_size, size, first)


def _files(folder: Path) -> dict[str, list[Path]]:
    """List the image files of every class, both in sorted order."""
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise DataError(f"{folder}: found no folders, expected one for every class.")
    files = {}
    for entry in classes:
        files[entry.name] = sorted(
            Path(parent, name)
            for parent, names in _walk(entry)
            for name in names
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        )
        if not files[entry.name]:
            raise DataError(f"{entry}: found no images, expected at least one of {', '.join(EXTENSIONS)}.")
    return files


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the folders at and below one, and the files' names, following links, but not around in circles."""
    seen: set[str] = set()
    for parent, below, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        yield parent, names


def _read_images(files: dict[str, list[Path]], image_size: int | None, size: torch.Size, first: Path) -> ImageSet:
    labelled = [(path, label) for label, paths in enumerate(files.values()) for path in paths]
    images = torch.empty(len(labelled), 3, *size, dtype=torch.uint8)
    for index, (path, _) in enumerate(labelled):
        image = _decode(path, image_size)
        if image.shape[-2:] != size:
            raise DataError(
                f"{path}: found an image of {_shown(image.shape[-2:])} pixels (width x height), expected "
                f"{_shown(size)} as in {first}. Resize the images beforehand, or let them be resized with image_size=."
            )
        images[index] = image
    return ImageSet(images, torch.tensor([label for _, label in labelled]), tuple(files))


def _decode(path: Path, image_size: int | None) -> Tensor:
    """Decode an image as RGB of shape (3, H, W), uint8, resized if asked to."""
    pillow = require("PIL.Image")
    try:
        with warnings.catch_warnings():
            # Of more than 89 million pixels, which a file of a few kilobytes can claim to have.
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(path) as picture:
                pixels = np.array(picture.convert("RGB"))
    except Exception as error:  # decoders of damaged files raise many kinds of error
        raise DataError(
            f"{path}: found a file that cannot be decoded ({error}), expected an image. Replace or remove the file."
        ) from error
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    return image if image_size is None else resize(image[None], image_size)[0]


def _shown(size: torch.Size) -> str:
    height, width = size
    return f"{width} x {height}"
