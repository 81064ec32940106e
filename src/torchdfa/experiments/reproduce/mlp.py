"""Nøkland's fully connected networks (2016, his Table 1): BP, FA, DFA; and a network of 100 hidden layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torchdfa.experiments.reproduce.config import ReproduceConfig
from torchdfa.experiments.reproduce.experiment import Experiment
from torchdfa.experiments.reproduce.paper import MLP_TOP1
from torchdfa.experiments.reproduce.plots import dots
from torchdfa.experiments.study import Budget, Line
from torchdfa.models import MLP
from torchdfa.rules import BP, DFA, FA, Rule
from torchdfa.training import TrainConfig

LRS = (3e-5, 6e-5, 1.2e-4, 2.5e-4, 5e-4, 1e-3)
EPOCHS = {"small": 10, "medium": 50, "paper": 300}
_VALIDATION = 10000
_SEEDS = 3
_RULES: dict[str, Rule] = {"BP": BP(), "FA": FA(scale="nokland"), "DFA": DFA(scale="nokland")}
_WIDE, _DEEP, _VERY_DEEP = MLP(hidden=(800,) * 2), MLP(hidden=(240,) * 7), MLP(hidden=(240,) * 100)


def _lines(config: ReproduceConfig, data: str) -> list[Line]:
    nets = {
        "2×800": _WIDE,
        "2×800 + dropout": replace(_WIDE, input_dropout=0.1, dropout=0.5),
        "7×240": _DEEP,
        "100×240": _VERY_DEEP,
    }
    lines = [_line(config, data, net, model, rule, None) for net, model in nets.items() for rule in _RULES]
    # From the other start: back-propagation from zeros, direct feedback from back-propagation's weights.
    others: list[tuple[str, Literal["zero", "uniform"]]] = [("BP", "zero"), ("DFA", "uniform")]
    return lines + [_line(config, data, "100×240", _VERY_DEEP, rule, init) for rule, init in others]


def _line(
    config: ReproduceConfig, data: str, net: str, model: MLP, rule: str, init: Literal["zero", "uniform"] | None
) -> Line:
    start: Literal["zero", "uniform"] = init or ("uniform" if rule == "BP" else "zero")
    epochs = config.epochs or EPOCHS[config.scale]
    train = TrainConfig(
        data=data,
        data_root=config.data_root,
        model=replace(model, activation="tanh", init=start),
        rule=_RULES[rule],
        loss="binary",
        # A step of a hundred layers takes as long as five to ten of the others': a third of the epochs.
        epochs=max(1, epochs // 3) if len(model.hidden) > 50 else epochs,
        batch_size=64,
        optimizer="rmsprop",
        schedule="cosine",
        weight_decay=0.0,
        clip=None,
    )
    dead = rule == "BP" and start == "zero"
    # From zeros back-propagation's gradients are exactly zero below the last layer: no learning rate changes that.
    budget = Budget(lrs=LRS[2:3] if dead else LRS, validation=_VALIDATION, seeds=config.seeds or _SEEDS)
    name = f"{rule}, {net}" + (f", from {start} weights" if init else "")
    against = f"BP, {net}"
    return Line(name=name, config=train, budget=budget, against=None if against == name else against)


MLP_EXPERIMENT = Experiment(
    name="mlp",
    title="Nøkland's fully connected networks",
    about="Does DFA train as well as back-propagation, and does it train a network of 100 layers that "
    "back-propagation can't? FA and DFA start from zero weights, back-propagation from uniform ones, unless the row "
    "says otherwise.",
    lines=_lines,
    plot=dots,
    data=("mnist", "fashion-mnist"),
    paper={"mnist": MLP_TOP1, "fashion-mnist": {}},
)
