"""What the rows of the hybrid experiments have in common."""

from __future__ import annotations

from dataclasses import replace

from torchdfa.experiments.reproduce.carried import carried
from torchdfa.experiments.reproduce.config import SCALES, ReproduceConfig
from torchdfa.experiments.study import Budget, Line
from torchdfa.training import TrainConfig


def hybrid_line(
    config: ReproduceConfig, train: TrainConfig, name: str, *, lrs: tuple[float, ...], validation: int
) -> Line:
    """Return a row that is compared with back-propagation on the same network.

    Args:
        config: The settings of the experiment.
        train: Of the row's runs.
        name: Of the row; what follows its last comma is the network.
        lrs: Learning rates to search.
        validation: Held out in trials.
    """
    train = replace(train, alignment=1, score_every=train.epochs)
    budget = Budget(
        lrs=lrs,
        more=2,
        validation=validation,
        seeds=config.seeds or SCALES[config.scale].seeds,
    )
    against = f"BP, {name.rpartition(', ')[2]}"
    return carried(Line(name=name, config=train, budget=budget, against=None if name == against else against), config)
