"""Where data files are looked for, and how they are downloaded."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from types import ModuleType

from torchdfa.data.errors import DataError

VARIABLE = "TORCHDFA_DATA"


def data_root(root: Path | str | None = None) -> Path:
    """Return the folder of all data: ``root``, else the variable TORCHDFA_DATA, else the user's cache."""
    given = root or os.environ.get(VARIABLE)
    if given:
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "torchdfa"


def places(root: Path, folders: Sequence[str]) -> list[Path]:
    """List where ``folders`` may be: below ``root``, or at ``root`` itself if it is already (part of) such a folder."""
    found = []
    for folder in folders:
        parts = PurePath(folder).parts
        here = root.absolute().parts
        for known in range(len(parts) + 1):
            if here[len(here) - known :] == parts[:known]:
                found.append(root.joinpath(*parts[known:]))
    return found


def missing(title: str, searched: Sequence[Path], expected: str, hint: str) -> DataError:
    """Build the error for data that is in none of the ``searched`` folders.

    Args:
        title: What is missing.
        searched: Folders that were searched.
        expected: Files that one of them should have held.
        hint: Where the files come from.
    """
    folders = ", ".join(str(folder) for folder in searched)
    return DataError(
        f"{title} not found. Searched: {folders}. Expected one of these folders to hold {expected}. {hint} "
        f"Name the folder above it with root= (--data-root) or the environment variable {VARIABLE}."
    )


def damaged(path: Path, found: str, expected: str) -> DataError:
    """Build the error for a file whose content is wrong."""
    return DataError(
        f"{path}: found {found}, expected {expected}. The file is damaged or of another format: "
        "replace it with a fresh copy, or remove its folder and load again if the data has a download."
    )


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """Read a whole file.

    Args:
        path: Of the file.
        most: Bytes that it may have; a larger one is refused before it is read. None: any number.

    Raises:
        DataError: If it is missing, unreadable or too large.
    """
    try:
        if most is not None and (size := path.stat().st_size) > most:
            raise damaged(path, f"{size:,} bytes", f"at most {most:,}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: found no such file, expected it beside the other files of {path.parent}. The folder is "
            "incomplete: add the file, or remove the folder and load again if the data has a download."
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected a readable file.") from error


def require(module: str, extra: str = "train", purpose: str = "to load this data") -> ModuleType:
    """Import an optional dependency.

    Args:
        module: Its name.
        extra: Of torchdfa, that installs it.
        purpose: What it is needed for, for the error message.

    Raises:
        ImportError: If it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{module} is needed {purpose}: pip install "torchdfa[{extra}]"') from error


def download_folder(title: str, root: Path, folder: str, download: Callable[[str], object]) -> Path:
    """Download a folder of files so that it appears complete or not at all.

    Args:
        title: What is downloaded, for error messages.
        root: Folder of all data, made if need be.
        folder: Path of the files below ``root``.
        download: Called with a temporary folder beside the destination, in which it must make ``folder``.

    Returns:
        Path of the complete folder.

    Raises:
        DataError: If the download fails for any reason; nothing half-written is left.
    """
    target = root / folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        # The context manager also removes its folder when Ctrl-C interrupts the download.
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch:
            download(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(Path(scratch) / folder, target)
            except OSError:
                # Another process may have finished the same download first; its files are as good.
                if not target.is_dir() or not any(target.iterdir()):
                    raise
    except Exception as error:
        raise DataError(
            f"{title} could not be downloaded to {target} ({type(error).__name__}: {error}). Check the network and "
            "that the folder can be written, or put the files there by hand; another folder is named with root= "
            f"(--data-root) or the environment variable {VARIABLE}."
        ) from error
    return target
