"""Han & Yoo's Table 2: does CBDFA keep its lead where the images are augmented?"""

from __future__ import annotations

from torchdfa.experiments.reproduce.config import ReproduceConfig
from torchdfa.experiments.reproduce.experiment import Experiment
from torchdfa.experiments.reproduce.paper import TABLE2
from torchdfa.experiments.reproduce.plots import dots
from torchdfa.experiments.reproduce.vgg import vgg_line
from torchdfa.experiments.study import Line


def _lines(config: ReproduceConfig, data: str) -> list[Line]:
    methods = ("BP", "CBDFA (9)", "Conv-only")
    plain = [vgg_line(config, data, method, more=5) for method in methods]
    augmented = [
        vgg_line(
            config,
            data,
            method,
            name=f"{method}, augmented",
            source=method,
            augment=True,
            more=5,
            against="BP, augmented",
        )
        for method in methods
    ]
    return plain + augmented


TABLE2_EXPERIMENT = Experiment(
    name="table2",
    title="Table 2: with and without augmentation",
    about="Does CBDFA's lead over back-propagation hold with flips and crops, which leave less to gain from "
    "regularisation? The paper trains at a large learning rate; here each row has its own.",
    lines=_lines,
    plot=dots,
    paper=TABLE2,
)
