"""Speed of the binary product over torch.mm in float32: medians of CPU time of one thread, taking turns in one process.

    python benchmarks/binary_product.py [--seconds 2] [--csv FILE]

Beside torch.mm in float32 (MKL) stands its bfloat16 form (oneDNN). `stored` and `generated` are the operators as users
call them; `kernel` is the library's function on prepared memory, without Python around it. `avx2` and `portable` are
stored bits on those paths; `oneDNN` is that library with the matrix in its own layout. Then two threads over one, in
wall-clock time, each candidate by itself, and binary over dense feedback at small K.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from torchdfa import ops
from torchdfa.feedback import DenseFeedback, PackedFeedback, SeededFeedback, bits
from torchdfa.ops import native
from torchdfa.ops.bench import candidates, has_bfloat16, rounds

LARGE, VOCABULARY, SMALL = (1000, 4096), (50257, 1024), (100, 512)
# Least speed over torch.mm that we aim at, for batches of 1, 8, 32, 128.
AIMS = {
    (LARGE, "stored"): (10, 8, 4.5, 3),
    (VOCABULARY, "stored"): (10, 8, 4.5, 3),
    (SMALL, "stored"): (1.5, 3, 2.5, 3),
    (LARGE, "avx2"): (7, 4.5, 2.3, 1.4),
}
BATCHES = (1, 8, 32, 128)
TWO_THREADS_AIM, DENSE_AIM, ERROR_AIM = 1.7, 1.05, 1e-5


def main() -> None:
    """Measure everything, print tables and which aims were met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2, help="budget of each line")
    parser.add_argument("--csv", type=Path, help="also write every median here")
    parser.add_argument("--part", choices=("speed", "threads", "feedback"), help="measure only this")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, path {ops.path()} of {', '.join(ops.PATHS)}")
    rows: list[dict[str, object]] = []
    missed: list[str] = []
    parts = {"speed": speed, "threads": two_threads, "feedback": small_feedback}
    for name, part in parts.items():
        if options.part in (None, name):
            part(options.seconds, rows, missed)
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["part", "errors", "features", "batch", "candidate", "us"])
            writer.writeheader()
            writer.writerows(rows)
    print("\naims met: all" if not missed else "\naims missed:\n  " + "\n  ".join(missed))


def median(functions: dict[str, Callable[[], object]], seconds: float, threads: int = 1) -> dict[str, float]:
    """Return the median seconds of each candidate."""
    return {k: statistics.median(v) for k, v in rounds(functions, seconds, threads=threads).items()}


def speed(seconds: float, rows: list[dict[str, object]], missed: list[str]) -> None:
    """Compare every path with torch.mm."""
    names = ("mm bfloat16", "oneDNN", "oneDNN bf16", "stored", "generated", "kernel", "avx2", "portable")
    print("\nspeed over torch.mm float32, one thread\n" + f"{'K × H':>12} {'batch':>5} {'mm µs':>10}", end="")
    print("".join(f"{n:>12}" for n in names) + f"{'error':>10}")
    for size in (LARGE, VOCABULARY, SMALL, (10, 512), (10, 4096)):
        for batch in (*BATCHES, 512):
            if size == VOCABULARY and batch > 128:
                continue
            functions = candidates(*size, batch)
            functions["kernel"] = kernel(*size, batch)
            if torch.backends.mkldnn.is_available():
                functions["oneDNN"] = onednn(*size, batch, torch.float32)
                if has_bfloat16():
                    functions["oneDNN bf16"] = onednn(*size, batch, torch.bfloat16)
            stored = functions["stored"]
            for path in ("avx2", "portable"):
                if path in ops.PATHS:
                    functions[path] = on(path, stored)
            times = median(functions, seconds)
            ratio = {n: times["mm"] / times[n] for n in names if n in times}
            error = relative_error(*size, batch)
            print(f"{size[0]:>6} ×{size[1]:>5} {batch:>5} {1e6 * times['mm']:>10.1f}", end="")
            print("".join(f"{ratio[n]:>12.2f}" if n in ratio else f"{'–':>12}" for n in names), end="")
            print(f"{error:>10.1e}", flush=True)
            rows += [record("speed", size, batch, n, t) for n, t in times.items()]
            if batch in BATCHES:
                for candidate in ("stored", "avx2"):
                    aim = AIMS.get((size, candidate), (0, 0, 0, 0))[BATCHES.index(batch)]
                    if ratio.get(candidate, aim) < aim:
                        missed.append(f"{size}, batch {batch}, {candidate}: {ratio[candidate]:.2f}, aim {aim}")
            if batch >= 8 and size[0] > 16 and times["generated"] > 1.05 * times["stored"]:
                missed.append(f"{size}, batch {batch}: generated {times['generated'] / times['stored']:.2f} × stored")
            if error > ERROR_AIM:
                missed.append(f"{size}, batch {batch}: error {error:.1e}")


def kernel(errors: int, features: int, batch: int) -> Callable[[], object]:
    """Return the library's own function, on memory that is there already."""
    assert native.kernels is not None, ops.why_not_native()
    packed = bits.draw(torch.tensor(bits.key_of(0, "bench")), errors, features).contiguous()
    e, out, scale = torch.randn(batch, errors), torch.empty(batch, features), torch.tensor(1.0)
    held = (e, out, scale, packed)
    at = [t.data_ptr() for t in held]
    call = native.kernels.packed_at
    return lambda held=held: call(at[0], batch, errors, errors, at[3], at[2], at[1], features, 1)


def onednn(errors: int, features: int, batch: int, dtype: torch.dtype) -> Callable[[], object]:
    """Return oneDNN's product with a matrix in the layout that it likes best, as torch.compile calls it.

    It is no public function. torch.mm takes MKL in float32, and in bfloat16 oneDNN with the matrix as it lies.
    """
    e, dense = torch.randn(batch, errors, dtype=dtype), torch.randn(features, errors, dtype=dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(dense, batch)
    return lambda: torch.ops.mkldnn._linear_pointwise(e, packed, None, "none", [], "")


def on(path: str, function: Callable[[], object]) -> Callable[[], object]:
    """Return a function that runs on another path, and goes back."""

    def run() -> None:
        before = ops.choose(path)
        function()
        ops.choose(before)

    return run


def relative_error(errors: int, features: int, batch: int) -> float:
    """Return the largest error over the largest value, against float64."""
    key, scale = torch.tensor(bits.key_of(0, "bench")), torch.tensor(1.0)
    columns, rows = min(features, 64), min(batch, 8)
    e = torch.randn(rows, errors)
    packed = bits.draw(key, errors, columns)
    exact = e.double() @ bits.unpack(packed, columns, torch.float64)
    return ((ops.packed_product(e, packed, scale, columns) - exact).abs().max() / exact.abs().max()).item()


def two_threads(seconds: float, rows: list[dict[str, object]], missed: list[str]) -> None:
    """Compare two threads with one."""
    if (os.cpu_count() or 1) < 2:
        print("\none core: two threads were not measured")
        return
    print("\ntwo threads over one, wall clock")
    for size, batches in ((LARGE, (8, 32, 128, 512)), (VOCABULARY, (1, 8, 32)), (SMALL, (128, 512))):
        for batch in batches:
            functions = candidates(*size, batch)
            functions.pop("mm bfloat16", None)
            # Each by itself: candidates that take turns leave the other core's cache full of one another's results,
            # so that two threads pay for a neighbour.
            found: dict[str, list[float]] = {}
            for name, function in functions.items():
                for _ in range(8):  # a change of number makes torch start its threads anew: not call by call
                    for threads in (1, 2):
                        torch.set_num_threads(threads)
                        each = rounds({name: function}, seconds / 16 / len(functions), threads=2, least=3)[name]
                        found.setdefault(f"{name} {threads}", []).extend(each)
            torch.set_num_threads(1)
            times = {name: statistics.median(each) for name, each in found.items()}
            ratio = {n: times[f"{n} 1"] / times[f"{n} 2"] for n in ("mm", "stored", "generated")}
            print(f"{size[0]:>6} ×{size[1]:>5} {batch:>5}", *(f"{n} {r:.2f}" for n, r in ratio.items()), flush=True)
            rows += [record("threads", size, batch, n, t) for n, t in times.items()]
            if ratio["stored"] < TWO_THREADS_AIM:
                missed.append(f"{size}, batch {batch}: two threads {ratio['stored']:.2f} × one, aim {TWO_THREADS_AIM}")


def small_feedback(seconds: float, rows: list[dict[str, object]], missed: list[str]) -> None:
    """Compare binary with dense feedback where there are few errors."""
    print("\ntime over dense feedback, one thread")
    for size in ((2, 512), (10, 512), (10, 4096), (16, 1024), (100, 512)):
        for batch in (*BATCHES, 512):
            stored = PackedFeedback(torch.rand(*size) > 0.5, torch.tensor(0.5))
            drawn = SeededFeedback(*size, 7, torch.tensor(0.5))
            dense, e = DenseFeedback(stored.dense()), torch.randn(batch, size[0])
            shape = torch.Size((batch, size[1]))
            functions: dict[str, Callable[[], object]] = {
                "dense": lambda f=dense, e=e, s=shape: f.carry(e, s),
                "stored": lambda f=stored, e=e, s=shape: f.carry(e, s),
                "generated": lambda f=drawn, e=e, s=shape: f.carry(e, s),
            }
            times = median(functions, seconds / 2)
            ratio = {n: times[n] / times["dense"] for n in ("stored", "generated")}
            print(f"{size[0]:>6} ×{size[1]:>5} {batch:>5} dense {1e6 * times['dense']:8.1f} µs", end="  ")
            print(*(f"{n} {r:.2f}" for n, r in ratio.items()), flush=True)
            rows += [record("feedback", size, batch, n, t) for n, t in times.items()]
            missed += [
                f"{size}, batch {batch}: {n} {r:.2f} × dense ({1e6 * (times[n] - times['dense']):+.1f} µs)"
                for n, r in ratio.items()
                if r > DENSE_AIM
            ]


def record(part: str, size: tuple[int, int], batch: int, candidate: str, seconds: float) -> dict[str, object]:
    """Return a row of the CSV."""
    return {
        "part": part,
        "errors": size[0],
        "features": size[1],
        "batch": batch,
        "candidate": candidate,
        "us": round(1e6 * seconds, 2),
    }


if __name__ == "__main__":
    main()
