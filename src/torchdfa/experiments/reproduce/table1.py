"""Han & Yoo's Table 1: CDFA and CBDFA against back-propagation on VGG-16, with controls that the paper lacks."""

from __future__ import annotations

from torchdfa.experiments.reproduce.config import ReproduceConfig
from torchdfa.experiments.reproduce.experiment import Experiment
from torchdfa.experiments.reproduce.paper import TABLE1
from torchdfa.experiments.reproduce.plots import dots
from torchdfa.experiments.reproduce.vgg import vgg_line
from torchdfa.experiments.study import Line

_PAPER = (
    ("BP", False),
    ("BP", True),
    ("CDFA random", False),
    ("CDFA (7)", False),
    ("CDFA (7)", True),
    ("CBDFA random", False),
    ("CBDFA (9)", False),
    ("CBDFA (9)", True),
    ("Conv-only", False),
)
_CONTROLS = ("FA in the head", "CBDFA (9) unit", "CBDFA (9) chain", "CBDFA (9) centred", "CBDFA seeded")


def _lines(config: ReproduceConfig, data: str) -> list[Line]:
    rows = [vgg_line(config, data, method, name=_named(method, norm), norm=norm, more=5) for method, norm in _PAPER]
    return rows + [vgg_line(config, data, method, more=5) for method in _CONTROLS]


def _named(method: str, norm: bool) -> str:
    return f"{method} w/ BN" if norm else method


TABLE1_EXPERIMENT = Experiment(
    name="table1",
    title="Table 1: CDFA and CBDFA against back-propagation",
    about="Does back-propagation in the convolutions with direct feedback in the fully connected layers beat "
    "back-propagation, once each is tuned as well as the other?",
    lines=_lines,
    plot=dots,
    paper=TABLE1,
)
