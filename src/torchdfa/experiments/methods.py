"""The methods that experiments compare, by the names under which tables and plots show them."""

from __future__ import annotations

from dataclasses import replace

from torchdfa.experiments.normalised import NormalisedBDFA
from torchdfa.rules import BDFA, BP, CBDFA, CDFA, DFA, FA, Frozen, Rule
from torchdfa.training.config import each_rule

# Of the networks in torchdfa.models: features is the trunk, classifier the head, classifier.0 its first layer.
METHODS: dict[str, Rule | dict[str, Rule]] = {
    "BP": BP(),
    "Conv-only": {"classifier.*": Frozen()},
    "Head-only": {"features.*": Frozen()},
    "FA": FA(),
    "FA in the head": {"features.*": BP(), "classifier.*": FA()},
    "DFA": DFA(),
    "BDFA": BDFA(),
    "CDFA random": CDFA(),
    "CDFA (7)": CDFA(init="product"),
    "CBDFA random": CBDFA(),
    "CBDFA seeded": CBDFA(storage="seeded"),
    "CBDFA (9)": CBDFA(init="product"),
    "CBDFA (9) unit": CBDFA(init="product", scale="unit"),
    "CBDFA (9) centred": CBDFA(init="product", center=True),
    "CBDFA (9) chain": CBDFA(init="product", trunk="chain"),
    "trunk (7)": {"classifier.0": DFA(init="product")},
    "trunk ±1 (9)": {"classifier.0": BDFA(init="product")},
    "trunk ±1 random": {"classifier.0": BDFA()},
    "trunk ±1 (9) centred": {"classifier.0": BDFA(init="product", center=True)},
    "trunk ±1 (9) normalised": {"classifier.0": NormalisedBDFA(init="product")},
}
_PALETTE = (
    *("#000000", "#8c8c8c", "#c0c0c0", "#e69f00", "#f0e442", "#56b4e9", "#0072b2", "#f0a0c0", "#cc79a7"),
    *(
        "#009e73",
        "#66c2a5",
        "#d55e00",
        "#7a3b00",
        "#b8860b",
        "#9467bd",
        "#4b0082",
        "#8b0000",
        "#ff7f50",
        "#556b2f",
        "#00ced1",
    ),
)
COLORS = dict(zip(METHODS, _PALETTE, strict=True))


def method(name: str, seed: int = 0) -> Rule | dict[str, Rule]:
    """Return a method's rule with its random feedback drawn from ``seed``.

    Raises:
        ValueError: There is no such method; the message lists those there are.
    """
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}; there are {', '.join(map(repr, METHODS))}.")
    return seeded(METHODS[name], seed)


def seeded(rule: Rule | dict[str, Rule], seed: int) -> Rule | dict[str, Rule]:
    """Return a rule with its random feedback drawn from ``seed``."""

    def change(rule: Rule) -> Rule:
        return replace(rule, seed=seed) if hasattr(rule, "seed") else rule  # type: ignore[call-arg]

    return each_rule(rule, change)
