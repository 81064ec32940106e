"""The one autograd node of the library: an error goes from a scope's output directly to every cut activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.autograd import Function

from torchdfa.feedback.base import Feedback


def broadcast(output: Tensor, feedbacks: Sequence[Feedback], hidden: Sequence[Tensor]) -> Tensor:
    """Return ``output`` unchanged; backward, its error ``e`` also reaches every ``hidden[k]`` as ``feedbacks[k](e)``.

    Args:
        output: The scope's output, shape (N, ..., K).
        feedbacks: One for each cut activation.
        hidden: The cut activations, shapes (N, H...). Only their shapes and types are kept: none stays in memory.

    Raises:
        ValueError: An activation's shape does not fit its feedback.
    """
    for feedback, h in zip(feedbacks, hidden, strict=True):
        feedback.check(output.shape, h.shape)
    # Layers that share an input (q, k and v) are one activation here: torch.compile takes no tensor twice.
    distinct: list[Tensor] = []
    receivers: list[int] = []
    for h in hidden:
        known = [i for i, other in enumerate(distinct) if other is h]
        receivers.append(known[0] if known else len(distinct))
        distinct += [] if known else [h]
    result = _Broadcast.apply(output, tuple(feedbacks), tuple(receivers), *distinct)
    assert isinstance(result, Tensor)
    return result


class _Broadcast(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(output: Tensor, feedbacks: tuple[Feedback, ...], receivers: tuple[int, ...], *hidden: Tensor) -> Tensor:
        # A detached alias, no view: what follows may change it in place, as nn.ReLU(inplace=True) does.
        return output.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.feedbacks, ctx.receivers, *hidden = inputs
        ctx.hidden = [(h.shape, h.dtype) for h in hidden]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (e,) = grad_outputs
        errors: list[Tensor | None] = [None] * len(ctx.hidden)
        for feedback, i in zip(ctx.feedbacks, ctx.receivers, strict=True):
            shape, dtype = ctx.hidden[i]
            error, before = feedback.carry(e, shape).to(dtype), errors[i]
            errors[i] = error if before is None else before + error
        return e, None, None, *errors
