"""Han & Yoo's Figures 1, 4 and 5: test accuracy against epochs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torchdfa.experiments.reproduce.config import ReproduceConfig
from torchdfa.experiments.reproduce.experiment import Experiment
from torchdfa.experiments.reproduce.plots import curves
from torchdfa.experiments.reproduce.vgg import vgg_line
from torchdfa.experiments.study import Line

SMALL_RATE, LARGE_RATE = 0.01, 0.05
_METHODS = ("BP", "CDFA random", "CDFA (7)", "CBDFA random", "CBDFA (9)")


def _all_layers(config: ReproduceConfig, data: str) -> list[Line]:
    methods = ("BP", "FA", "DFA", "BDFA", "CDFA random", "Head-only")
    return [vgg_line(config, data, method) for method in methods]


def _at(rate: float, config: ReproduceConfig, data: str) -> list[Line]:
    # The rate is what the figure is about: it is given, not found.
    lines = [vgg_line(replace(config, rates_from=None), data, method, rates=(rate,)) for method in _METHODS]
    return [replace(line, budget=replace(line.budget, widenings=0)) for line in lines]


FIGURE1 = Experiment(
    name="figure1",
    title="Figure 1: direct feedback in all layers of a convolutional network",
    about="How far does DFA fall behind back-propagation when convolutions learn by it too? Controls: direct feedback "
    "in the head alone, and a trunk that does not learn at all.",
    lines=_all_layers,
    plot=curves,
)
FIGURE4 = Experiment(
    name="figure4",
    title=f"Figure 4: curves at a small learning rate, {SMALL_RATE:g}",
    about="At one small learning rate for all, not tuned, as in the paper: do product-initialised feedback weights "
    "start faster than random ones, and do both pass back-propagation?",
    lines=partial(_at, SMALL_RATE),
    plot=curves,
)
FIGURE5 = Experiment(
    name="figure5",
    title=f"Figure 5: curves at a large learning rate, {LARGE_RATE:g}",
    about="At one large learning rate for all, not tuned, as in the paper: does random feedback swing where "
    "product-initialised feedback is steady?",
    lines=partial(_at, LARGE_RATE),
    plot=curves,
)
