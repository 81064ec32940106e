"""The tracker's classifier: fully connected layers that say target or background."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchdfa.data.errors import DataError
from torchdfa.online import OnlineHead
from torchdfa.online.layers import new_linear
from torchdfa.rules import Rule
from torchdfa.tracking.config import TrackerConfig

BACKGROUND, TARGET = 0, 1
# Of a last layer that begins anew; of the others, where nothing was pre-trained, He et al. 2015.
_LAST_STD = 0.01


def build_layers(
    features: int, config: TrackerConfig, generator: torch.Generator, state: dict[str, Tensor] | None = None
) -> nn.Sequential:
    """Return fc4, fc5, … with ReLU and dropout, and a new last layer of two classes.

    Args:
        features: Of a pooled box.
        config: Names the widths and the dropout.
        generator: Of the random weights.
        state: Pre-trained weights of all layers but the last, ``fc4.weight``, …

    Raises:
        DataError: The weights are of another shape.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    sizes = (features, *config.hidden, 2)
    for i in range(len(sizes) - 1):
        name = f"fc{4 + i}"
        inputs, outputs, last = sizes[i], sizes[i + 1], i == len(sizes) - 2
        if i and config.dropout:
            layers[f"dropout{4 + i}"] = nn.Dropout(config.dropout)
        if state is None or last:
            layers[name] = new_linear(inputs, outputs, generator, _LAST_STD if last else None)
        else:
            layers[name] = _trained_linear(inputs, outputs, name, state)
        if not last:
            layers[f"relu{4 + i}"] = nn.ReLU()
    return nn.Sequential(layers)


@torch.no_grad()
def _trained_linear(inputs: int, outputs: int, name: str, state: dict[str, Tensor]) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    for part, own in linear.named_parameters():
        found = state.get(f"{name}.{part}")
        if found is None or found.shape != own.shape:
            shape = None if found is None else tuple(found.shape)
            raise DataError(
                f"the pre-trained head's {name}.{part} is {shape}, expected {tuple(own.shape)}: it was "
                "made for another backbone, other layers or other widths."
            )
        own.copy_(found)
    return linear


def build_head(
    features: int, config: TrackerConfig, generator: torch.Generator, state: dict[str, Tensor] | None
) -> OnlineHead:
    """Return the head for one target: a new last layer, and feedback made for it."""
    net = build_layers(features, config, generator, state)
    return OnlineHead(
        net,
        rule=_seeded(config.rule, config.seed),
        lr=config.first_lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        clip=config.clip or None,
        seed=config.seed,
    )


def rates(lr: float, config: TrackerConfig) -> tuple[float, ...]:
    """Return the learning rate of each layer; the last one's is ``last_lr`` times that of the others."""
    return (*(lr for _ in config.hidden), lr * config.last_lr)


def _seeded(rule: Rule, seed: int) -> Rule:
    fields: Any = rule
    return dataclasses.replace(fields, seed=fields.seed + seed) if hasattr(rule, "seed") else rule


def read_head(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read pre-trained layers and what was written beside them: backbone, layers, the sequences they have seen.

    Raises:
        DataError: The file can't be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as a pre-trained head ({error}).") from error
