"""Accuracy against the number of training images: "especially when the data set is small" (Han & Yoo, abstract)."""

from __future__ import annotations

from torchdfa.experiments.reproduce.config import ReproduceConfig
from torchdfa.experiments.reproduce.experiment import Experiment
from torchdfa.experiments.reproduce.plots import by_size
from torchdfa.experiments.reproduce.vgg import vgg_line
from torchdfa.experiments.study import Line

SIZES = (1000, 5000, 20000, 50000)
METHODS = ("BP", "Conv-only", "CDFA (7)", "CBDFA (9)")


def _lines(config: ReproduceConfig, data: str) -> list[Line]:
    return [
        vgg_line(
            config,
            data,
            method,
            name=f"{method}, {size:,} images",
            source=method,
            train_size=size,
            more=5 if size <= 5000 else 0,
            against=f"BP, {size:,} images",
            drawn_as=method,  # as in table1 and recipe1000, so that their runs serve
        )
        for size in SIZES
        for method in METHODS
    ]


SIZES_EXPERIMENT = Experiment(
    name="sizes",
    title="Training-set size",
    about="The paper claims its gain above all for small data sets. Is the difference between CDFA, CBDFA and "
    "back-propagation larger with fewer training images?",
    lines=_lines,
    plot=by_size,
    data=("cifar10",),
)
