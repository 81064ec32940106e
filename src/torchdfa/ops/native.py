"""The native library: loading it, choosing its instruction set, lending it torch's threads.

It is a Python module in the limited API, and has no need of torch's headers, so that one build serves all their
versions. ``csrc/module.cpp`` is the other side of this file.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

VARIABLE = "TORCHDFA_OPS"


def _empty(size: tuple[int, int], stride: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="cpu")


def _allocator() -> Any:
    """Return what makes an empty tensor of a size, strides and type: what compiled graphs use takes half the time."""
    guards: Any = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
    return getattr(guards, "_empty_strided_cpu", _empty)  # it is no public function


def _torch_threads() -> int | None:
    """Return GOMP_parallel of the OpenMP runtime that torch has loaded; None where it has another kind, or none."""
    folder = Path(torch.__file__).parent / "lib"
    loaded_only = getattr(os, "RTLD_NOLOAD", None)
    if loaded_only is None:
        return None
    for file in sorted((*folder.glob("libgomp*"), *folder.glob("libiomp5*"), *folder.glob("libomp*")), key=str):
        try:
            return _address(ctypes.CDLL(str(file), mode=loaded_only | os.RTLD_NOW))
        except (OSError, AttributeError):
            continue
    try:
        return _address(ctypes.CDLL(None))
    except (OSError, AttributeError):
        return None


def _address(runtime: ctypes.CDLL) -> int | None:
    return ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value


def _load() -> tuple[ModuleType | None, str]:
    try:
        library = import_module("torchdfa.ops._native")
    except ModuleNotFoundError:
        return None, (
            "it was not built, as no C++ compiler (GCC or Clang), or no Python.h (python3-dev), was found when it was "
            "installed"
        )
    except ImportError as error:
        return None, f"it can't be loaded: {error}"
    library.connect(
        *(Tensor, Tensor.is_neg, torch._C._len_torch_dispatch_stack, torch._C._get_tracing_state),
        *(torch.get_num_threads, _allocator(), torch.float32),
    )
    pool = _torch_threads()
    if pool is not None:
        library.use_pool(pool)
    return library, ""


_library, _reason = _load()

PATHS: tuple[str, ...] = (*(_library.paths().split() if _library else ()), "torch")
"""Paths that run here, best first: instruction sets of the native library, and ``"torch"`` expressions."""

# What products use; None: torch expressions. A module attribute, since it is read in every call.
kernels: ModuleType | None = None
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
    global kernels, _path
    if name not in PATHS:
        because = f" ({_reason})" if _reason else ""
        raise ValueError(f"path {name!r} does not run here{because}: expected one of {', '.join(PATHS)}.")
    if _library is not None and name != "torch":
        _library.choose(name)
        kernels = _library
    else:
        kernels = None
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
