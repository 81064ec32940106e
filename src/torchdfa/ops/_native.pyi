"""The native library as a Python module: ``csrc/module.cpp``. Addresses are those of float32, contiguous in a row."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

def packed(e: Tensor, packed: Tensor, scale: Tensor, columns: int, /) -> Tensor | None:
    """Multiply by stored signs; None, and nothing done, unless all are plain tensors that nothing watches."""

def seeded(e: Tensor, key: Tensor, scale: Tensor, columns: int, /) -> Tensor | None:
    """Multiply by generated signs; None as above."""

def packed_at(
    *addresses_and_sizes: int,  # e, rows, the stride between them, K, bits, scale, out, columns, threads
) -> bool:
    """Multiply by stored signs; False where memory ran out."""

def seeded_at(*addresses_and_sizes: int) -> bool:
    """Multiply by generated signs, the key in place of the bits; False where memory ran out."""

def update_at(
    *addresses_sizes_and_rates: float,  # weight, velocity or 0, its bytes a number, rows, columns, error, its
    # stride, x, its stride, batch, lr, momentum, decay, threads
) -> bool:
    """Take a step of SGD; False where memory ran out, and nothing was done."""

def paths() -> str:
    """Return the instruction sets that run here, best first, with spaces between."""

def choose(name: str, /) -> bool:
    """Choose one of them; False if it does not run here."""

def use_pool(address: int, /) -> None:
    """Take threads from the OpenMP runtime whose GOMP_parallel this is."""

def connect(
    tensor: type[Tensor],
    is_neg: Callable[[Tensor], bool],
    modes: Callable[[], int],
    tracing: Callable[[], Any],
    threads: Callable[[], int],
    allocate: Callable[[tuple[int, int], tuple[int, int], Any], Tensor],
    float32: Any,
    /,
) -> bool:
    """Learn from torch what ``packed`` and ``seeded`` need; False, and they do nothing, if it has no exchange table."""
