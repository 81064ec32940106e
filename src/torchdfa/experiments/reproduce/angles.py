"""Angles between each method's gradient and the true one, layer by layer, over training."""

from __future__ import annotations

from dataclasses import replace

from torchdfa.experiments.reproduce.config import ReproduceConfig
from torchdfa.experiments.reproduce.experiment import Experiment
from torchdfa.experiments.reproduce.plots import layer_angles
from torchdfa.experiments.reproduce.vgg import vgg_line
from torchdfa.experiments.study import Line

RATE = 0.02
_METHODS = ("BP", "FA", "DFA", "BDFA", "CDFA random", "CDFA (7)", "CBDFA random", "CBDFA (9)")


def _lines(config: ReproduceConfig, data: str) -> list[Line]:
    seeds = config.seeds or 3
    lines = [vgg_line(replace(config, rates_from=None), data, method, rates=(RATE,)) for method in _METHODS]
    return [replace(line, budget=replace(line.budget, widenings=0, seeds=seeds)) for line in lines]


ANGLES = Experiment(
    name="angles",
    title="Angles between each method's gradient and the true one",
    about="Do the layers' gradients come to point where back-propagation's would, and which layers' do? 90° is no "
    f"relation, 0° back-propagation itself. One learning rate for all, {RATE:g}.",
    lines=_lines,
    plot=layer_angles,
    angles=True,
)
