"""The data sets known by name, and how to load one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from torchdfa.data.cifar import CIFAR10, CIFAR100, TINY_IMAGENET100_32, load_cifar
from torchdfa.data.digits import load_digits
from torchdfa.data.errors import DataError
from torchdfa.data.folder import load_folder
from torchdfa.data.idx import FASHION_MNIST, MNIST, load_idx
from torchdfa.data.images import Dataset, ImageSet, resize
from torchdfa.data.sources import data_root
from torchdfa.data.text import TEXTS, Corpus, load_text

Loader = Callable[[Path, bool], tuple[ImageSet, ImageSet]]

# Loader of every named set: takes the folder of all data and whether to download; returns training and test images.
DATASETS: dict[str, Loader] = {
    "digits": lambda root, download: load_digits(),
    "cifar10": partial(load_cifar, CIFAR10),
    "cifar100": partial(load_cifar, CIFAR100),
    "tiny-imagenet100-32": partial(load_cifar, TINY_IMAGENET100_32),
    "mnist": partial(load_idx, MNIST),
    "fashion-mnist": partial(load_idx, FASHION_MNIST),
}
FOLDER_PREFIX = "folder:"


def names() -> tuple[str, ...]:
    """Return the names that ``load`` knows, besides image folders."""
    return tuple(DATASETS)


def load_any(name: str, root: Path | str | None = None) -> Dataset | Corpus:
    """Load a set of images as :func:`load` does, or a text as :func:`torchdfa.data.load_text` does, by its name."""
    return load_text(name, root) if name in TEXTS else load(name, root)


def load(name: str, root: Path | str | None = None, download: bool = True, *, image_size: int | None = None) -> Dataset:
    """Load a data set into memory.

    Args:
        name: One of ``names()``; or an image folder, as ``folder:PATH`` or the path of an existing folder, which holds
            ``train/<class>/`` and ``test/<class>/`` (or ``val/<class>/``).
        root: Folder of all data; None takes the environment variable TORCHDFA_DATA, else the user's cache folder.
            It is where data is looked for and where it is downloaded to.
        download: Whether to download data that is not there.
        image_size: Side in pixels of the squares to which images are resized; None keeps their size.

    Raises:
        DataError: If the name is unknown, or the data is missing, damaged or cannot be downloaded.
        ImportError: If a package that this data needs is not installed.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size must be a positive number of pixels, found {image_size}")
    if name in DATASETS:
        train, test = DATASETS[name](data_root(root), download)
    else:
        train, test = load_folder(_folder(name), image_size)
    if image_size is not None:
        train, test = (replace(part, images=resize(part.images, image_size)) for part in (train, test))
    return Dataset(name, train, test)


def _folder(name: str) -> Path:
    path = Path(name.removeprefix(FOLDER_PREFIX)).expanduser()
    # An empty path would mean the working directory.
    if name.startswith(FOLDER_PREFIX) or (name and path.is_dir()):
        return path
    if name in TEXTS:
        raise DataError(f"{name!r} is a text, expected a set of images; load it by torchdfa.data.load_text({name!r})")
    raise DataError(
        f"unknown data set {name!r}; expected one of {', '.join(names())}, the text {' or '.join(TEXTS)}, or an image "
        "folder as "
        f"{FOLDER_PREFIX}PATH or the path of an existing folder"
    )
