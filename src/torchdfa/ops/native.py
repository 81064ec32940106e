"""The native library: finding it, choosing its instruction set, lending it torch's threads.

It has a plain C interface and knows nothing of torch or Python, so that one build serves all their versions.
``csrc/library.cpp`` is the other side of this file.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable
from ctypes import c_char_p, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import torch

VARIABLE = "TORCHDFA_OPS"
# Without it a product runs as torch expressions.
_FILE = Path(__file__).with_name("_native.so")
# The error, its rows, the stride between them, K; bits or key, scale, out, columns, threads.
_ARGUMENTS = (c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_int64, c_int)
# Weight, velocity, rows, columns, error, its stride, x, its stride, batch, lr, momentum, decay, threads.
_UPDATE_ARGUMENTS = (
    *(c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int64, c_int64),
    *(c_float, c_float, c_float, c_int),
)
# Multiply-adds from which a call lets other Python threads run; letting go and taking back costs more than a small one.
LONG = 1 << 18


@dataclass(frozen=True, slots=True)
class Product:
    """A function of the library: one that keeps Python's lock and one for long calls that doesn't.

    Both return 0, or 1 if memory ran out. ``source`` is the type that the bits, or the key, must have.
    """

    call: Callable[..., int]
    long_call: Callable[..., int]
    source: torch.dtype


class Library:
    """What the native library offers."""

    def __init__(self, file: Path):
        keeping, releasing = ctypes.PyDLL(str(file)), ctypes.CDLL(str(file))
        self.packed = _product(keeping, releasing, "torchdfa_packed", torch.uint8)
        self.seeded = _product(keeping, releasing, "torchdfa_seeded", torch.int64)
        self.update: Callable[..., int] = releasing.torchdfa_update
        self.update.argtypes = _UPDATE_ARGUMENTS  # type: ignore[attr-defined]
        keeping.torchdfa_paths.restype = c_char_p
        self.paths = tuple(keeping.torchdfa_paths().decode().split())
        keeping.torchdfa_choose.argtypes = (c_char_p,)
        self.choose: Callable[[bytes], int] = keeping.torchdfa_choose
        pool = _torch_threads()
        if pool is not None:
            keeping.torchdfa_use_pool.argtypes = (c_void_p,)
            keeping.torchdfa_use_pool(pool)


def _product(keeping: ctypes.CDLL, releasing: ctypes.CDLL, name: str, source: torch.dtype) -> Product:
    both = keeping[name], releasing[name]
    for function in both:
        function.argtypes = _ARGUMENTS
    return Product(*both, source)


def _torch_threads() -> c_void_p | None:
    """Return GOMP_parallel of the OpenMP runtime that torch has loaded; None where it has another kind, or none."""
    folder = Path(torch.__file__).parent / "lib"
    loaded_only = getattr(os, "RTLD_NOLOAD", None)
    if loaded_only is None:
        return None
    for file in sorted((*folder.glob("libgomp*"), *folder.glob("libiomp5*"), *folder.glob("libomp*")), key=str):
        try:
            runtime = ctypes.CDLL(str(file), mode=loaded_only | os.RTLD_NOW)
            return ctypes.cast(runtime.GOMP_parallel, c_void_p)
        except (OSError, AttributeError):
            continue
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, c_void_p)
    except (OSError, AttributeError):
        return None


def _load() -> tuple[Library | None, str]:
    if not _FILE.is_file():
        return None, f"{_FILE.name} was not built: no C++ compiler (GCC or Clang) was found when torchdfa was installed"
    try:
        return Library(_FILE), ""
    except (OSError, AttributeError) as error:
        return None, f"{_FILE} can't be loaded: {error}"


_library, _reason = _load()

PATHS: tuple[str, ...] = (*(_library.paths if _library else ()), "torch")
"""Paths that run here, best first: instruction sets of the native library, and ``"torch"`` expressions."""

# What products use; None: torch expressions. A module attribute, since it is read in every call.
library: Library | None = None
_path = "torch"
_warned = False


def path() -> str:
    """Return the path that float32 products on the CPU take now: one of :data:`PATHS`."""
    return _path


def choose(name: str) -> str:
    """Choose the path of products on the CPU, for tests and measurements; return the one before.

    Raises:
        ValueError: The path does not run on this machine.
    """
    global library, _path
    if name not in PATHS:
        because = f" ({_reason})" if _reason else ""
        raise ValueError(f"path {name!r} does not run here{because}: expected one of {', '.join(PATHS)}.")
    if _library is not None and name != "torch":
        _library.choose(name.encode())
        library = _library
    else:
        library = None
    before, _path = _path, name
    return before


def why_not_native() -> str:
    """Return why the native library is not there; empty where it is."""
    return _reason


def warn_once() -> None:
    """Say, once a process, that the native library is missing; nothing where torch expressions were asked for."""
    global _warned
    if _warned or not _reason or os.environ.get(VARIABLE) == "torch":
        return
    _warned = True
    warnings.warn(
        f"torchdfa runs without its native library, binary feedback is slower: {_reason}. Install a compiler and "
        f"torchdfa again, or set {VARIABLE}=torch to accept this.",
        stacklevel=2,
    )


def _start() -> None:
    wanted = os.environ.get(VARIABLE) or PATHS[0]
    try:
        choose(wanted)
    except ValueError as error:
        raise ValueError(f"{VARIABLE}={wanted}: {error}") from None


_start()
