"""A Linear layer's products, by oneDNN where that is faster than the library that torch calls for ``mm`` on x86.

torch has oneDNN in it, but calls it for float32 products of Linear layers in compiled graphs alone. On a Zen 5 core it
takes half the time from batches of 8 on. Nothing here is differentiated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# From this batch and so many multiply-adds on it is faster; below, its call costs more than it saves.
_BATCH, _PRODUCTS = 8, 1 << 21


def _find() -> Any:
    try:
        return torch.ops.mkldnn._linear_pointwise.default
    except AttributeError:  # built without oneDNN, or renamed: it is no public operator
        return None


_onednn = _find()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x Wᵀ + b``, shape (N, O), for x of shape (N, I) and W of shape (O, I)."""
    if faster(x, weight):
        return _onednn(x.contiguous(), weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def pack(weight: Tensor, batch: int) -> Tensor:
    """Return a weight in oneDNN's own order, for many products with ``batch`` rows; as it is where that does not pay.

    What is returned serves :func:`linear` alone.
    """
    x = weight.new_empty(()).expand(batch, weight.shape[1])
    return torch.ops.mkldnn._reorder_linear_weight(weight, batch) if faster(x, weight) else weight


def through(error: Tensor, weight: Tensor) -> Tensor:
    """Return ``Δ W``, shape (N, I), for errors of shape (N, O) and W of shape (O, I)."""
    return linear(error, weight.t()) if faster(error, weight) else error @ weight


def faster(x: Tensor, weight: Tensor) -> bool:
    """Tell whether oneDNN does the product of the rows of ``x``, shape (N, ...), with a weight, and pays."""
    return (
        len(x) >= _BATCH
        and len(x) * weight.numel() >= _PRODUCTS
        and _onednn is not None
        and x.dtype is weight.dtype is torch.float32
        and x.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch._C._get_mkldnn_enabled()
        and not torch.compiler.is_compiling()
    )
