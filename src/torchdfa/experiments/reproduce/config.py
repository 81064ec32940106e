"""The settings of a reproduction, and the sizes at which it can be run."""

from __future__ import annotations

from dataclasses import dataclass, field

from torchdfa.experiments.cluster import Engine
from torchdfa.settings import demand, one_of, whole


@dataclass(frozen=True)
class Scale:
    """How large an experiment on convolutional networks is.

    Attributes:
        width: Of VGG-16's convolutions.
        train_size: Training images; None for all.
        epochs: Passes.
        seeds: Runs at the best trial.
        around: Search around the best rate of a smaller run, where one is given; otherwise that rate is taken.
    """

    width: float
    train_size: int | None
    epochs: int
    seeds: int
    around: bool


SCALES = {
    "small": Scale(0.25, 5000, 20, 5, True),
    "medium": Scale(0.25, None, 20, 3, True),
    "paper": Scale(1.0, None, 50, 5, False),
}


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """The settings of a reproduction.

    Args:
        scale: small: quarter-width VGG-16, 5,000 images, 20 epochs. medium: 50,000 images. paper: full width and 50
            epochs. For the MLPs all images, and 10, 50 or 300 epochs; for hybrid-cnn 8, 20 or 50 epochs. For texts
            small is 100,000 words or 160,000 characters and 4 epochs, the others the whole text and larger models.
        data: cifar10, cifar100 or tiny-imagenet100-32 (a 100-class stand-in); for the MLPs mnist or fashion-mnist; for
            hybrid-rnn and transformer wikitext-2 or tiny-shakespeare. By default the experiment's own.
        data_root: Folder of all data. By default the environment variable TORCHDFA_DATA, then a cache folder.
        rows: Names of the rows to run; all by default.
        epochs: Passes, where not those of the scale.
        trial_epochs: Passes of a trial, where not those of the experiment.
        seeds: Runs at the best trial, where not as many as the scale has.
        rates_from: Folder of a smaller run. Its best trials say where to search: medium takes half, once and twice the
            best learning rate, paper that rate alone, all other settings as found there. Up to 5,000 images, and for
            the MLPs, the whole search is run anew.
        reuse: Folder with the results of other experiments in it or below it; runs of the same settings are taken over.
        jobs: Runs at a time; by default one a core, one thread each, or a single one on a GPU. They share the threads
            that torch uses: where several of these commands run on one machine, OMP_NUM_THREADS gives each its part.
        accelerator: auto, cpu, cuda or mps.
        shard: "i/n": run only every n-th row from the i-th on, counted from 0, to split the work over machines that see
            one folder.
        engine: local: processes on this machine. slurm: jobs on a cluster, by submitit. submitit-local: such jobs here.
        job: Options of a cluster's job, as submitit has them: timeout_min, slurm_partition, cpus_per_task ...
    """

    scale: str = "small"
    data: str | None = None
    data_root: str | None = None
    rows: tuple[str, ...] | None = None
    epochs: int | None = None
    trial_epochs: int | None = None
    seeds: int | None = None
    rates_from: str | None = None
    reuse: str | None = None
    jobs: int | None = None
    accelerator: str = "auto"
    shard: str = "0/1"
    engine: Engine = "local"
    job: dict[str, str | int | float | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        i, _, n = self.shard.partition("/")
        counts = {name: getattr(self, name) for name in ("epochs", "trial_epochs", "seeds", "jobs")}
        demand(
            self,
            scale=one_of(self.scale, SCALES),
            **{name: (value is None or whole(value)[0], "1 or more") for name, value in counts.items()},
            shard=(i.isdigit() and n.isdigit() and int(i) < int(n), "i/n with 0 ≤ i < n"),
        )
