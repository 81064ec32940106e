"""``torchdfa compare``: the same network, weights and data order under several methods, each at its best rate."""

from __future__ import annotations

import dataclasses
import math
import statistics as stats
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

import torchdfa
from torchdfa.data import Batches, Dataset, load, statistics, subset
from torchdfa.experiments.cluster import Engine, make_workers
from torchdfa.experiments.methods import METHODS, method
from torchdfa.experiments.progress import watch
from torchdfa.experiments.results import Row, score
from torchdfa.experiments.search import tried
from torchdfa.experiments.study import Budget, Line, run_study
from torchdfa.experiments.timing import interleaved, training_step
from torchdfa.models import VGG16, Network, SmallConv
from torchdfa.settings import demand, positive, some_of, whole
from torchdfa.summary import summary
from torchdfa.training import TrainConfig

_TIMING_SECONDS = 6.0


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """The settings of a comparison.

    Args:
        data: digits, cifar10, cifar100, tiny-imagenet100-32, mnist, fashion-mnist, or the path of an image folder.
        data_root: Folder of all data. By default the environment variable TORCHDFA_DATA, then a cache folder.
        train_size: Train on a class-balanced, seeded subset of this many images; all of them by default.
        model: The network; by default a quarter-width VGG16 for images of 32 × 32 and larger, else SmallConv.
        methods: Names of the methods, of those in torchdfa.experiments.methods.
        lrs: Peak learning rates that every method is tried at. If the best is the lowest or the highest, up to two
            more are tried beyond it.
        seeds: Runs of each method at its best learning rate.
        epochs: Passes over the training images.
        batch_size: Images a step.
        validation: Share of the training images on which the learning rate is chosen.
        weight_decay: L2 penalty.
        clip: Largest norm of the gradient.
        augment: Random flips and crops.
        precision: See torchdfa.training.TrainConfig; by default float32 for small images.
        jobs: Runs at a time, one thread each; by default one a core, or 100 on a cluster.
        engine: local: processes on this machine. slurm: jobs on a cluster, by submitit. submitit-local: such jobs here.
        job: Options of a cluster's job, as submitit has them: timeout_min, slurm_partition, cpus_per_task ...
    """

    data: str = "digits"
    data_root: str | None = None
    train_size: int | None = None
    model: Network | None = None
    methods: tuple[str, ...] = ("BP", "Conv-only", "CDFA (7)", "CBDFA (9)", "CBDFA random")
    lrs: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    seeds: int = 3
    epochs: int = 20
    batch_size: int = 100
    validation: float = 0.2
    weight_decay: float = 5e-4
    clip: float | None = 10.0
    augment: bool = False
    precision: Literal["auto", "32-true", "bf16-mixed"] | None = None
    jobs: int | None = None
    engine: Engine = "local"
    job: dict[str, str | int | float | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        demand(
            self,
            methods=some_of(self.methods, METHODS),
            lrs=(bool(self.lrs) and all(positive(lr)[0] for lr in self.lrs), "positive learning rates"),
            seeds=whole(self.seeds),
            validation=(0 < self.validation < 1, "a share between 0 and 1"),
        )


@dataclass(frozen=True)
class Score:
    """A method's line of the table.

    Attributes:
        method: Its name.
        lr: The learning rate chosen.
        at_edge: Whether that is the lowest or highest of several tried.
        top1: Test accuracy of each seed, in percent.
        train_top1: Training accuracy of each seed, in percent.
        epochs: Mean epochs to 95 % of the final test accuracy.
        step: Time of a training step over that of the first method.
        feedback_bytes: Bytes of feedback.
        feedback_bytes_float32: The same as float32.
    """

    method: str
    lr: float
    at_edge: bool
    top1: tuple[float, ...]
    train_top1: tuple[float, ...]
    epochs: float
    step: float
    feedback_bytes: int
    feedback_bytes_float32: int


def compare(config: CompareConfig, out: Path, *, progress: bool = True) -> list[Score]:
    """Run a comparison and write ``results.csv``, ``summary.md`` and ``curves.png`` into ``out``.

    Runs that are finished in ``out`` are not run again.

    Raises:
        torchdfa.data.DataError: The data is not there or does not fit the settings.
        ValueError: A method does not fit the network, or the network the images.
        CellError: A run crashed; the others are done and kept.
    """
    from torchdfa.experiments.report import plot, write_summary

    dataset = load(config.data, config.data_root)
    config = _completed(config, dataset)
    size = config.train_size or len(dataset.train)
    if config.train_size is not None:
        subset(dataset.train, size, 0)  # to say now what every run would
    steps, memory = _steps(config, dataset)
    lines = [_line(config, name, size) for name in config.methods]
    planned = sum(line.budget.runs for line in lines)
    crew = make_workers(config.jobs, "cpu", config.engine, config.job)
    with watch(progress, planned) as watcher, crew as workers:
        runs = run_study("compare", lines, out, workers=workers, watcher=watcher)
        watcher.say("timing a training step of each method")
        seconds = _timed(steps)
    chosen = {run[0].method: run[0].lr for run in runs if run[0].phase == "final"}
    scores = [
        _score(runs, name, chosen[name], seconds[name] / seconds[config.methods[0]], memory[name])
        for name in config.methods
    ]
    write_summary(out / "summary.md", config, scores, runs, size)
    plot(out / "curves.png", config, runs, chosen)
    return scores


def _completed(config: CompareConfig, dataset: Dataset) -> CompareConfig:
    small = min(dataset.train.shape[1:]) < 32
    model = config.model or (SmallConv() if small else VGG16(width=0.25))
    return dataclasses.replace(config, model=model, precision=config.precision or ("32-true" if small else "auto"))


def _line(config: CompareConfig, name: str, size: int) -> Line:
    assert config.model is not None and config.precision is not None
    train = TrainConfig(
        data=config.data,
        data_root=config.data_root,
        train_size=config.train_size,
        augment=config.augment,
        model=config.model,
        rule=method(name),
        epochs=config.epochs,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        clip=config.clip,
        precision=config.precision,
    )
    held_out = max(1, round(config.validation * size))
    return Line(name=name, config=train, budget=Budget(lrs=config.lrs, validation=held_out, seeds=config.seeds))


def _score(runs: Iterable[Sequence[Row]], name: str, lr: float, step: float, memory: tuple[int, int]) -> Score:
    finals = sorted((r for r in runs if (r[0].method, r[0].phase) == (name, "final")), key=lambda r: r[0].seed)
    lrs = list(tried(runs, name))
    return Score(
        method=name,
        lr=lr,
        at_edge=lr in lrs[:1] + lrs[-1:],
        top1=tuple(math.nan if run[-1].problem else score(run) for run in finals),
        train_top1=tuple(math.nan if run[-1].problem else run[-1].train_top1 for run in finals),
        epochs=stats.fmean(_epochs_to(run, 0.95) for run in finals),
        step=step,
        feedback_bytes=memory[0],
        feedback_bytes_float32=memory[1],
    )


def _epochs_to(run: Sequence[Row], share: float) -> float:
    """Return the first epoch whose test accuracy is that share of the last one's."""
    if run[-1].problem:
        return math.nan
    return next(row.epoch for row in run if row.test_top1 >= share * run[-1].test_top1)


def _steps(
    config: CompareConfig, dataset: Dataset
) -> tuple[dict[str, Callable[[], object]], dict[str, tuple[int, int]]]:
    """Return a training step of each method, and its feedback's bytes, as kept and as float32.

    Raises:
        ValueError: The network does not take these images, or a method leaves nothing in it to learn.
    """
    assert config.model is not None
    mean, std = statistics(dataset.train)
    x, y = next(Batches(dataset.train, config.batch_size, mean=mean, std=std, shuffle=True).epoch(0))
    shape, classes = dataset.train.shape, dataset.train.num_classes
    steps, memory = {}, {}
    for name in config.methods:
        model = torchdfa.convert(config.model.build(shape, classes), method(name, 0), example=x[:1])
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError(f"{name!r} leaves nothing to learn in {config.model}. Leave it out of methods.")
        table = summary(model)
        memory[name] = (table.nbytes, table.nbytes_float32)
        steps[name] = training_step(model, x, y)
    return steps, memory


def _timed(steps: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the seconds of each step, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return interleaved(steps, budget=_TIMING_SECONDS)
    finally:
        torch.set_num_threads(threads)
