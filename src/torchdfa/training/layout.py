"""Memory layout of convolutional networks: the faster one for each convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Below this height or width of its input map, a convolution is faster with contiguous maps on a CPU: 2.07 × instead of
# 1.87 × plain float32 for a VGG-16 step in bf16 (benchmarks/throughput.py).
_SMALL_MAP = 8


def lay_out(network: nn.Module, example: Tensor, device: torch.device) -> None:
    """Store convolutions channels-last, in place; on a CPU those of small maps stay contiguous.

    Args:
        network: Any network that starts from images laid out channels-last.
        example: A batch of images, shape (N, C, H, W), to learn the maps' sizes from.
        device: Where the network will run.
    """
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    sizes: dict[nn.Module, int] = {}

    def note(layer: nn.Module, arguments: Any) -> None:
        sizes[layer] = min(arguments[0].shape[-2:])

    handles = [m.register_forward_pre_hook(note) for m in convolutions]
    training = network.training
    with torch.no_grad():
        network.eval()(example)
    network.train(training)
    for handle in handles:
        handle.remove()
    for layer in convolutions:
        small = device.type == "cpu" and sizes[layer] < _SMALL_MAP
        layer.weight.data = layer.weight.data.contiguous(
            memory_format=torch.contiguous_format if small else torch.channels_last
        )
        if small:
            layer.register_forward_pre_hook(_contiguous)


def _contiguous(layer: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (arguments[0].contiguous(), *arguments[1:])
