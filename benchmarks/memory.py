"""Peak memory of a VGG-16 training step under the rules over back-propagation's, each in a process of its own.

    python benchmarks/memory.py [--rounds 5] [--json FILE]

The figure is the rise of the process's resident memory from before the first step to its highest during five steps, so
that the interpreter and the libraries don't count.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import resource
import statistics
from pathlib import Path

import torchdfa as dfa

RULES = {
    "BP": None,
    "DFA": dfa.DFA(),
    "CDFA": dfa.CDFA(init="product"),
    "CBDFA": dfa.CBDFA(init="product"),
    "HybridDFA groups=4": dfa.HybridDFA(groups=4),
    "HybridDFA groups=4 binary": dfa.HybridDFA(groups=4, binary=True),
    "ModuleDFA groups=4": dfa.ModuleDFA(groups=4),
}
PROMISES = {"CDFA": 1.05, "CBDFA": 1.05, **dict.fromkeys([n for n in RULES if "groups" in n], 1.005)}


def peak(name: str) -> int:
    """Return the rise of resident memory, in bytes, over five training steps."""
    import psutil
    import torch

    from torchdfa.experiments.timing import training_step
    from torchdfa.models import VGG16

    torch.set_num_threads(1)
    x, y = torch.randn(100, 3, 32, 32), torch.randint(0, 10, (100,))
    # A first small step under each rule loads what code it takes to convert and to train.
    for rule in RULES.values():
        small = VGG16(width=0.125).build((3, 32, 32), 10)
        if rule is not None:
            dfa.convert(small, rule, example=x[:1])
        training_step(small, x[:4], y[:4])()
    del small
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the small steps left is no one's
    before = psutil.Process().memory_info().rss
    model = VGG16().build((3, 32, 32), 10)
    rule = RULES[name]
    if rule is not None:
        dfa.convert(model, rule, example=x[:1] if name == "DFA" else None)
    step = training_step(model, x, y)
    for _ in range(5):
        step()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def main() -> None:
    """Measure in turn, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    # Blocks that are freed go back to the system at once: resident memory is then what is in use.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    found: dict[str, list[int]] = {name: [] for name in RULES}
    context = multiprocessing.get_context("spawn")
    for _ in range(options.rounds):
        for name in RULES:
            with context.Pool(1) as pool:
                found[name].append(pool.apply(peak, (name,)))
    medians = {name: statistics.median(values) for name, values in found.items()}
    print("VGG-16-BN, batch 100, float32, one thread: peak memory of a training step")
    for name, value in medians.items():
        ratio, promise = value / medians["BP"], PROMISES.get(name)
        note = f"   promised ≤ {promise:g}" + (" (missed)" if ratio > promise else "") if promise else ""
        print(f"  {name:26} {value / 2**20:8.0f} MiB   {ratio:.3f} × BP{note}")
    if options.json:
        figures = {name: {"MiB": value / 2**20, "memory": value / medians["BP"]} for name, value in medians.items()}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
