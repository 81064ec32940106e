"""Module-wise and hybrid DFA on language models: recurrent ones, and a small GPT."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torchdfa.baselines import KolenPollack
from torchdfa.experiments.reproduce.config import ReproduceConfig
from torchdfa.experiments.reproduce.experiment import Experiment
from torchdfa.experiments.reproduce.hybrid import hybrid_line
from torchdfa.experiments.reproduce.plots import dots_and_costs
from torchdfa.experiments.study import Line
from torchdfa.language import GPT, LanguageModel, RecurrentLM
from torchdfa.modular import HybridDFA, ModuleDFA
from torchdfa.rules import BP, DFA, Rule
from torchdfa.training import TrainConfig

Rules = dict[str, Rule | dict[str, Rule]]

LRS = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
_VALIDATION = 50000


@dataclass(frozen=True)
class TextScale:
    """How large an experiment on a text is.

    Attributes:
        train_size: Tokens to learn from; None for all.
        epochs: Passes.
        vocabulary: Words; None for all. Characters are always all.
        recurrent: Width of a recurrent model.
        transformer: Width of a GPT.
        dropout: Of both.
        sequence: Tokens of a step in each stream.
    """

    train_size: int | None
    epochs: int
    vocabulary: int | None
    recurrent: int
    transformer: int
    dropout: float
    sequence: int


_TEXTS = {
    "wikitext-2": {
        "small": TextScale(100_000, 4, 2000, 128, 64, 0.0, 35),
        "medium": TextScale(None, 6, 10_000, 256, 128, 0.2, 35),
        "paper": TextScale(None, 40, None, 650, 256, 0.5, 35),
    },
    "tiny-shakespeare": {
        "small": TextScale(160_000, 4, None, 128, 64, 0.0, 64),
        "medium": TextScale(None, 10, None, 256, 128, 0.1, 64),
        "paper": TextScale(None, 50, None, 512, 384, 0.2, 128),
    },
}
_ALIKE: Rules = {
    "BP": BP(),
    "DFA": DFA(),
    "ModuleDFA": ModuleDFA(density=0.25),
    "HybridDFA": HybridDFA(density=0.25),
    "HybridDFA between chunks": HybridDFA(direct="between", density=0.25, chunk=8),
}
# Errors of thousands of words are most of the cost.
_HEAD: Rules = {
    "HybridDFA, sparse head": {"recurrent": HybridDFA(density=0.25), "head": ModuleDFA(density=0.25)},
}
_ABLATIONS: Rules = {
    "HybridDFA, density 1": HybridDFA(),
    "HybridDFA, density 1/16": HybridDFA(density=1 / 16),
    "HybridDFA, chunks of 8": HybridDFA(density=0.25, chunk=8),
}
_TRANSFORMER: Rules = {
    "BP": BP(),
    "DFA": DFA(),
    "DFA, learned feedback": KolenPollack(direct=True),
    "FA, learned feedback": KolenPollack(),
    "block-level DFA": HybridDFA(direct="between"),
    "ModuleDFA": ModuleDFA(density=0.25),
    "HybridDFA": HybridDFA(density=0.25),
    "HybridDFA, density 1": HybridDFA(),
    "HybridDFA, binary": HybridDFA(density=0.25, binary=True),
}
# Dense feedback from thousands of words to every layer costs many times what back-propagation does.
_TRANSFORMER_WORDS = ("BP", "FA, learned feedback", "block-level DFA", "ModuleDFA", "HybridDFA")


def _recurrent(config: ReproduceConfig, data: str) -> list[Line]:
    text = _TEXTS[data][config.scale]
    words = data == "wikitext-2"
    kinds: list[tuple[Literal["lstm", "gru"], Rules]] = [("lstm", _ALIKE | (_HEAD if words else _ABLATIONS))]
    if words:
        kinds.append(("gru", {"BP": BP(), "ModuleDFA": ModuleDFA(density=0.25)} | _HEAD))
    return [
        _line(config, data, f"{name}, {kind.upper()}", RecurrentLM(kind=kind, width=text.recurrent), rule, 20)
        for kind, rules in kinds
        for name, rule in rules.items()
    ]


def _transformer(config: ReproduceConfig, data: str) -> list[Line]:
    text = _TEXTS[data][config.scale]
    names = _TRANSFORMER_WORDS if data == "wikitext-2" else tuple(_TRANSFORMER)
    model = GPT(width=text.transformer, context=text.sequence)
    return [_line(config, data, f"{name}, GPT", model, _TRANSFORMER[name], 16) for name in names]


def _line(
    config: ReproduceConfig,
    data: str,
    name: str,
    model: RecurrentLM | GPT,
    rule: Rule | dict[str, Rule],
    batch_size: int,
) -> Line:
    text = _TEXTS[data][config.scale]
    epochs = config.epochs or text.epochs
    named: LanguageModel = replace(model, dropout=text.dropout)
    train = TrainConfig(
        data=data,
        data_root=config.data_root,
        train_size=text.train_size,
        vocabulary=text.vocabulary,
        sequence=text.sequence,
        model=named,
        rule=rule,
        epochs=epochs,
        batch_size=batch_size,
        optimizer="adam",
        weight_decay=0.0,
        clip=1.0,
    )
    return hybrid_line(config, train, name, lrs=LRS, validation=_VALIDATION)


_READING = (
    "This is [our reading](../../docs/modules.md) of arXiv 2006.12830, of which we know the abstract alone. "
    "Perplexities of so small models, texts and vocabularies can be compared with one another, not with the "
    "literature's."
)
HYBRID_RNN = Experiment(
    name="hybrid-rnn",
    title="Module-wise and hybrid DFA on recurrent networks",
    about="Can sparse feedback take the place of the products through time and between layers? Where a row names no "
    "other, a quarter of the feedback's entries is not zero, and all steps of a layer are a module. DFA: the output's "
    "error reaches the upper layer's states through fixed feedback, and goes on by back-propagation. HybridDFA: within "
    "a layer direct, between layers and to the head by back-propagation; with a sparse head that is direct as well. "
    "Between chunks: back-propagation within eight steps, direct feedback to their first state. " + _READING,
    lines=_recurrent,
    plot=dots_and_costs,
    data=("wikitext-2", "tiny-shakespeare"),
    costs=True,
)
TRANSFORMER = Experiment(
    name="transformer",
    title="Module-wise and hybrid DFA on a small transformer",
    about="Which part of a transformer's error propagation can be direct? Block-level DFA: the output's error enters "
    "at every block's output, blocks back-propagate it. HybridDFA: within a block direct, between blocks by "
    "back-propagation. ModuleDFA: direct in both. Where these two name no density, a quarter of the feedback's entries "
    "is not zero. Learned feedback follows the weights (Kolen & Pollack 1994), the faster the more these decay; "
    "its rows search the decay, as back-propagation's does. " + _READING,
    lines=_transformer,
    plot=dots_and_costs,
    data=("tiny-shakespeare", "wikitext-2"),
    costs=True,
)
