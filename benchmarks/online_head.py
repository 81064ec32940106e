"""A step of OnlineHead over autograd and torch.optim.SGD(fused=True): time, memory, and where the time goes.

    python benchmarks/online_head.py [--seconds 12] [--csv FILE]

Every candidate is the same network with momentum and weight decay, one thread; candidates take turns in one process,
medians of CPU time. All is measured twice, in processes without and with THP_MEM_ALLOC_ENABLE=1: then torch asks for
huge pages, which spares autograd most page faults on gradients that it allocates anew in every step. Memory is resident
memory of a process of its own, over that before the network was made (Linux).
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

LARGE, TRACKER = (4096, 4096, 4096, 1000), (4608, 512, 512, 2)
# Sizes, batch, and the steps that a candidate takes at each turn: a tracker updates its small head in runs of 10 and
# more, and finds it in the cache.
WORKLOADS = ((LARGE, 1, 1), (LARGE, 8, 1), (LARGE, 32, 1), (TRACKER, 32, 5), (TRACKER, 128, 5))
RULES = ("BP", "DFA", "BDFA")
PEER = "autograd"
SETTINGS = {"lr": 1e-6, "momentum": 0.9, "weight_decay": 5e-4}
# Workload, batch, numerator, denominator, least ratio of their times that we promise, without huge pages.
PROMISES = (
    (LARGE, 1, PEER, "torch BDFA", 2.0),
    (LARGE, 8, PEER, "torch BDFA", 1.8),
    (LARGE, 32, PEER, "torch BDFA", 1.6),
    (LARGE, 1, PEER, "native BDFA", 3.2),
    (LARGE, 8, PEER, "native BDFA", 3.5),
    (LARGE, 32, PEER, "native BDFA", 2.4),
    (LARGE, 1, "native BP", "native BDFA", 1.1),
    (LARGE, 8, "native BP", "native BDFA", 1.2),
    (LARGE, 32, "native BP", "native BDFA", 1.2),
    (TRACKER, 32, PEER, "native BDFA", 1.5),
)
MEMORY_PROMISE = 0.6
SHORT = "BDFA, short momentum"  # in bfloat16


def main() -> None:
    """Measure in child processes and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12, help="budget of each workload, once for each setting")
    parser.add_argument("--csv", type=Path, help="also write all figures here")
    parser.add_argument("--only", choices=("time", "memory"), help="measure just this; by default both")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(times(options.seconds)))
        return
    found: dict[str, list[dict[str, Any]]] = {}
    for pages in ("default", "huge pages") if options.only != "memory" else ():
        environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
        environment |= {"THP_MEM_ALLOC_ENABLE": "1"} if pages == "huge pages" else {}
        command = [sys.executable, __file__, "--child", "--seconds", str(options.seconds)]
        out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        found[pages] = json.loads(out.splitlines()[-1])
        show_times(pages, found[pages])
    kept = [check(found["default"], *promise) for promise in PROMISES] if found else []
    peaks = memory() if options.only != "time" else {}
    kept += [show_memory(peaks)] if peaks else []
    print(f"\npromises kept: {sum(kept)} of {len(kept)}")
    if options.csv:
        write(options.csv, found, peaks)


def times(seconds: float) -> list[dict[str, Any]]:
    """Return the median CPU seconds of each candidate on each workload."""
    import torch
    from torch.nn import functional as F

    import torchdfa as dfa
    from torchdfa import ops
    from torchdfa.experiments.timing import interleaved
    from torchdfa.online.loss import cross_entropy

    torch.set_num_threads(1)
    rules = {"BP": dfa.BP(), "DFA": dfa.DFA(init="product"), "BDFA": dfa.BDFA(init="product")}
    rules[SHORT] = rules["BDFA"]
    paths = {"torch": "torch"} | ({"native": ops.PATHS[0]} if ops.PATHS[0] != "torch" else {})
    rows = []
    for sizes, batch, steps in WORKLOADS:
        torch.manual_seed(0)
        x, y = torch.randn(batch, sizes[0]).relu(), torch.randint(0, sizes[-1], (batch,))
        net = dfa.OnlineHead(sizes, lr=0.0).net
        optimizer = torch.optim.SGD(net.parameters(), **SETTINGS, fused=True)

        def autograd(net=net, optimizer=optimizer, x=x, y=y) -> None:
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()

        candidates: dict[str, Callable[[], object]] = {PEER: partial(repeat, steps, "torch", autograd)}
        for name, rule in rules.items():
            head = dfa.OnlineHead(
                sizes, rule=rule, momentum_dtype=torch.bfloat16 if name == SHORT else None, **SETTINGS
            )
            with torch.no_grad():
                inputs, values, masks = head._forward(x)
                _, e = cross_entropy(values.pop(), y)
            for path, choice in paths.items():
                candidates[f"{path} {name}"] = partial(repeat, steps, choice, head.step, x, y)
                errors = torch.no_grad()(partial(head._errors, e, values, masks, 0))
                candidates[f"{path} {name}: errors"] = partial(repeat, steps, choice, errors)
            if name == "BP":
                candidates["forward"] = partial(repeat, steps, "torch", torch.no_grad()(head._forward), x)
        medians = {name: t / steps for name, t in interleaved(candidates, budget=seconds).items()}
        rows.append({"sizes": list(sizes), "batch": batch, "seconds": medians, "path": paths.get("native", "none")})
        del candidates, head, net, optimizer, inputs, values
    return rows


def repeat(times: int, path: str, call: Callable[..., object], *arguments: Any) -> None:
    """Call something several times on a path of torchdfa.ops."""
    from torchdfa import ops

    ops.choose(path)
    for _ in range(times):
        call(*arguments)


def show_times(pages: str, rows: list[dict[str, Any]]) -> None:
    """Print a table for each workload."""
    import torch

    if pages == "default":
        print(f"torch {torch.__version__}, {platform.machine()}, one thread, native path {rows[0]['path']}")
    for row in rows:
        seconds = row["seconds"]
        print(f"\n{'-'.join(map(str, row['sizes']))}, batch {row['batch']}, {pages}")
        for name, value in seconds.items():
            if name.endswith("errors"):
                continue
            line = f"  {name:27} {1000 * value:9.3f} ms   {seconds[PEER] / value:5.2f} × as fast as autograd"
            if f"{name}: errors" in seconds:
                line += f"   errors {100 * seconds[f'{name}: errors'] / value:4.1f} % of it"
            print(line)
        for path in ("torch", "native"):
            if f"{path} BP" in seconds:
                print(f"  {path}: BP's time over BDFA's {seconds[f'{path} BP'] / seconds[f'{path} BDFA']:.2f}")
        print(f"  error propagation is {100 * seconds['torch BP: errors'] / seconds[PEER]:.1f} % of autograd's step")


def check(rows: list[dict[str, Any]], sizes: tuple[int, ...], batch: int, of: str, over: str, least: float) -> bool:
    """Print whether a promise is kept, and return it."""
    seconds = next(r["seconds"] for r in rows if (tuple(r["sizes"]), r["batch"]) == (sizes, batch))
    ratio = seconds[of] / seconds[over] if over in seconds else 0.0
    kept, name = ratio >= least, "-".join(map(str, sizes))
    print(f"{_word(kept)} {name}, batch {batch:2}: {of} / {over} = {ratio:.2f}, promised {least}")
    return kept


def peak(candidate: str, batch: int, momentum: float) -> tuple[int, int]:
    """Return resident memory that is kept between steps, and its highest during five of them, in bytes."""
    import torch
    from torch.nn import functional as F

    import torchdfa as dfa

    torch.set_num_threads(1)
    settings = {**SETTINGS, "momentum": momentum}
    rule = dfa.BDFA() if "BDFA" in candidate else None
    fused = {"fused": True} if candidate == PEER else {"foreach": True}

    def stepper(sizes: tuple[int, ...]) -> Callable[[], object]:
        x, y = torch.randn(batch, sizes[0]), torch.randint(0, sizes[-1], (batch,))
        kept = torch.bfloat16 if candidate == f"head {SHORT}" else None
        head = dfa.OnlineHead(sizes, rule=rule, momentum_dtype=kept, **settings)
        if candidate.startswith("head"):
            return partial(head.step, x, y)
        optimizer = torch.optim.SGD(head.net.parameters(), **settings, **fused)

        def step() -> None:
            F.cross_entropy(head.net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    small = stepper((64, 64, 64, 64))
    for _ in range(5):  # loads the kernels' code
        small()
    before = _memory("VmRSS")
    step = stepper(LARGE)
    step()  # makes the momentum
    kept = _memory("VmRSS") - before
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest so far: building is not measured
    for _ in range(5):
        step()
    return kept, _memory("VmHWM") - before


def _memory(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


Peaks = dict[tuple[int, float, str], tuple[float, float]]


def memory() -> Peaks:
    """Return what is kept and the peak, in bytes: medians of three processes each."""
    # Blocks that are freed go back to the system at once: resident memory is then what is in use.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    os.environ.pop("THP_MEM_ALLOC_ENABLE", None)
    found: Peaks = {}
    context = multiprocessing.get_context("spawn")
    for batch, momentum in ((1, 0.9), (1, 0.0), (32, 0.9)):
        for candidate in (PEER, f"{PEER}, SGD's default", "head BP", "head BDFA", f"head {SHORT}"):
            if candidate == f"head {SHORT}" and not momentum:
                continue
            values = []
            for _ in range(3):
                with context.Pool(1) as pool:
                    values.append(pool.apply(peak, (candidate, batch, momentum)))
            found[batch, momentum, candidate] = tuple(map(statistics.median, zip(*values, strict=True)))  # type: ignore[assignment]
    return found


def show_memory(peaks: Peaks) -> bool:
    """Print a table of peak memory, and return whether its promise is kept."""
    print(f"\nresident memory, {'-'.join(map(str, LARGE))}: kept between steps, and the highest within one")
    for (batch, momentum, candidate), (kept, highest) in peaks.items():
        ratio = highest / peaks[batch, momentum, PEER][1]
        both = f"{kept / 2**20:5.0f} MiB {highest / 2**20:5.0f} MiB"
        print(f"  batch {batch:2}, momentum {momentum}: {candidate:26} {both}   {ratio:.3f} × autograd")
    ratio = peaks[1, 0.9, f"head {SHORT}"][1] / peaks[1, 0.9, PEER][1]
    kept = ratio <= MEMORY_PROMISE
    print(f"{_word(kept)} {ratio:.3f}, promised {MEMORY_PROMISE} at batch 1, with momentum in bfloat16")
    return kept


def _word(kept: bool) -> str:
    return "kept    " if kept else "NOT KEPT"


def write(file: Path, found: dict[str, list[dict[str, Any]]], peaks: Peaks) -> None:
    """Write all figures as one tidy CSV."""
    with open(file, "w", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(("measure", "pages", "sizes", "batch", "momentum", "candidate", "value", "unit"))
        for pages, rows in found.items():
            for row in rows:
                for name, seconds in row["seconds"].items():
                    sizes = "-".join(map(str, row["sizes"]))
                    writer.writerow(("time", pages, sizes, row["batch"], 0.9, name, f"{1000 * seconds:.4f}", "ms"))
        sizes = "-".join(map(str, LARGE))
        for (batch, momentum, candidate), values in peaks.items():
            for measure, value in zip(("memory kept", "peak memory"), values, strict=True):
                writer.writerow((measure, "default", sizes, batch, momentum, candidate, round(value), "bytes"))


if __name__ == "__main__":
    main()
