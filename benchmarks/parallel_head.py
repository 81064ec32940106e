"""Does a head's update beside the trunk's backward pass save time? VGG-16 on CIFAR's shape, two threads in all.

    python benchmarks/parallel_head.py [--seconds 40] [--csv FILE] [--heads 4096 512] [--batches 1 8 32 100]

With direct feedback nothing that the trunk waits for lies in the head's gradients: its error is made of the output's
alone (Han & Yoo 2019, fig. 3). One step is: forward; errors of head and trunk; the head's gradients and updates; the
trunk's backward pass and update. Candidates differ in when the third part runs, their results are the same:

    autograd        CBDFA as users run it: backward() and torch.optim.SGD(fused=True) on all parameters
    in order        the head's part by OnlineHead's fused update, then the trunk's
    beside, 2 + 1   the head's part in a thread of its own, with 1 intra-op thread, the trunk keeping both
    beside, 2 + 2   the same, both with 2
    beside, 1 + 1   one intra-op thread each, so that nothing is shared out; two again afterwards

Wall-clock time, candidates taking turns, each round beginning with another one; medians and quartiles. `share` is the
head's part within the step in order: more than that can't be gained.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchdfa as dfa
from torchdfa.feedback import PackedFeedback
from torchdfa.models import VGG16
from torchdfa.online.loss import cross_entropy

THREADS, SETTINGS = 2, {"lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4}
GAIN_AIM = 1.05
BESIDE = {"beside, 2 + 1": (2, 1), "beside, 2 + 2": (2, 2), "beside, 1 + 1": (1, 1)}


class Step:
    """A training step of a trunk under autograd and a head with direct feedback, in order or side by side."""

    def __init__(self, net: nn.Sequential, x: Tensor, y: Tensor):
        self.trunk, self.x, self.y = net.get_submodule("features"), x, y
        self.head = dfa.OnlineHead(net.get_submodule("classifier"), rule=dfa.BDFA(), **SETTINGS)  # type: ignore[arg-type]
        self.optimizer = torch.optim.SGD(self.trunk.parameters(), **SETTINGS, fused=True)
        signs = torch.rand(self.head.sizes[-1], self.head.sizes[0]) > 0.5
        self.feedback = PackedFeedback(signs, torch.tensor(0.01))
        self.workers: dict[int, ThreadPoolExecutor] = {}

    def errors(self) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
        """Run forward; return the features, the inputs and errors of the head's layers, and the features' error."""
        features = self.trunk(self.x)
        with torch.no_grad():
            inputs, values, masks = self.head._forward(features.detach())
            _, e = cross_entropy(values.pop(), self.y)
            return features, inputs, self.head._errors(e, values, masks, 0), self.feedback(e)

    @torch.no_grad()
    def update_head(self, errors: list[Tensor], inputs: list[Tensor]) -> None:
        """Do the head's gradients and updates."""
        for i in reversed(range(len(errors))):
            self.head._update(i, errors[i], inputs[i])

    def update_trunk(self, features: Tensor, error: Tensor) -> None:
        """Do the trunk's backward pass and update."""
        self.optimizer.zero_grad()
        features.backward(error)
        self.optimizer.step()

    def in_order(self) -> float:
        """Take a step; return the seconds of the head's part."""
        features, inputs, errors, error = self.errors()
        begin = time.perf_counter()
        self.update_head(errors, inputs)
        seconds = time.perf_counter() - begin
        self.update_trunk(features, error)
        return seconds

    def beside(self, main: int, worker: int) -> None:
        """Take a step with the head's part in a thread, with so many intra-op threads each."""
        features, inputs, errors, error = self.errors()
        if worker not in self.workers:  # the number is a thread's own
            self.workers[worker] = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(worker,))
        done = self.workers[worker].submit(self.update_head, errors, inputs)
        if main != THREADS:
            torch.set_num_threads(main)
        self.update_trunk(features, error)
        done.result()
        if main != THREADS:
            torch.set_num_threads(THREADS)


def autograd_step(net: nn.Sequential, x: Tensor, y: Tensor) -> Callable[[], object]:
    """Return a step of CBDFA by autograd alone."""
    dfa.convert(net, dfa.CBDFA(), example=x[:1])
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], **SETTINGS, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def check(width: int) -> None:
    """Raise unless a step side by side changes a network as the step in order does."""
    x, y = torch.randn(4, 3, 32, 32), torch.arange(4)
    found = []
    for take in (Step.in_order, partial(Step.beside, main=2, worker=1)):
        torch.manual_seed(1)
        net = VGG16(width=0.1, head=(width, width)).build((3, 32, 32), 10)
        step = Step(net, x, y)
        for _ in range(3):
            take(step)
        found.append(list(net.parameters()))
    torch.testing.assert_close(*found)


def measure(width: int, batch: int, seconds: float) -> tuple[dict[str, list[float]], float]:
    """Return the seconds of every candidate's steps, and the head's share of the step in order."""
    torch.manual_seed(0)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    build = partial(VGG16(head=(width, width)).build, (3, 32, 32), 10)
    step = Step(build(), x, y)
    heads: list[float] = []
    candidates: dict[str, Callable[[], object]] = {
        "autograd": autograd_step(build(), x, y),
        "in order": lambda: heads.append(step.in_order()),
        **{name: partial(step.beside, *threads) for name, threads in BESIDE.items()},
    }
    for candidate in candidates.values():
        for _ in range(2):
            candidate()
    heads.clear()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    order, end = list(candidates), time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[order[0]]) < 5:
        for name in order:
            begin = time.perf_counter()
            candidates[name]()
            times[name].append(time.perf_counter() - begin)
        order = [*order[1:], order[0]]
    return times, statistics.median(heads) / statistics.median(times["in order"])


def main() -> None:
    """Measure all sizes, print a line each and what was gained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40, help="budget of each size")
    parser.add_argument("--csv", type=Path, help="also write the figures here")
    parser.add_argument("--heads", type=int, nargs="+", default=[4096, 512])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 100])
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    for width in options.heads:
        check(width // 4)
    rows = []
    print(f"torch {torch.__version__}, {THREADS} threads, native path {dfa.ops.path()}")
    for width in options.heads:
        for batch in options.batches:
            times, share = measure(width, batch, options.seconds)
            before = statistics.median(times["in order"])
            print(
                f"\nhead {width}-{width}-10, batch {batch}: the head's part is {100 * share:.1f} % of the step in order"
            )
            for name, each in times.items():
                low, middle, high = statistics.quantiles(each, n=4)
                gain = before / middle
                note = "   gained" if name in BESIDE and gain >= GAIN_AIM else ""
                print(
                    f"  {name:14} {1000 * middle:8.1f} ms ({1000 * low:.1f} to {1000 * high:.1f})   in order / this "
                    f"{gain:.3f}{note}",
                    flush=True,
                )
                numbers = [f"{1000 * value:.2f}" for value in (middle, low, high)]
                rows.append((width, batch, name, *numbers, len(each), f"{share:.4f}"))
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("head", "batch", "candidate", "ms", "ms_quarter", "ms_three_quarters", "steps", "share"))
            writer.writerows(rows)


if __name__ == "__main__":
    main()
