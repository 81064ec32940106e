"""Files of tensors and plain values under a checksum: read as they were written, or refused. No pickles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

_MAGIC = b"torchdfa sealed 1 "
_LINE = len(_MAGIC) + 64 + 1


class SealError(ValueError):
    """A file is not what was written: cut off, changed, or of another kind."""


def seal(content: Mapping[str, Any]) -> bytes:
    """Return content as a line with the SHA-256 of the rest, and the rest: a safetensors file.

    Args:
        content: Tensors, numbers, strings, None, and dicts, lists and tuples of such. Keys may be numbers.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    plain = json.dumps(_plain(content, tensors))
    body = save(tensors, {"content": plain})
    return _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def unseal(data: bytes) -> Any:
    """Return what :func:`seal` was given.

    Raises:
        SealError: The data is something else, or was cut off or changed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not data.startswith(_MAGIC):
        raise SealError(f"it begins with {data[:12]!r}, not with {_MAGIC!r}: no file of torchdfa's, or an old one")
    body = memoryview(data)[_LINE:]
    if data[len(_MAGIC) : _LINE] != hashlib.sha256(body).hexdigest().encode() + b"\n":
        raise SealError("its checksum is wrong: it was cut off or changed")
    try:
        # The library checks that the tensors' sizes add up to the file's before it makes any.
        tensors = load(bytes(body))
        length = int.from_bytes(body[:8], "little")
        return _restored(json.loads(json.loads(bytes(body[8 : 8 + length]))["__metadata__"]["content"]), tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, RuntimeError, AttributeError) as error:
        raise SealError(f"its content is none ({type(error).__name__}: {error})") from error


def read_sealed(path: Path) -> Any:
    """Read a file that :func:`seal` made; see :func:`unseal`."""
    return unseal(path.read_bytes())


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON, in which tensors are numbers and containers tagged with their kind."""
    if isinstance(value, Tensor):
        # In the order of memory, so that a channels-last tensor comes back as one.
        order = sorted(range(value.ndim), key=value.stride, reverse=True)
        dense = value.detach().cpu().permute(order)
        name = str(len(tensors))
        tensors[name] = dense.contiguous().clone()
        return {"tensor": name, "order": order}
    if isinstance(value, Mapping):
        return {"dict": [[_plain(k, tensors), _plain(v, tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_plain(part, tensors) for part in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a sealed file can't hold a {type(value).__name__}")


def _restored(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        order = value["order"]
        return tensors[value["tensor"]].permute(sorted(range(len(order)), key=order.__getitem__))
    if "dict" in value:
        return {_restored(k, tensors): _restored(v, tensors) for k, v in value["dict"]}
    ((kind, parts),) = value.items()
    return {"list": list, "tuple": tuple}[kind](_restored(part, tensors) for part in parts)
