"""Module-wise rules: time of a training step, and error-propagation cost, over back-propagation's.

    python benchmarks/modules.py [--seconds 25] [--json FILE]

All rules of a workload take turns in one process, one thread, medians of CPU time. The peer is plain PyTorch
back-propagation on the same network. Memory is measured by memory.py.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import torchdfa as dfa
from torchdfa.experiments.timing import interleaved
from torchdfa.language import GPT
from torchdfa.models import VGG16, ResNet
from torchdfa.ops.bench import has_bfloat16

CONVOLUTIONAL = {
    "BP": None,
    "HybridDFA groups=1": dfa.HybridDFA(),
    "HybridDFA groups=4": dfa.HybridDFA(groups=4),
    "HybridDFA groups=4 binary": dfa.HybridDFA(groups=4, binary=True),
    "ModuleDFA groups=4": dfa.ModuleDFA(groups=4),
}
RECURRENT = {
    "BP": None,
    "HybridDFA": dfa.HybridDFA(density=0.25),
    "HybridDFA chunk=8": dfa.HybridDFA(density=0.25, chunk=8),
    "ModuleDFA": dfa.ModuleDFA(density=0.25),
    "ModuleDFA chunk=8": dfa.ModuleDFA(density=0.25, chunk=8),
}
TRANSFORMER = {
    "BP": None,
    "HybridDFA inside": dfa.HybridDFA(density=0.25),
    "HybridDFA between": dfa.HybridDFA(direct="between"),
}


class Recurrent(nn.Sequential):
    """Recurrent layers alone, whose outputs are returned."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the outputs of all steps."""
        return self[0](input)[0]


WORKLOADS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor], dict[str, Any], bool]] = {
    "VGG-16-BN, batch 100, float32": (
        lambda: VGG16().build((3, 32, 32), 10),
        lambda: torch.randn(100, 3, 32, 32),
        CONVOLUTIONAL,
        False,
    ),
    "ResNet-20, batch 100, float32": (
        lambda: ResNet().build((3, 32, 32), 10),
        lambda: torch.randn(100, 3, 32, 32),
        {n: r for n, r in CONVOLUTIONAL.items() if "binary" not in n},
        False,
    ),
    "LSTM 2 x 650, 35 steps, batch 20, float32": (
        lambda: Recurrent(nn.LSTM(650, 650, 2)),
        lambda: torch.randn(35, 20, 650),
        RECURRENT,
        False,
    ),
    "LSTM 2 x 650, 35 steps, batch 20, bf16": (
        lambda: Recurrent(nn.LSTM(650, 650, 2)),
        lambda: torch.randn(35, 20, 650),
        RECURRENT,
        True,
    ),
    "LSTM 2 x 256, 64 steps, batch 32, bf16": (
        lambda: Recurrent(nn.LSTM(256, 256, 2)),
        lambda: torch.randn(64, 32, 256),
        RECURRENT,
        True,
    ),
    "GPT 4 x 128, 128 tokens, batch 16, float32": (
        lambda: GPT().build(65),
        lambda: torch.randint(65, (16, 128)),
        TRANSFORMER,
        False,
    ),
}
PROMISES = {
    ("VGG-16-BN, batch 100, float32", "HybridDFA groups=4"): 0.95,
    ("VGG-16-BN, batch 100, float32", "HybridDFA groups=4 binary"): 0.95,
    ("LSTM 2 x 650, 35 steps, batch 20, float32", "ModuleDFA chunk=8"): 0.80,
    ("LSTM 2 x 650, 35 steps, batch 20, bf16", "HybridDFA chunk=8"): 0.80,
    ("LSTM 2 x 650, 35 steps, batch 20, bf16", "ModuleDFA chunk=8"): 0.80,
}


def main() -> None:
    """Run all workloads and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=25, help="budget of each workload")
    parser.add_argument("--only", default="", help="run the workloads whose name contains this")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} thread")
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name in (name for name in WORKLOADS if options.only in name):
        bf16 = WORKLOADS[name][3]
        if bf16 and not has_bfloat16():
            print(f"\n{name}: left out, since oneDNN has no bfloat16 on this processor")
            continue
        results[name] = measure(name, options.seconds)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def measure(workload: str, seconds: float) -> dict[str, dict[str, float]]:
    """Time a step under each rule, and count what it costs to carry its errors; print and return ratios."""
    build, make, rules, bf16 = WORKLOADS[workload]
    torch.manual_seed(0)
    x = make()
    steps, costs = {}, {}
    for name, rule in rules.items():
        model = build()
        if rule is not None:
            dfa.convert(model, rule, example=x[:2])
            cost = dfa.costs(model, x)
            costs[name] = {"products": cost.products / cost.bp_products, "bytes": cost.nbytes / cost.bp_nbytes}
        steps[name] = training_step(model, x, bf16)
    times = interleaved(steps, budget=seconds)
    print(f"\n{workload}")
    found = {}
    for name, spent in times.items():
        found[name] = {
            "ms": 1000 * spent,
            "time": spent / times["BP"],
            **costs.get(name, {"products": 1.0, "bytes": 1.0}),
        }
        promise = PROMISES.get((workload, name))
        note = (
            "" if promise is None else f"   wanted ≤ {promise}" + (" (missed)" if found[name]["time"] > promise else "")
        )
        print(
            f"  {name:26} {found[name]['ms']:8.1f} ms   {found[name]['time']:.3f} × BP   products of errors "
            f"{found[name]['products']:.3f}   bytes {found[name]['bytes']:.3f}{note}"
        )
    return found


def training_step(model: nn.Module, x: torch.Tensor, bf16: bool) -> Callable[[], object]:
    """Return a function that takes one step of SGD with momentum on a batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = model(x)
        y = y.float().flatten(0, -2)
        loss = F.cross_entropy(y, torch.arange(len(y)) % y.shape[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
