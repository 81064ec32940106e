"""Module-wise and hybrid DFA on convolutional networks: VGG-16 and ResNet-20 (our reading of arXiv 2006.12830)."""

from __future__ import annotations

from torchdfa.experiments.reproduce.config import SCALES, ReproduceConfig
from torchdfa.experiments.reproduce.experiment import Experiment
from torchdfa.experiments.reproduce.hybrid import hybrid_line
from torchdfa.experiments.reproduce.plots import dots_and_costs
from torchdfa.experiments.study import Line
from torchdfa.models import VGG16, Network, ResNet
from torchdfa.modular import HybridDFA, ModuleDFA
from torchdfa.rules import BP, DFA, FA, Rule
from torchdfa.training import TrainConfig

LRS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
EPOCHS = {"small": 8, "medium": 20, "paper": 50}
_ALL = 50000
_RULES: dict[str, Rule] = {
    "BP": BP(),
    "FA": FA(),
    "DFA": DFA(),
    "ModuleDFA, 4 groups": ModuleDFA(groups=4),
    "HybridDFA, 4 groups": HybridDFA(groups=4),
}
# What each of these asks: no groups; more of them; feedback that starts as the weights; its signs alone; taps side by
# side.
_VGG: dict[str, Rule] = _RULES | {
    "HybridDFA": HybridDFA(),
    "HybridDFA, 16 groups": HybridDFA(groups=16),
    "HybridDFA, 4 groups, product": HybridDFA(groups=4, init="product"),
    "HybridDFA, 4 groups, binary product": HybridDFA(groups=4, init="product", binary=True),
    "HybridDFA, 4 groups, undilated": HybridDFA(groups=4, dilation=1),
}
# The size of a module, which is a stage in the rows above: a block, and all convolutions.
_RESNET: dict[str, Rule] = _RULES | {
    "HybridDFA, 4 groups, blocks": HybridDFA(groups=4, modules="features.?.?"),
    "HybridDFA, 4 groups, one module": HybridDFA(groups=4, modules="features"),
}


def _lines(config: ReproduceConfig, data: str) -> list[Line]:
    width = SCALES[config.scale].width
    # A quarter of ResNet-20's 16 channels would leave nothing to divide into groups.
    networks: list[tuple[str, Network, dict[str, Rule]]] = [
        ("VGG-16", VGG16(width=width), _VGG),
        ("ResNet-20", ResNet(width=round(16 * max(width, 0.5))), _RESNET),
    ]
    return [
        _line(config, data, name, network, rule, r) for name, network, rules in networks for rule, r in rules.items()
    ]


def _line(config: ReproduceConfig, data: str, network: str, model: Network, named: str, rule: Rule) -> Line:
    scale, epochs = SCALES[config.scale], config.epochs or EPOCHS[config.scale]
    train = TrainConfig(
        data=data,
        data_root=config.data_root,
        train_size=scale.train_size,
        model=model,
        rule=rule,
        epochs=epochs,
        clip=10.0,
    )
    return hybrid_line(config, train, f"{named}, {network}", lrs=LRS, validation=(scale.train_size or _ALL) // 5)


HYBRID_CNN = Experiment(
    name="hybrid-cnn",
    title="Module-wise and hybrid DFA on convolutional networks",
    about="Does direct feedback within modules, by dilated and grouped convolutions, with back-propagation between "
    "them, train as well as back-propagation at fewer multiply-adds of error propagation? A module is a run of "
    "convolutions at one resolution, or the head, where the row names no other. This is "
    "[our reading](../../docs/modules.md) of arXiv 2006.12830, of which we know the abstract alone.",
    lines=_lines,
    plot=dots_and_costs,
    costs=True,
)
