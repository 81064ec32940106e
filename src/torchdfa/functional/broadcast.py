"""The one autograd node of the library: an error goes from a scope's output directly to every cut activation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from torchdfa.feedback.base import Feedback


def broadcast(output: Tensor, feedbacks: Sequence[Feedback], hidden: Sequence[Tensor]) -> Tensor:
    """Return ``output`` unchanged; backward, its error ``e`` also reaches every ``hidden[k]`` as ``feedbacks[k](e)``.

    Args:
        output: The scope's output, shape (N, ..., K).
        feedbacks: One for each cut activation.
        hidden: The cut activations, shapes (N, H...). Only their shapes and types are kept: none stays in memory,
            unless a feedback reads it to learn.

    Raises:
        ValueError: An activation's shape does not fit its feedback.
    """
    # What several feedbacks receive or read (the input of q, k and v) is one tensor: torch.compile takes none twice.
    tensors: list[Tensor] = []

    def place(tensor: Tensor) -> int:
        for i, other in enumerate(tensors):
            if other is tensor:
                return i
        tensors.append(tensor)
        return len(tensors) - 1

    receivers, reads = [], []
    for feedback, h in zip(feedbacks, hidden, strict=True):
        feedback.check(output.shape, h.shape)
        receivers.append(place(h))
        reads.append(tuple(place(tensor) for tensor in feedback.reads(h, output)))
    result = _Broadcast.apply(output, tuple(feedbacks), tuple(receivers), tuple(reads), *tensors)
    assert isinstance(result, Tensor)
    return result


def _entries(modules: Iterable[nn.Module | None]) -> Iterator[Tensor | None]:
    # Module.buffers() takes several times as long, and this runs in every step.
    for module in modules:
        if module is not None:
            yield from module._buffers.values()
            yield from _entries(module._modules.values())


class _Broadcast(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        output: Tensor,
        feedbacks: tuple[Feedback, ...],
        receivers: tuple[int, ...],
        reads: tuple[tuple[int, ...], ...],
        *tensors: Tensor,
    ) -> Tensor:
        # A detached alias, no view: what follows may change it in place, as nn.ReLU(inplace=True) does.
        return output.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.feedbacks, ctx.receivers, ctx.reads, *tensors = inputs
        ctx.tensors = [(t.shape, t.dtype) for t in tensors]
        ctx.entries = None if torch.compiler.is_compiling() else list(_entries(ctx.feedbacks))
        ctx.kept = sorted({i for read in ctx.reads for i in read})
        ctx.save_for_backward(*(tensors[i] for i in ctx.kept))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (e,) = grad_outputs
        if ctx.entries is not None:
            for before, now in zip(ctx.entries, _entries(ctx.feedbacks), strict=True):
                if before is not now:
                    raise RuntimeError(
                        "the feedback that the forward was given is not the model's own, which the backward pass "
                        "reads: torch.func.functional_call (with stack_module_state and vmap) lends a model other "
                        "buffers for a forward. Leave the feedback's entries (names with '.feedback.') out of "
                        "what is passed, or train the members one by one."
                    )
        kept = dict(zip(ctx.kept, ctx.saved_tensors, strict=True))
        errors: list[Tensor | None] = [None] * len(ctx.tensors)

        def send(i: int, error: Tensor) -> None:
            before = errors[i]
            errors[i] = error if before is None else before + error

        for feedback, i, read in zip(ctx.feedbacks, ctx.receivers, ctx.reads, strict=True):
            shape, dtype = ctx.tensors[i]
            values = [kept[k] for k in read]
            send(i, feedback.carry(e, shape, *values).to(dtype))
            if feedback.learns:
                send(read[0], feedback.gradient(e, *values).to(ctx.tensors[read[0]][1]))
        return e, None, None, None, *errors
