"""Ways of training with direct feedback that might beat the best tuned back-propagation on few images."""

from __future__ import annotations

from functools import partial

from torchdfa.experiments.reproduce.config import ReproduceConfig
from torchdfa.experiments.reproduce.experiment import Experiment
from torchdfa.experiments.reproduce.plots import dots
from torchdfa.experiments.reproduce.vgg import vgg_line
from torchdfa.experiments.study import Line


def _lines(size: int, config: ReproduceConfig, data: str) -> list[Line]:
    row = partial(vgg_line, config, data, train_size=size, more=5)
    return [
        row("BP"),
        row("BP", name="BP, dropout", dropout=0.5),
        row("Conv-only"),
        row("Conv-only", name="Conv-only, dropout", dropout=0.5),
        row("CDFA (7)"),
        row("CBDFA (9)"),
        row("CBDFA (9)", name="CBDFA (9), dropout", dropout=0.5),
        row("CBDFA (9)", name="CBDFA (9), refreshed", refresh=2),
        row("CBDFA (9) centred"),
        row("trunk (7)"),
        row("trunk ±1 (9)"),
        row("trunk ±1 (9) centred"),
        row("trunk ±1 (9) normalised"),
        row("trunk ±1 (9)", name="trunk ±1 (9), refreshed", refresh=2),
        row("trunk ±1 (9)", name="trunk ±1 (9), BN", norm=True),
        row("trunk ±1 (9)", name="trunk ±1 (9), dropout", dropout=0.5),
        row("trunk (7)", name="trunk (7), head frozen", head_lr=0.0),
        row("trunk ±1 (9)", name="trunk ±1 (9), head frozen", head_lr=0.0),
        row("trunk ±1 random", name="trunk ±1 random, head frozen", head_lr=0.0),
    ]


_ABOUT = (
    "Which way of training with direct feedback beats back-propagation, both tuned with the same number of trials? "
    '"trunk": direct feedback to the convolutions alone, back-propagation inside the head. "head frozen": the head '
    'keeps its initial weights and passes no error down at all. "refreshed": the feedback is taken anew from the '
    "weights every second epoch. \"normalised\": every sample's error is brought to the batch's mean length first."
)
RECIPE = Experiment(
    name="recipe",
    title="A recipe that beats tuned back-propagation, 5,000 images",
    about=_ABOUT,
    lines=partial(_lines, 5000),
    plot=dots,
    data=("cifar10", "tiny-imagenet100-32", "cifar100"),
)
RECIPE_1000 = Experiment(
    name="recipe1000",
    title="A recipe that beats tuned back-propagation, 1,000 images",
    about=_ABOUT,
    lines=partial(_lines, 1000),
    plot=dots,
    data=("cifar10", "tiny-imagenet100-32", "cifar100"),
)
