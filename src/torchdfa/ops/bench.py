"""How fast the binary product runs here: what ``torchdfa bench ops`` prints."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from torchdfa.feedback import bits
from torchdfa.ops import native
from torchdfa.ops.product import packed_product, seeded_product
from torchdfa.settings import demand, positive, whole

SIZES = ((10, 512), (100, 512), (1000, 4096))
BATCHES = (1, 8, 32, 128, 512)


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What ``torchdfa bench ops`` measures.

    Args:
        threads: Of torch, and so of the product.
        seconds: Budget of each line of the table.
    """

    threads: int = 1
    seconds: float = 1.0

    def __post_init__(self) -> None:
        demand(self, threads=whole(self.threads), seconds=positive(self.seconds))


@dataclass(frozen=True, kw_only=True)
class Line:
    """Median seconds of each candidate for one size."""

    errors: int
    features: int
    batch: int
    seconds: Mapping[str, float]


def candidates(errors: int, features: int, batch: int) -> dict[str, Callable[[], object]]:
    """Return functions that multiply one error by one feedback: torch, in bfloat16 too if it can, and the product."""
    key, scale = torch.tensor(bits.key_of(0, "bench")), torch.tensor(1.0)
    packed = bits.draw(key, errors, features).contiguous()
    dense = bits.unpack(packed, features, torch.float32)
    e = torch.randn(batch, errors)
    found: dict[str, Callable[[], object]] = {"mm": lambda: torch.mm(e, dense)}
    if has_bfloat16():
        short, dense_short = e.bfloat16(), dense.bfloat16()
        found["mm bfloat16"] = lambda: torch.mm(short, dense_short)
    found["stored"] = lambda: packed_product(e, packed, scale, features)
    found["generated"] = lambda: seeded_product(e, key, scale, features)
    return found


def has_bfloat16() -> bool:
    """Tell whether oneDNN multiplies in bfloat16 here; where it can't torch does, up to a hundred times as slowly."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def rounds(
    functions: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    threads: int,
    least: int = 7,
    shortest: float = 2e-4,
) -> dict[str, list[float]]:
    """Return the seconds of each function's calls; functions take turns, each round begins with another one.

    Args:
        functions: Without arguments, by name.
        seconds: For all together; rounds go on until they are spent.
        threads: Of torch. With one, CPU time is measured, which other processes disturb less; else wall-clock time.
        least: Rounds.
        shortest: Seconds. A shorter function is repeated within a measurement, so that the clock does not show.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    repeats = {}
    for name, function in functions.items():
        for _ in range(2):  # allocate, choose kernels
            function()
        begin = time.perf_counter()
        function()
        repeats[name] = max(1, int(shortest / max(time.perf_counter() - begin, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    order, end = list(functions), time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[order[0]]) < least:
        for name in order:
            function, n = functions[name], repeats[name]
            begin = clock()
            for _ in range(n):
                function()
            times[name].append((clock() - begin) / n)
        order = [*order[1:], order[0]]
    return times


def measure(config: BenchConfig, errors: int, features: int, batch: int) -> Line:
    """Measure one size."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        times = rounds(candidates(errors, features, batch), config.seconds, threads=config.threads)
    finally:
        torch.set_num_threads(before)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return Line(errors=errors, features=features, batch=batch, seconds=medians)


def show(config: BenchConfig) -> None:
    """Say which path runs, measure, and print a table."""
    from rich import box
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    console = Console()
    console.print(f"path: {native.path()} (of {', '.join(native.PATHS)})")
    if native.why_not_native():
        console.print(f"no native library: {native.why_not_native()}", highlight=False)
    sizes = [(k, h, n) for k, h in SIZES for n in BATCHES]
    lines = [
        measure(config, *size)
        for size in track(
            sizes, "measuring", console=Console(stderr=True), transient=True, disable=not console.is_terminal
        )
    ]
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in ("K × H", "batch", "torch.mm\nµs", "bfloat16\n× mm", "stored\n× mm", "generated\n× mm"):
        table.add_column(heading, justify="left" if heading == "K × H" else "right", no_wrap=True)
    for line in lines:
        mm = line.seconds["mm"]
        table.add_row(
            f"{line.errors} × {line.features}",
            str(line.batch),
            f"{1e6 * mm:,.1f}",
            *(
                f"{mm / line.seconds[name]:.2f}" if name in line.seconds else "–"
                for name in ("mm bfloat16", "stored", "generated")
            ),
        )
    console.print(table)
    threads = f"{config.threads} thread" + ("s" if config.threads > 1 else "")
    console.print(f"{threads}, torch {torch.__version__}; speed over torch.mm in float32, medians, taking turns")
