"""What all units share: ports by name, and arithmetic whose every result is a named signal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Elaboratable, Module, Mux, Signal, signed


class Unit(Elaboratable):
    """A unit with named inputs and outputs and a fixed latency.

    Attributes:
        inputs: By name.
        outputs: By name.
        latency: Clock edges from an input to the output that depends on it.
    """

    latency: int
    _MustUse__silence = True  # a unit is also built only to read its ports

    def __init__(self) -> None:
        self.inputs: dict[str, Signal] = {}
        self.outputs: dict[str, Signal] = {}

    def input(self, name: str, shape: Any = 1) -> Signal:
        """Declare an input."""
        return self.inputs.setdefault(name, Signal(shape, name=name))

    def output(self, name: str, shape: Any = 1, *, init: int = 0, reset_less: bool = False) -> Signal:
        """Declare an output; ``init`` is its value before the first clock edge, and at reset."""
        return self.outputs.setdefault(name, Signal(shape, name=name, init=init, reset_less=reset_less))

    @property
    def ports(self) -> list[Signal]:
        """All of them, inputs first."""
        return [*self.inputs.values(), *self.outputs.values()]


def named(m: Module, name: str, value: Any) -> Signal:
    """Give a value's result a name."""
    signal = Signal(value.shape(), name=name)
    m.d.comb += signal.eq(value)
    return signal


def delayed(m: Module, signal: Signal, name: str, *, reset: bool = False) -> Signal:
    """Return a signal of one clock ago. Data needs no reset: what is valid does."""
    later = Signal(signal.shape(), name=name, reset_less=not reset)
    m.d.sync += later.eq(signal)
    return later


def add_tree(m: Module, terms: Sequence[Any], name: str) -> Any:
    """Add up in pairs, each level one bit wider."""
    level = 0
    while len(terms) > 1:
        level += 1
        pairs = [named(m, f"{name}_{level}_{i // 2}", terms[i] + terms[i + 1]) for i in range(0, len(terms) - 1, 2)]
        terms = [*pairs, *terms[len(terms) // 2 * 2 :]]
    return terms[0]


def saturated(m: Module, value: Signal, width: int, name: str) -> Signal:
    """Clip to two's complement of so many bits."""
    highest, lowest = 2 ** (width - 1) - 1, -(2 ** (width - 1))
    clipped = Mux(value > highest, highest, Mux(value < lowest, lowest, value))
    signal = Signal(signed(width), name=name)
    m.d.comb += signal.eq(clipped)
    return signal


def rounded(m: Module, value: Signal, shift: Signal, name: str) -> Signal:
    """Shift right to the nearest, halves upward; a shift of 0 leaves the value."""
    doubled = named(m, f"{name}_doubled", value << 1)
    shifted = named(m, f"{name}_shifted", doubled >> shift)
    return named(m, f"{name}_rounded", (shifted + 1) >> 1)
