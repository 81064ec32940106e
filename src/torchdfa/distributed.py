"""Feedback on several processes: the same everywhere, and never sent again."""

from __future__ import annotations

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from torchdfa.baselines import WeightMirror
from torchdfa.convert import conversion_of, is_converted
from torchdfa.feedback.base import Feedback


def share_feedback(model: nn.Module) -> list[str]:
    """Make fixed feedback equal on all processes, once, and have DistributedDataParallel leave it alone from then on.

    DistributedDataParallel sends all buffers from the first process to the others before every forward. Fixed feedback
    never changes, so that this is traffic for nothing: for dense feedback on a small VGG-16 a fifth on top of the
    gradients. Feedback that is learned is a parameter, which is treated as the others are; what
    :func:`torchdfa.mirror` moves goes on being sent.

    Call it on the converted model before that is wrapped. It must be called in every process.

    Args:
        model: Converted, not wrapped yet.

    Returns:
        The buffers' names.
    """
    moving = {
        part.get_submodule(name)._modules.get("feedback")
        for part in model.modules()
        if is_converted(part)
        for name, rule in conversion_of(part).rules.items()
        if isinstance(rule, WeightMirror)
    }
    names = list(
        dict.fromkeys(
            f"{where}.{name}"
            for where, module in model.named_modules()
            if isinstance(module, Feedback) and module not in moving
            for name, _ in module.named_buffers()
        )
    )
    if distributed.is_available() and distributed.is_initialized():
        for name in names:
            distributed.broadcast(model.get_buffer(name), 0)
    known = getattr(model, "_ddp_params_and_buffers_to_ignore", ())
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, [*known, *names])
    return names
