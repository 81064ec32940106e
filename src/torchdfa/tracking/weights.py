"""Reading foreign networks' weights: tensors by name from a .pth, .safetensors or .npz file, and nothing else."""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from torchdfa.data.arrays import read_arrays
from torchdfa.data.errors import DataError

# What a state_dict's pickle names. torch's own reader allows more, such as bytearray and Tensor, which take memory for
# any number that the file gives them.
_STORAGE = re.compile(r"torch(\.storage)? \w*Storage")
_NAMED = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch._tensor _rebuild_from_type_v2",
    "torch.nn.parameter Parameter",
    "torch Size",
}
_OLD_MAGIC = 0x1950A86A20F9469CFC6C


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a .pth, .safetensors or .npz file.

    Nothing that a file names is imported or called. What a .pth file says of sizes is held against its own size before
    torch takes memory for it.

    Raises:
        DataError: It can't be read, or holds something else.
    """
    if not path.is_file():
        raise DataError(f"{path}: found no such file, expected a network's weights.")
    try:
        state: Any
        if path.suffix == ".npz":
            state = {name: torch.from_numpy(array).float() for name, array in read_arrays(path).items()}
        elif path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            _demand_plain(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(f"{path}: cannot be read as weights ({type(error).__name__}: {error}).") from error
    for wrapper in ("shared_layers", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise DataError(f"{path}: found no tensors by name, expected a network's state_dict.")
    return dict(state)


def _demand_plain(path: Path) -> None:
    """Refuse a file of torch.save whose pickle names what a state_dict has no use for, or numbers beyond its size."""
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):  # as torch wrote before 1.6: several pickles, then the tensors
        with open(path, "rb") as file:
            # The first says that it is such a file, the second its version (1001), the third the machine's word sizes.
            for least in (0, 1001, 1 << 16, 0, 0):
                _check(_operations(file), max(size, least))
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, which torch.save never does")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("its parts are larger than itself")
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                with archive.open(entry) as member:
                    _check(_operations(member), size)  # type: ignore[arg-type]


def _operations(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    return ((operation.name, argument) for operation, argument, _ in pickletools.genops(file))


def _check(operations: Iterator[tuple[str, Any]], size: int) -> None:
    texts: list[str] = []
    for name, argument in operations:
        if isinstance(argument, int) and not isinstance(argument, bool) and argument > size and argument != _OLD_MAGIC:
            raise ValueError(f"the number {argument} in a file of {size:,} bytes")
        if name in ("GLOBAL", "STACK_GLOBAL"):
            named = " ".join(texts[-2:]) if name == "STACK_GLOBAL" else str(argument)
            if named not in _NAMED and not _STORAGE.fullmatch(named):
                raise ValueError(f"it refers to {named!r}, which a state_dict has no use for")
        if name in ("INST", "EXT1", "EXT2", "EXT4"):
            raise ValueError(f"it has the operation {name}, which a state_dict has no use for")
        if isinstance(argument, str):
            texts.append(argument)
