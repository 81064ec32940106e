"""The worked examples of training steps, and loading any other network by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

import torchdfa as dfa
from torchdfa.hardware.chip import Chip
from torchdfa.hardware.rows import Stepped
from torchdfa.hardware.step import StepCost, step
from torchdfa.models import VGG16
from torchdfa.rules import Rule
from torchdfa.structure import CONVOLUTIONS


def _fc(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for below, above in pairwise(widths):
        layers += [nn.Linear(below, above), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


NETWORKS: dict[str, tuple[str, Callable[[], nn.Module], tuple[int, ...], int]] = {
    "vgg16": ("VGG-16 on CIFAR-10", lambda: VGG16().build((3, 32, 32), 10), (3, 32, 32), 32),
    "tracker-head": ("MDNet's head 4608-512-512-2", lambda: _fc(4608, 512, 512, 2), (4608,), 128),
    "fc-head": (
        "VGG's ImageNet head 25088-4096-4096-1000",
        lambda: _fc(25088, 4096, 4096, 1000),
        (25088,),
        32,
    ),
}
RULES: dict[str, Rule] = {
    "BP": dfa.BP(),
    "FA": dfa.FA(scale="unit"),
    "DFA": dfa.DFA(scale="unit"),
    "BDFA, stored": dfa.BDFA(scale="unit"),
    "BDFA, generated": dfa.BDFA(scale="unit", storage="seeded", generator="lfsr"),
    "CDFA": dfa.CDFA(scale="unit"),
    "CBDFA, stored": dfa.CBDFA(scale="unit"),
    "CBDFA, generated": dfa.CBDFA(scale="unit", storage="seeded", generator="lfsr"),
    "HybridDFA, 4 groups": dfa.HybridDFA(groups=4),
    "HybridDFA, 4 groups, binary": dfa.HybridDFA(groups=4, binary=True),
}
_FOR_CONVOLUTIONS = ("CDFA", "CBDFA", "HybridDFA")


def load_network(name: str, batch: int | None = None) -> tuple[nn.Module, Tensor]:
    """Return a network and an input: a worked example, or what ``package.module:function`` returns of both.

    Raises:
        ValueError: There is none of that name; ``batch`` is none.
    """
    if batch is not None and batch < 1:
        raise ValueError(f"batch={batch}, expected at least 1.")
    if name in NETWORKS:
        _, build, shape, own = NETWORKS[name]
        with torch.random.fork_rng(devices=[]):
            return build(), torch.zeros(batch or own, *shape)
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(
            f"no network {name!r}: one of {', '.join(NETWORKS)}, or package.module:function, a function that "
            "returns a network and an input of it."
        )
    if batch is not None:
        raise ValueError(f"network {name!r} makes its own input: leave batch={batch} out, and change the function.")
    if "" not in sys.path:  # as python -m has it, and an installed command has not: the current folder
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"network {name!r}: {error}") from error
    model, x = found if isinstance(found, tuple) and len(found) == 2 else (None, None)
    if not isinstance(model, nn.Module) or not isinstance(x, Tensor):
        raise ValueError(f"network {name!r} returned {type(found).__name__}, expected (torch.nn.Module, torch.Tensor).")
    return model, x


def steps(
    name: str, chip: Chip, rules: list[str], batch: int | None = None
) -> Iterator[tuple[StepCost, list[Stepped]]]:
    """Yield the cost of a step under each rule, and its rows; rules for convolutions only where there are some.

    Raises:
        ValueError: A rule or the network is unknown.
    """
    for label in rules:
        if label not in RULES:
            raise ValueError(f"no rule {label!r}: {', '.join(map(repr, RULES))}.")
    model, x = load_network(name, batch)
    convolutional = any(isinstance(m, CONVOLUTIONS) for m in model.modules())
    for label in rules:
        if label.startswith(_FOR_CONVOLUTIONS) and not convolutional:
            continue
        cost = step(model, RULES[label], x, chip=chip)
        rows = [
            Stepped(
                name, chip.name, label, cost.batch, c.layer, c.phase, c.unit, c.macs, c.adds, c.sram_bytes,
                c.dram_bytes, c.feedback_bytes, c.compute_pj, c.sram_pj, *c.dram_pj, c.cycles, cost.period,
                cost.pipelined,
            )
            for c in cost.costs
        ]  # fmt: skip
        yield cost, rows
