"""Reads pickles of image data without the power to run code."""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from torchdfa.data.sources import damaged, read_bytes


class PickledArray:
    """Stand-in for a uint8 array in a pickle, so that no code of NumPy runs on unchecked input.

    Attributes:
        shape: Shape of the array, empty until its state was read.
    """

    # On the class, since a pickle can make an object without calling __init__.
    shape: tuple[int, ...] = ()
    _content = b""

    def __init__(self, kind: object, shape: object, typecode: object) -> None:
        if kind is not _ArrayType:
            raise pickle.UnpicklingError("an array of an unknown kind")

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran_order, content = state
        # Pickles of Python 2 hold bytes as text.
        content = content.encode("latin1") if isinstance(content, str) else content
        if not isinstance(dtype, _PickledDtype) or fortran_order or not isinstance(content, bytes):
            raise pickle.UnpicklingError("an array other than plain uint8 in C order")
        if not all(type(side) is int and side >= 0 for side in shape) or math.prod(shape) != len(content):
            raise pickle.UnpicklingError(f"an array of shape {shape} with {len(content)} bytes")
        self.shape, self._content = tuple(shape), content

    def array(self) -> np.ndarray:
        """Return the array, of shape ``shape``, uint8, read-only."""
        return np.frombuffer(self._content, np.uint8).reshape(self.shape)


class _ArrayType:
    """Stand-in for ``numpy.ndarray`` as an argument of its constructor."""

    def __new__(cls) -> _ArrayType:
        raise pickle.UnpicklingError("an array made without its constructor")


class _PickledDtype:
    """Stand-in for ``numpy.dtype("uint8")``; no other dtype is let in."""

    def __init__(self, code: object, align: object = False, copy: object = False) -> None:
        if code != "u1":
            raise pickle.UnpicklingError(f"an array of dtype {code!r}; expected uint8")

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and flags, which uint8 has no use for."""


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``, by which Python 3 writes bytes in old protocols."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text in encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): PickledArray,
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): _encode,
}


class _RestrictedUnpickler(pickle._Unpickler):
    """Python's own unpickler, less what can do harm.

    It is the one written in Python: that in C takes memory for what a file says it holds (an index of 2³² in the
    memo, a string of 2⁴⁰ bytes) before it looks whether that is there.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name, if it has one."""
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"a reference to {module}.{name}, which image data has no use for") from None

    def get_extension(self, code: int) -> None:
        """Refuse a reference by number, which would be looked up in a table of the process."""
        raise pickle.UnpicklingError(f"a reference to the extension {code}, which image data has no use for")

    def load_build(self) -> None:
        """Set the state of an array or its type; of anything else, our own stand-ins' code, it would be overwritten."""
        if type(self.stack[-2]) not in (PickledArray, _PickledDtype):  # type: ignore[attr-defined]
            raise pickle.UnpicklingError("a state for something that has none")
        super().load_build()  # type: ignore[misc]

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}  # type: ignore[attr-defined] # noqa: RUF012


def read_pickle(path: Path, most: int | None = None) -> object:
    """Read a pickle of builtin containers, numbers, text and uint8 arrays.

    Arrays come back as ``PickledArray``. Nothing that the file names is imported or called, and it takes no more memory
    than a small multiple of its size.

    Args:
        path: Of the file.
        most: Bytes that it may have.

    Raises:
        DataError: If the file is missing, too large or broken, or refers to anything else.
    """
    content = io.BytesIO(read_bytes(path, most))
    try:
        # latin1 maps all 256 bytes, so that byte strings of Python 2 survive.
        return _RestrictedUnpickler(content, encoding="latin1").load()
    except Exception as error:  # a broken pickle may raise nearly anything
        found = f"a pickle that is broken or unsafe ({type(error).__name__}: {error})"
        raise damaged(path, found, "a pickled dictionary of lists, numbers, text and uint8 arrays") from error
