"""``(s · e) @ B`` with ``B`` in ±1, from stored bits and from a seed: the operators, and the ways to call them.

The signs are laid out as :mod:`torchdfa.feedback.bits` says. On the CPU float32 products run in the native library, and
so do bfloat16 and float16 ones, summed in float32. Elsewhere, in float64 and without the library, the bits are unpacked
and multiplied by torch. Calls on plain tensors that nothing watches (no autograd, torch.func, torch.compile, modes) go
to the library at once, since torch's dispatcher costs as much as a small product.

A product of K rows is summed in groups of four rows, chunks of 256 and spans of 4,096, in one order on every machine:
results are the same bit for bit for any number of threads, any instruction set and any batch that a sample is part of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.utils.flop_counter import register_flop_formula

from torchdfa.feedback import bits
from torchdfa.ops import native

_LIBRARY = torch.library.Library("torchdfa", "DEF")
_LIBRARY.define("packed_product(Tensor e, Tensor packed, Tensor scale, int columns) -> Tensor")
_LIBRARY.define("seeded_product(Tensor e, Tensor key, Tensor scale, int columns) -> Tensor")
_packed_operator = torch.ops.torchdfa.packed_product.default
_seeded_operator = torch.ops.torchdfa.seeded_product.default

# Bound once: looking it up in every call shows at small sizes.
_is_compiling = torch.compiler.is_compiling
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
    library = native.kernels
    if library is not None and forward_ad._current_level < 0 and not _is_compiling():
        out = library.packed(e, packed, scale, columns)
        if out is not None:
            return out
    _check(e)
    if packed.shape != (e.shape[1], (columns + 7) // 8) or packed.dtype is not torch.uint8:
        raise ValueError(
            f"packed_product: e of shape {tuple(e.shape)} and {columns} columns need signs of shape "
            f"{(e.shape[1], (columns + 7) // 8)}, uint8; found {tuple(packed.shape)}, {packed.dtype}."
        )
    product = _PackedProduct.apply if _derived(e) else _packed_operator
    return product(e, packed, scale, columns)


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
    library = native.kernels
    if library is not None and forward_ad._current_level < 0 and not _is_compiling():
        out = library.seeded(e, key, scale, columns)
        if out is not None:
            return out
    _check(e)
    if key.dtype is not torch.int64 or key.numel() != 1:
        raise ValueError(f"seeded_product: expected one int64 as the key, found {tuple(key.shape)}, {key.dtype}.")
    product = _SeededProduct.apply if _derived(e) else _seeded_operator
    return product(e, key, scale, columns)


def _derived(e: Tensor) -> bool:
    """Tell whether autograd may want a derivative, backward or forward, of a product that runs now."""
    wanted = forward_ad._current_level >= 0 or (e.requires_grad and torch.is_grad_enabled())
    return wanted and not _is_compiling()


def _check(e: Tensor) -> None:
    if e.dim() != 2 or not e.is_floating_point():
        raise ValueError(f"expected a floating-point error of shape (N, K), found {tuple(e.shape)}, {e.dtype}.")


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
    return _native(library.packed_at, e, packed.contiguous(), scale, columns)


def _seeded_cpu(e: Tensor, key: Tensor, scale: Tensor, columns: int) -> Tensor:
    library = _library_for(e)
    if library is None:
        return _seeded(e, key, scale, columns)
    return _native(library.seeded_at, e, key, scale, columns)


def _library_for(e: Tensor) -> Any:
    if e.dtype not in _NATIVE_TYPES:
        return None
    if native.kernels is None:
        native.warn_once()
    return native.kernels


def _native(product: Callable[..., bool], e: Tensor, source: Tensor, scale: Tensor, columns: int) -> Tensor:
    e32, scale32 = e.to(torch.float32), scale.to(torch.float32)
    if e32.stride(1) != 1:
        e32 = e32.contiguous()
    out = e32.new_empty((e.shape[0], columns))
    at = e32.stride(0), e.shape[1], source.data_ptr(), scale32.data_ptr(), out.data_ptr()
    if not product(e32.data_ptr(), e.shape[0], *at, columns, torch.get_num_threads()):
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
    ctx.save_for_forward(source, scale)


def _packed_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    packed, scale = ctx.saved_tensors
    return _transposed(grads[0], packed, scale, ctx.columns), None, None, None


def _seeded_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    key, scale = ctx.saved_tensors
    return _transposed(grads[0], bits.draw(key, ctx.errors, ctx.columns), scale, ctx.columns), None, None, None


def _packed_forward(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
    packed, scale = ctx.saved_tensors
    return packed_product(tangent, packed, scale, ctx.columns)


def _seeded_forward(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
    key, scale = ctx.saved_tensors
    return seeded_product(tangent, key, scale, ctx.columns)


def _transposed(grad: Tensor, packed: Tensor, scale: Tensor, columns: int) -> Tensor:
    # Not bits.unpack: its table is a constant, which tracing for torch.compile refuses within a derivative.
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    signs = ((packed.unsqueeze(-1) >> shifts) & 1).flatten(1)[:, :columns].to(grad.dtype) * 2 - 1
    return (grad @ signs.T) * scale.to(grad.dtype)


class _PackedProduct(Function):
    """The operator for forward derivatives and those within torch.func, which an operator's registration lacks."""

    generate_vmap_rule = True
    forward = staticmethod(lambda e, packed, scale, columns: _packed_operator(e, packed, scale, columns))
    setup_context = staticmethod(_keep)
    backward = staticmethod(_packed_backward)
    jvp = staticmethod(_packed_forward)


class _SeededProduct(Function):
    """As above, for generated bits."""

    generate_vmap_rule = True
    forward = staticmethod(lambda e, key, scale, columns: _seeded_operator(e, key, scale, columns))
    setup_context = staticmethod(_keep)
    backward = staticmethod(_seeded_backward)
    jvp = staticmethod(_seeded_forward)


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


def _flops(e: Any, source: Any, scale: Any, columns: int, *_: Any, **__: Any) -> int:
    return 2 * e[0] * e[1] * columns  # as counted for a dense product, though the multiplications are only signs


def _register(operator: Any, everywhere: Any, cpu: Any, shape: Any, backward: Any) -> None:
    name = operator.name()
    _LIBRARY.impl(name, everywhere, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, cpu, "CPU")
    torch.library.register_fake(name, shape, lib=_LIBRARY)
    torch.library.register_autograd(name, backward, setup_context=_keep, lib=_LIBRARY)
    torch.library.register_vmap(name, _batched(operator), lib=_LIBRARY)
    register_flop_formula(operator.overloadpacket)(_flops)


_register(_packed_operator, _packed, _packed_cpu, _packed_shape, _packed_backward)
_register(_seeded_operator, _seeded, _seeded_cpu, _seeded_shape, _seeded_backward)
