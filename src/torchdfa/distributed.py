"""Feedback on several processes: the same everywhere, and never sent again."""

from __future__ import annotations

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from torchdfa.feedback.base import Feedback


def share_feedback(model: nn.Module) -> list[str]:
    """Make fixed feedback equal on all processes, once, and have DistributedDataParallel leave it alone from then on.

    DistributedDataParallel sends all buffers from the first process to the others before every forward. Fixed feedback
    never changes, so that this is traffic for nothing: for dense feedback on a small VGG-16 a fifth on top of the
    gradients. Feedback that is learned is a parameter, which is treated as the others are.

    Call it on the converted model before that is wrapped. It must be called in every process.

    Args:
        model: Converted, not wrapped yet.

    Returns:
        The buffers' names.
    """
    names: list[str] = []
    for where, module in model.named_modules():
        if isinstance(module, Feedback):
            names += [f"{where}.{name}" for name, _ in module.named_buffers()]
    if distributed.is_available() and distributed.is_initialized():
        for name in names:
            distributed.broadcast(model.get_buffer(name), 0)
    known = getattr(model, "_ddp_params_and_buffers_to_ignore", ())
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, [*known, *names])
    return names
