"""Momentum in bfloat16 beside float32: time of the update of a weight, and what it does to learning.

    python benchmarks/short_momentum.py [--rounds 30]

Times are medians of CPU time of one thread, the two taking turns. Learning is that of an OnlineHead on the digits of
scikit-learn: five passes in batches of 8, five seeds, weights, order and rate being the same.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import torch

import torchdfa as dfa
from torchdfa import ops
from torchdfa.data import load

TYPES = (torch.float32, torch.bfloat16)
SEEDS = 5


def main() -> None:
    """Measure both and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="updates of each kind")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, one thread, path {ops.path()}")
    update(options.rounds)
    learning()


def update(rounds: int) -> None:
    """Print how long the update of a large weight takes with each kind of momentum."""
    weight = torch.randn(4096, 4096)
    momenta = [torch.zeros_like(weight, dtype=dtype) for dtype in TYPES]
    print("\nupdate of a weight of 4096 × 4096, ms: float32, bfloat16, ratio")
    for batch in (1, 8, 32):
        x, error = torch.randn(batch, 4096), torch.randn(batch, 4096)
        times: list[list[float]] = [[], []]
        for _ in range(rounds):
            for velocity, kept in zip(momenta, times, strict=True):
                begin = time.process_time()
                ops.sgd_update(weight, velocity, error, x, lr=1e-6, momentum=0.9, decay=5e-4)
                kept.append(time.process_time() - begin)
        long, short = (1000 * statistics.median(kept) for kept in times)
        print(f"  batch {batch:2}  {long:5.1f}  {short:5.1f}  {long / short:.2f}")


def learning() -> None:
    """Print test accuracies, their spread over seeds, and the mean of the seeds' differences with its spread."""
    print("\ntest top-1 in %, 64-128-128-10 on digits, momentum 0.9: float32, bfloat16, difference")
    for name, rule in {"BP": dfa.BP(), "BDFA": dfa.BDFA(init="product")}.items():
        for lr in (0.001, 0.003, 0.01):
            long, short = ([score(rule, lr, dtype, seed) for seed in range(SEEDS)] for dtype in TYPES)
            apart = [b - a for a, b in zip(long, short, strict=True)]
            texts = (f"{statistics.mean(v):6.2f} ± {statistics.stdev(v):.2f}" for v in (long, short, apart))
            print(f"  {name:4} rate {lr:<5g}", *texts, sep="  ", flush=True)


def score(rule: dfa.Rule, lr: float, dtype: torch.dtype, seed: int) -> float:
    """Return the test top-1 of a head after five passes, in percent."""
    digits = load("digits")
    (x, y), (test_x, test_y) = ((s.images.flatten(1) / 255, s.labels) for s in (digits.train, digits.test))
    head = dfa.OnlineHead((64, 128, 128, 10), rule=rule, lr=lr, momentum=0.9, momentum_dtype=dtype, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(5):
        for batch in torch.randperm(len(x), generator=generator).split(8):
            head.step(x[batch], y[batch])
    return 100 * (head.predict(test_x) == test_y).double().mean().item()


if __name__ == "__main__":
    main()
