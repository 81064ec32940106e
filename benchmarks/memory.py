"""Peak memory of a VGG-16 training step under CDFA and CBDFA over back-propagation's, each in a process of its own.

    python benchmarks/memory.py

The figure is the rise of the process's resident memory from before the first step to its highest during five steps, so
that the interpreter and the libraries don't count.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics

PROMISE = 1.05
RULES = ("BP", "DFA", "CDFA", "CBDFA")


def peak(name: str) -> int:
    """Return the rise of resident memory, in bytes, over five training steps."""
    import psutil
    import torch

    import torchdfa as dfa
    from torchdfa.experiments.timing import training_step
    from torchdfa.models import VGG16

    torch.set_num_threads(1)
    x, y = torch.randn(100, 3, 32, 32), torch.randint(0, 10, (100,))
    # A first small step loads the kernels' code.
    training_step(VGG16(width=0.1).build((3, 32, 32), 10), x[:4], y[:4])()
    before = psutil.Process().memory_info().rss
    model = VGG16().build((3, 32, 32), 10)
    if name != "BP":
        rule = {"DFA": dfa.DFA(), "CDFA": dfa.CDFA(init="product"), "CBDFA": dfa.CBDFA(init="product")}[name]
        dfa.convert(model, rule, example=x[:1])
    step = training_step(model, x, y)
    for _ in range(5):
        step()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def main() -> None:
    """Measure five times, in turn, and print medians and ratios."""
    # Blocks that are freed go back to the system at once: resident memory is then what is in use.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    found: dict[str, list[int]] = {name: [] for name in RULES}
    context = multiprocessing.get_context("spawn")
    for _ in range(5):
        for name in RULES:
            with context.Pool(1) as pool:
                found[name].append(pool.apply(peak, (name,)))
    medians = {name: statistics.median(values) for name, values in found.items()}
    print("VGG-16-BN, batch 100, float32, one thread: peak memory of a training step")
    for name, value in medians.items():
        note = f"   promised ≤ {PROMISE}" if name in ("CDFA", "CBDFA") else ""
        print(f"  {name:6} {value / 2**20:8.0f} MiB   {value / medians['BP']:.3f} × BP{note}")


if __name__ == "__main__":
    main()
