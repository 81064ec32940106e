"""Fair timing: candidates take turns in one process, and medians of CPU time are compared."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchdfa.ops.bench import rounds


def interleaved(candidates: Mapping[str, Callable[[], object]], *, budget: float, least: int = 5) -> dict[str, float]:
    """Return the median CPU seconds of each candidate.

    All threads of the process count, so set one thread for times that can be compared with wall time. One round calls
    every candidate once, each time beginning with another, since a step's time depends on what the one before it left
    in caches and allocator; rounds go on until ``budget`` seconds are spent and ``least`` rounds done.

    Args:
        candidates: Functions without arguments, by name.
        budget: Seconds, for all candidates together.
        least: Rounds.
    """
    times = rounds(candidates, budget, threads=1, least=least, shortest=0.0)
    return {name: statistics.median(values) for name, values in times.items()}


def training_step(
    model: nn.Module, x: Tensor, y: Tensor, *, lr: float = 1e-4, bf16: bool = False
) -> Callable[[], object]:
    """Return a function that takes one step of SGD with momentum on a batch: forward, backward, update."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
