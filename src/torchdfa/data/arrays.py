"""Reading ``.npz`` files: plain numbers only, and no more memory than the file's own tables admit."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from torchdfa.data.errors import DataError

# Of all arrays of a file together, unpacked.
LARGEST = 4 << 30


def read_arrays(path: Path, most: int = LARGEST) -> dict[str, NDArray[Any]]:
    """Read the arrays of an ``.npz`` file by name.

    Sizes are added up from the arrays' headers before memory is taken for any; objects, which would be pickles, are
    refused.

    Args:
        path: Of the file.
        most: Bytes that all arrays may have together.

    Raises:
        DataError: The file can't be read, is damaged, or holds more, or something else than numbers.
    """
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            total = 0
            for entry in archive.infolist():
                with archive.open(entry) as member:
                    shape, dtype = _header(member)
                total += dtype.itemsize * math.prod(shape)
                if total > most:
                    raise ValueError(f"{entry.filename}: {dtype} of shape {shape}, {total:,} bytes in all of {most:,}")
                if dtype.itemsize * math.prod(shape) > entry.file_size:
                    raise ValueError(f"{entry.filename}: {dtype} of shape {shape} in {entry.file_size:,} bytes")
            for entry in archive.infolist():
                with archive.open(entry) as member:
                    arrays[entry.filename.removesuffix(".npy")] = npy.read_array(member, allow_pickle=False)
                    if member.read(1):
                        raise ValueError(f"{entry.filename}: more bytes than its header says")
    except Exception as error:  # zip, zlib, numpy: damage shows in many ways
        raise DataError(f"{path}: cannot be read as arrays of numbers ({type(error).__name__}: {error}).") from error
    return arrays


def _header(member: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array file of version {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(member)
    if dtype.hasobject:
        raise ValueError("an array of objects")
    if any(side < 0 for side in shape):
        raise ValueError(f"an array of shape {shape}")
    return shape, dtype
