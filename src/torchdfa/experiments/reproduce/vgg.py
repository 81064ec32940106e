"""Rows on VGG-16, which most experiments of the papers are made of."""

from __future__ import annotations

from torchdfa.experiments.methods import method
from torchdfa.experiments.reproduce.carried import carried
from torchdfa.experiments.reproduce.config import SCALES, ReproduceConfig
from torchdfa.experiments.study import Budget, Line
from torchdfa.models import VGG16
from torchdfa.training import TrainConfig

LRS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
# Up to this many training images a search is cheap enough to be done anew, whatever a smaller run has found.
_SMALL = 5000
# Up to this many, scoring 10,000 test images takes several times as long as an epoch.
_FEW = 1000
# All training images of the CIFAR sets and of the stand-in: then no subset is drawn.
_ALL = 50000


def vgg_line(
    config: ReproduceConfig,
    data: str,
    method_name: str,
    *,
    name: str | None = None,
    source: str | None = None,
    norm: bool = False,
    dropout: float = 0.0,
    head_lr: float = 1.0,
    refresh: int = 0,
    augment: bool = False,
    train_size: int | None = None,
    rates: tuple[float, ...] = LRS,
    more: int = 0,
    against: str | None = "BP",
    drawn_as: str | None = None,
) -> Line:
    """Return a row: a method on VGG-16 at the scale of the experiment.

    Args:
        config: The settings of the experiment.
        data: The data set.
        method_name: In torchdfa.experiments.methods.
        name: Of the row; by default the method's.
        source: Name of the row of ``config.rates_from`` that says where to search; by default this row's.
        norm: Batch normalisation in the head.
        dropout: Share of the head's hidden units that is dropped.
        head_lr: Learning rate of the head, relative to the trunk's.
        refresh: Epochs after which the feedback is made anew.
        augment: Random flips and crops.
        train_size: Training images, where not those of the scale.
        rates: Learning rates to search.
        more: Further trials.
        against: The row to compare with.
        drawn_as: Name by which its further trials are drawn, where not its own.
    """
    scale, name = SCALES[config.scale], name or method_name
    size = train_size or scale.train_size
    if size == _ALL:
        size = None
    train = TrainConfig(
        data=data,
        data_root=config.data_root,
        train_size=size,
        augment=augment,
        model=VGG16(width=scale.width, head_norm=norm, head_dropout=dropout),
        rule=method(method_name),
        refresh=refresh,
        epochs=config.epochs or scale.epochs,
        head_lr=head_lr,
        clip=10.0,
        alignment=1,
    )
    held_out = _ALL // 10 if size is None else size // 5
    budget = Budget(lrs=rates, more=more, validation=held_out, seeds=config.seeds or scale.seeds)
    against = None if against == name else against
    few = size is not None and size <= _FEW
    line = Line(name=name, config=train, budget=budget, against=against, drawn_as=drawn_as, scored_once=few)
    if size is not None and size <= _SMALL:
        return line
    return carried(line, config, source)
