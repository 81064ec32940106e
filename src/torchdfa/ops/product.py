"""``(s · e) @ B`` with ``B`` in ±1, from stored bits and from a seed: the operators, and the ways to call them.

The signs are laid out as :mod:`torchdfa.feedback.bits` says. On the CPU float32 products run in the native library, and
so do bfloat16 and float16 ones, summed in float32. Elsewhere, in float64 and without the library, the bits are unpacked
and multiplied by torch.

A product of K rows is summed in groups of four rows and chunks of 256, in one order on every machine: results are the
same bit for bit for any number of threads, any instruction set and any batch that a sample is part of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchdfa.feedback import bits
from torchdfa.ops import native

_LIBRARY = torch.library.Library("torchdfa", "DEF")
_LIBRARY.define("packed_product(Tensor e, Tensor packed, Tensor scale, int columns) -> Tensor")
_LIBRARY.define("seeded_product(Tensor e, Tensor key, Tensor scale, int columns) -> Tensor")
_packed_operator = torch.ops.torchdfa.packed_product.default
_seeded_operator = torch.ops.torchdfa.seeded_product.default

_NATIVE_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def packed_product(e: Tensor, packed: Tensor, scale: Tensor, columns: int) -> Tensor:
    """Return ``(scale · e) @ B``, shape (N, columns), in the type of ``e``; autocast leaves that type alone.

    NaN and infinities spread as in any matrix product: every output reads every entry of its row of ``e``.

    Args:
        e: Errors, shape (N, K), floating point.
        packed: The signs of B, bytes (K, ceil(columns / 8)), uint8.
        scale: s, 0-dimensional.
        columns: H.

    Raises:
        ValueError: The shapes don't fit each other.
    """
    rows, errors = _sizes(e)
    if packed.shape != (errors, (columns + 7) // 8):
        raise ValueError(
            f"packed_product: e of shape {tuple(e.shape)} and {columns} columns need signs of shape "
            f"{(errors, (columns + 7) // 8)}, found {tuple(packed.shape)}."
        )
    library = native.library
    if library is not None and not torch.compiler.is_compiling() and _plain(e, scale) and packed.is_contiguous():
        long = rows * errors * columns > native._LONG
        out = _call(library.packed_long if long else library.packed, e, packed, scale, rows, errors, columns)
        if out is not None:
            return out
    return _packed_operator(e, packed, scale, columns)


def seeded_product(e: Tensor, key: Tensor, scale: Tensor, columns: int) -> Tensor:
    """Return ``(scale · e) @ B``, shape (N, columns), with the signs that :func:`torchdfa.feedback.bits.draw` draws.

    Args:
        e: Errors, shape (N, K), floating point.
        key: Of the signs, 0-dimensional, int64.
        scale: s, 0-dimensional.
        columns: H.

    Raises:
        ValueError: ``e`` is no matrix.
    """
    rows, errors = _sizes(e)
    library = native.library
    if library is not None and not torch.compiler.is_compiling() and _plain(e, scale):
        long = rows * errors * columns > native._LONG
        out = _call(library.seeded_long if long else library.seeded, e, key, scale, rows, errors, columns)
        if out is not None:
            return out
    return _seeded_operator(e, key, scale, columns)


def _sizes(e: Tensor) -> tuple[int, int]:
    if e.dim() != 2:
        raise ValueError(f"an error of shape (N, K) is expected, found shape {tuple(e.shape)}.")
    return e.shape[0], e.shape[1]


# ---- calling the library


def _plain(e: Tensor, scale: Tensor) -> bool:
    """Whether calling the library directly is the same as calling the operator, which costs some 3 µs more."""
    return (
        type(e) is Tensor
        and e.dtype is scale.dtype is torch.float32
        and e.is_cpu
        and scale.is_cpu
        and not e.requires_grad
        and not e.is_neg()
        and e.stride(1) == 1
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
    )


def _call(function: Any, e: Tensor, source: Tensor, scale: Tensor, rows: int, errors: int, columns: int) -> Any:
    """Call a product of the library; None if a tensor has no memory of its own, as within ``torch.func``."""
    try:
        at = e.data_ptr(), source.data_ptr(), scale.data_ptr()
    except RuntimeError:
        return None
    if not (source.is_cpu and all(at)):
        return None
    out = e.new_empty((rows, columns))
    if function(at[0], rows, e.stride(0), errors, at[1], at[2], out.data_ptr(), columns, torch.get_num_threads()):
        raise MemoryError(f"binary product ({rows}, {errors}) @ ({errors}, {columns}): out of memory.")
    return out


# ---- the operators


def _packed(e: Tensor, packed: Tensor, scale: Tensor, columns: int) -> Tensor:
    # K is the narrow side: scaling e rather than the product saves a pass over (N, H).
    return (e * scale.to(e.dtype)) @ bits.unpack(packed, columns, e.dtype)


def _seeded(e: Tensor, key: Tensor, scale: Tensor, columns: int) -> Tensor:
    return _packed(e, bits.draw(key, e.shape[1], columns), scale, columns)


def _packed_cpu(e: Tensor, packed: Tensor, scale: Tensor, columns: int) -> Tensor:
    library = _library_for(e)
    if library is None:
        return _packed(e, packed, scale, columns)
    return _native(library.packed_long, e, packed.contiguous(), scale, columns)


def _seeded_cpu(e: Tensor, key: Tensor, scale: Tensor, columns: int) -> Tensor:
    library = _library_for(e)
    if library is None:
        return _seeded(e, key, scale, columns)
    return _native(library.seeded_long, e, key, scale, columns)


def _library_for(e: Tensor) -> Any:
    if e.dtype not in _NATIVE_TYPES:
        return None
    if native.library is None:
        native.warn_once()
    return native.library


def _native(function: Any, e: Tensor, source: Tensor, scale: Tensor, columns: int) -> Tensor:
    e32, scale32 = e.to(torch.float32), scale.to(torch.float32)
    if e32.stride(1) != 1:
        e32 = e32.contiguous()
    out = e32.new_empty((e.shape[0], columns))
    at = e32.data_ptr(), *e32.shape, source.data_ptr(), scale32.data_ptr(), out.data_ptr()
    if function(at[0], at[1], e32.stride(0), *at[2:], columns, torch.get_num_threads()):
        raise MemoryError(f"binary product {tuple(e.shape)} @ ({e.shape[1]}, {columns}): out of memory.")
    return out.to(e.dtype)


def _packed_shape(e: Tensor, packed: Tensor, scale: Tensor, columns: int) -> Tensor:
    torch._check(e.dim() == 2 and packed.dim() == 2 and packed.shape[0] == e.shape[1])
    return e.new_empty((e.shape[0], columns))


def _seeded_shape(e: Tensor, key: Tensor, scale: Tensor, columns: int) -> Tensor:
    return e.new_empty((e.shape[0], columns))


# ---- derivatives: of e alone, as the product is linear in it and the rest is fixed


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    e, source, scale, ctx.columns = inputs
    ctx.errors = e.shape[1]
    ctx.save_for_backward(source, scale)


def _packed_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    packed, scale = ctx.saved_tensors
    return _transposed(grad, packed, scale, ctx.columns), None, None, None


def _seeded_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    key, scale = ctx.saved_tensors
    return _transposed(grad, bits.draw(key, ctx.errors, ctx.columns), scale, ctx.columns), None, None, None


def _transposed(grad: Tensor, packed: Tensor, scale: Tensor, columns: int) -> Tensor:
    # Not bits.unpack: its table is a constant, which tracing for torch.compile refuses within a derivative.
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    signs = ((packed.unsqueeze(-1) >> shifts) & 1).flatten(1)[:, :columns].to(grad.dtype) * 2 - 1
    return (grad @ signs.T) * scale.to(grad.dtype)


# ---- torch.func.vmap


def _batched(operator: Any) -> Any:
    def rule(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        if in_dims[1:] == (None, None, None):  # a batch of errors: its rows are rows
            e = inputs[0].movedim(in_dims[0], 0)
            return operator(e.flatten(0, 1), *inputs[1:]).unflatten(0, e.shape[:2]), 0
        each = (
            [x if d is None else x.select(d, i) for x, d in zip(inputs, in_dims, strict=True)]
            for i in range(info.batch_size)
        )
        return torch.stack([operator(*one) for one in each]), 0

    return rule


def _register(operator: Any, everywhere: Any, cpu: Any, shape: Any, backward: Any) -> None:
    name = operator.name()
    _LIBRARY.impl(name, everywhere, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, cpu, "CPU")
    torch.library.register_fake(name, shape, lib=_LIBRARY)
    torch.library.register_autograd(name, backward, setup_context=_keep, lib=_LIBRARY)
    torch.library.register_vmap(name, _batched(operator), lib=_LIBRARY)


_register(_packed_operator, _packed, _packed_cpu, _packed_shape, _packed_backward)
_register(_seeded_operator, _seeded, _seeded_cpu, _seeded_shape, _seeded_backward)
