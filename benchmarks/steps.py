"""Time of a training step over that of back-propagation, in one process, interleaved, one thread, medians of CPU time.

    python benchmarks/steps.py [--seconds 40] [--json FILE]

The peer is plain PyTorch back-propagation on the same network; where biotorch is installed
(``pip install --no-deps biotorch``), its DFA runs beside ours.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import torchdfa as dfa
from torchdfa.experiments.timing import interleaved, training_step
from torchdfa.models import MLP, VGG16

# Workload, candidate, largest ratio to plain back-propagation that we promise.
PROMISES = {
    ("MLP 784-1000-1000-1000-10, batch 128", "DFA"): 0.80,
    ("MLP 784-1000-1000-1000-10, batch 128", "BDFA"): 0.80,
    ("VGG-16-BN, batch 100", "DFA"): 0.82,
    ("VGG-16-BN, batch 100", "CDFA"): 1.03,
    ("VGG-16-BN, batch 100", "CBDFA"): 1.03,
}
SMALL = "MLP 16-16-16-16-10, batch 32: hidden cost"
SMALL_PROMISE_MS = 0.15
RULES = {
    "BP": None,
    "FA": dfa.FA(),
    "DFA": dfa.DFA(),
    "BDFA": dfa.BDFA(),
    "BDFA seeded": dfa.BDFA(storage="seeded"),
    "CDFA": dfa.CDFA(init="product"),
    "CBDFA": dfa.CBDFA(init="product"),
}


def main() -> None:
    """Run all workloads and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40, help="budget of each workload")
    parser.add_argument("--json", type=Path, help="also write the ratios here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results: dict[str, dict[str, float]] = {}
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} thread")

    mlp = "MLP 784-1000-1000-1000-10, batch 128"
    build = lambda: MLP().build((1, 28, 28), 10)  # noqa: E731
    results[mlp] = measure(mlp, build, ["BP", "FA", "DFA", "BDFA", "BDFA seeded"], (128, 1, 28, 28), options.seconds)
    vgg = "VGG-16-BN, batch 100"
    build = lambda: VGG16().build((3, 32, 32), 10)  # noqa: E731
    results[vgg] = measure(vgg, build, ["BP", "DFA", "BDFA", "CDFA", "CBDFA"], (100, 3, 32, 32), 3 * options.seconds)
    build = lambda: MLP(hidden=(16, 16, 16)).build((1, 4, 4), 10)  # noqa: E731
    results[SMALL] = measure(SMALL, build, ["BP", "DFA", "BDFA", "BDFA seeded"], (32, 1, 4, 4), options.seconds / 4)

    failed = [key for key, most in PROMISES.items() if results[key[0]][key[1]] / results[key[0]]["BP"] > most]
    extra = 1000 * (results[SMALL]["DFA"] - results[SMALL]["BP"])
    failed += [(SMALL, "DFA")] if extra > SMALL_PROMISE_MS else []
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(
        f"\npromises kept: {len(PROMISES) + 1 - len(failed)} of {len(PROMISES) + 1}"
        + "".join(f"\n  not kept: {f}" for f in failed)
    )


def measure(
    workload: str, build: Callable[[], nn.Sequential], rules: list[str], shape: tuple[int, ...], seconds: float
) -> dict[str, float]:
    """Time a step of each rule on fresh copies of a network; print and return the medians, in seconds."""
    x, y = torch.randn(shape), torch.randint(0, 10, shape[:1])
    steps: dict[str, Callable[[], object]] = {}
    for name in rules:
        rule, model = RULES[name], build()
        steps[name] = training_step(model if rule is None else dfa.convert(model, rule, example=x[:1]), x, y)
    peer = biotorch_step(build(), x, y)
    if peer is not None:
        steps["biotorch DFA"] = peer
    times = interleaved(steps, budget=seconds)
    print(f"\n{workload}")
    for name, seconds_a_step in times.items():
        promise = PROMISES.get((workload, name))
        note = f"   promised ≤ {promise}" if promise else ""
        note = f"   promised ≤ +{SMALL_PROMISE_MS} ms" if (workload, name) == (SMALL, "DFA") else note
        more = 1000 * (seconds_a_step - times["BP"])
        print(
            f"  {name:13} {1000 * seconds_a_step:9.3f} ms   {seconds_a_step / times['BP']:.3f} × BP   {more:+.3f} "
            f"ms{note}"
        )
    return times


def biotorch_step(model: nn.Sequential, x: torch.Tensor, y: torch.Tensor) -> Callable[[], object] | None:
    """Return biotorch's DFA step for a network, or None where it is not installed or can't take it."""
    try:
        from biotorch.module.biomodule import BioModule  # type: ignore[import-not-found]
    except ImportError:
        return None
    peer = BioModule(model, mode="dfa", output_dim=10)
    optimizer = torch.optim.SGD([p for p in peer.parameters() if p.requires_grad], lr=1e-4, momentum=0.9)

    def step() -> None:
        logits = peer(x, y, F.cross_entropy)
        loss = F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    try:
        step()
    except Exception as error:
        print(f"biotorch does not run here: {type(error).__name__}: {error}")
        return None
    return step


if __name__ == "__main__":
    main()
