"""``V = μV + λW + Δᵀ X; W = W - ηV``: a step of SGD on a Linear layer's weight, whose gradient is never stored.

On the CPU float32 weights are updated by the native library, each read once and written once. Elsewhere, in other types
and without the library, torch does it block by block of rows: one stays in the cache from the product to the update.

The velocity V may be in bfloat16, at half the memory. A step is added in float32, and rounded to even where V is
stored. W takes it as it was before, so that rounding does not reach W but through the next step's μV.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from torchdfa.ops import native

# Of the weight in a block.
_BLOCK_BYTES = 2**20

_LIBRARY = torch.library.Library("torchdfa", "FRAGMENT")
_LIBRARY.define(
    "sgd_update(Tensor(a!) weight, Tensor(b!)? velocity, Tensor error, Tensor x, float lr, float momentum, float decay)"
    " -> ()"
)
_operator = torch.ops.torchdfa.sgd_update.default


def sgd_update(
    weight: Tensor,
    velocity: Tensor | None,
    error: Tensor,
    x: Tensor,
    *,
    lr: float,
    momentum: float = 0.0,
    decay: float = 0.0,
) -> None:
    """Take a step of SGD in place: ``V = μV + λW + Δᵀ X; W = W - ηV``, as ``torch.optim.SGD`` does with that gradient.

    An optimizer's step, it is not differentiable. Results don't depend on the number of threads.

    Args:
        weight: W, shape (O, I).
        velocity: V, shape (O, I), in the weight's type or in bfloat16; None without momentum.
        error: Δ, at the layer's sums, shape (N, O).
        x: X, the layer's input, shape (N, I).
        lr: η.
        momentum: μ.
        decay: λ.

    Raises:
        ValueError: The shapes don't fit each other, or the velocity has another type.
    """
    outputs, inputs = weight.shape
    if error.shape != (len(x), outputs) or x.shape != (len(error), inputs):
        raise ValueError(
            f"sgd_update: a weight {tuple(weight.shape)} needs errors (N, {outputs}) and inputs (N, {inputs}), found "
            f"{tuple(error.shape)} and {tuple(x.shape)}."
        )
    if velocity is not None and velocity.shape != weight.shape:
        raise ValueError(
            f"sgd_update: the velocity's shape is {tuple(velocity.shape)}, the weight's {tuple(weight.shape)}."
        )
    if velocity is not None and velocity.dtype not in (weight.dtype, torch.bfloat16):
        raise ValueError(f"sgd_update: a velocity of {velocity.dtype}, expected {weight.dtype} or torch.bfloat16.")
    with torch.no_grad():
        if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() == 0:
            if _native(weight, velocity, error, x, lr, momentum, decay):
                # As any change in place: autograd notices where it still needs the value of before.
                increment_version([t for t in (weight, velocity) if t is not None and not t.is_inference()])
                return
        _operator(weight, velocity, error, x, lr, momentum, decay)


def _native(
    weight: Tensor, velocity: Tensor | None, error: Tensor, x: Tensor, lr: float, momentum: float, decay: float
) -> bool:
    """Update in the native library; False, and nothing done, where it can't."""
    library = native.kernels
    batch, outputs, inputs = len(x), *weight.shape
    if library is None or batch == 0:
        return False
    if not all(_plain(t) for t in (weight, error, x)) or not weight.is_contiguous():
        return False
    if velocity is not None and not (_plain(velocity, torch.bfloat16) and velocity.is_contiguous()):
        return False
    try:
        at = [0 if t is None else t.data_ptr() for t in (weight, velocity, error, x)]
    except RuntimeError:  # no memory of its own, as within torch.func
        return False
    if not (at[0] and at[2] and at[3]):
        return False
    strides = error.stride(0), x.stride(0)
    if not library.update_at(
        *(at[0], at[1], 0 if velocity is None else velocity.element_size()),
        *(outputs, inputs, at[2], strides[0], at[3], strides[1], batch),
        *(lr, momentum, decay, torch.get_num_threads()),
    ):
        raise MemoryError(f"sgd_update of a weight {tuple(weight.shape)} by a batch of {batch}: out of memory.")
    return True


def _plain(t: Tensor, other: torch.dtype = torch.float32) -> bool:
    """Tell whether the library reads it: float32, or the other type, its numbers side by side in a row."""
    of_type = t.dtype is torch.float32 or t.dtype is other
    return of_type and t.is_cpu and not t.is_neg() and (t.shape[1] <= 1 or t.stride(1) == 1)


def _blocks(
    weight: Tensor, velocity: Tensor | None, error: Tensor, x: Tensor, lr: float, momentum: float, decay: float
) -> None:
    delta = error.t()
    rows = len(weight)
    if weight.device.type == "cpu":
        rows = max(1, _BLOCK_BYTES // (weight.shape[1] * weight.element_size()))
    for begin in range(0, len(weight), rows):
        part = slice(begin, begin + rows)
        w = weight[part]
        if velocity is None:
            w.addmm_(delta[part], x, beta=1 - lr * decay, alpha=-lr)
            continue
        kept = velocity[part]
        v = kept.to(w.dtype)  # the same tensor where the types are
        v.addmm_(delta[part], x, beta=momentum)
        if decay:
            v.add_(w, alpha=decay)
        w.sub_(v, alpha=lr)
        if v is not kept:
            kept.copy_(v)


def _cpu(
    weight: Tensor, velocity: Tensor | None, error: Tensor, x: Tensor, lr: float, momentum: float, decay: float
) -> None:
    if not _native(weight, velocity, error, x, lr, momentum, decay):
        if native.kernels is None and weight.dtype is torch.float32:
            native.warn_once()
        _blocks(weight, velocity, error, x, lr, momentum, decay)


def _nothing(*arguments: Any) -> None:
    return None


_LIBRARY.impl("sgd_update", _blocks, "CompositeExplicitAutograd")
_LIBRARY.impl("sgd_update", _cpu, "CPU")
torch.library.register_fake("torchdfa::sgd_update", _nothing, lib=_LIBRARY)
