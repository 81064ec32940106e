"""The methods that experiments compare, by the names under which tables and plots show them."""

from __future__ import annotations

from dataclasses import replace

from torchdfa.rules import BDFA, BP, CBDFA, CDFA, DFA, FA, Frozen, Rule

METHODS: dict[str, Rule | dict[str, Rule]] = {
    "BP": BP(),
    "Conv-only": {"classifier.*": Frozen()},
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
}
_PALETTE = (
    *("#000000", "#8c8c8c", "#e69f00", "#f0e442", "#56b4e9", "#0072b2", "#f0a0c0", "#cc79a7"),
    *("#009e73", "#66c2a5", "#d55e00", "#7a3b00", "#b8860b", "#9467bd"),
)
COLORS = dict(zip(METHODS, _PALETTE, strict=True))


def method(name: str, seed: int) -> Rule | dict[str, Rule]:
    """Return a method's rule with its random feedback drawn from ``seed``.

    Raises:
        ValueError: There is no such method; the message lists those there are.
    """
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}; there are {', '.join(map(repr, METHODS))}.")
    rule = METHODS[name]
    return {k: _seeded(r, seed) for k, r in rule.items()} if isinstance(rule, dict) else _seeded(rule, seed)


def _seeded(rule: Rule, seed: int) -> Rule:
    return replace(rule, seed=seed) if hasattr(rule, "seed") else rule  # type: ignore[call-arg]
