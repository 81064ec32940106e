"""Standard cells: areas, functions, capacitances, tables of delay and energy; and Yosys' own gates as such."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Arcs of which one edge alone is there, and the edge of the output that it does without.
OTHER_EDGE = {"combinational_rise": "fall", "combinational_fall": "rise"}
_DELAYS = ("combinational", *OTHER_EDGE, "rising_edge")


class LibertyError(ValueError):
    """A file is no Liberty file, or lacks what is needed of it; the message says what."""


@dataclass(frozen=True)
class Table:
    """Values over input slew and output load, in the library's units; constant, one-dimensional or both.

    Attributes:
        slews: First axis; empty where the values don't depend on it.
        loads: Second axis; empty where the values don't depend on it.
        values: (slews, loads), an empty axis having length 1.
    """

    slews: NDArray[np.float64]
    loads: NDArray[np.float64]
    values: NDArray[np.float64]

    def __call__(self, slew: float, load: float) -> float:
        """Interpolate; beyond the ends go on along the last segment, as OpenSTA does."""
        i, f = _place(self.slews, slew)
        j, g = _place(self.loads, load)
        v = self.values
        low = v[i, j] if not g else v[i, j] * (1 - g) + v[i, j + 1] * g
        if not f:
            return float(low)
        high = v[i + 1, j] if not g else v[i + 1, j] * (1 - g) + v[i + 1, j + 1] * g
        return float(low * (1 - f) + high * f)


def _place(axis: NDArray[np.float64], at: float) -> tuple[int, float]:
    """Return the segment and the place in it, which beyond the ends is below 0 or above 1."""
    if len(axis) < 2:
        return 0, 0.0
    i = min(max(int(np.searchsorted(axis, at)) - 1, 0), len(axis) - 2)
    return i, float((at - axis[i]) / (axis[i + 1] - axis[i]))


@dataclass(frozen=True)
class Arc:
    """Tables of one way through a cell, ``kind`` being Liberty's timing_type, for timing.

    Attributes:
        related: Input pin; "" where none is named.
        kind: ``combinational``, ``rising_edge``, ``setup_rising``; ``power`` for energy.
        tables: By Liberty's name: cell_rise, rise_transition, rise_power …
    """

    related: str
    kind: str
    tables: Mapping[str, Table]

    def delays(self, slew: float, load: float) -> list[float]:
        """Return the delays of its edges, in the library's unit; what a table's extrapolation makes negative is 0."""
        return [max(0.0, t(slew, load)) for name, t in self.tables.items() if name.startswith("cell_")]

    def transitions(self, slew: float, load: float) -> list[float]:
        """Return the output's slews, likewise."""
        return [max(0.0, t(slew, load)) for name, t in self.tables.items() if name.endswith("_transition")]


@dataclass(frozen=True)
class Pin:
    """A cell's pin.

    Attributes:
        output: Whether it is an output.
        farads: Its capacitance.
        function: Of an output, as Liberty writes it.
        timing: Delay and constraint arcs.
        power: Energy arcs.
    """

    output: bool
    farads: float
    function: str
    timing: tuple[Arc, ...]
    power: tuple[Arc, ...]

    @property
    def delays(self) -> list[Arc]:
        """The arcs from an input to this output, or from the clock's rising edge, that have a delay."""
        return [
            a for a in self.timing if a.related and a.kind in _DELAYS and any(t.startswith("cell_") for t in a.tables)
        ]


@dataclass(frozen=True)
class Cell:
    """A standard cell.

    Attributes:
        area: In the library's unit, µm² as a rule.
        watts: Leakage.
        pins: By name.
        state: Names of a flip-flop's state and its inverse; None where there is none.
        next_state: Function of a flip-flop's next state.
        clock: Its clock function.
    """

    area: float
    watts: float
    pins: Mapping[str, Pin]
    state: tuple[str, str] | None
    next_state: str
    clock: str


@dataclass(frozen=True)
class Library:
    """A Liberty file.

    Attributes:
        name: As it calls itself.
        volts: Supply.
        seconds: Unit of time.
        farads: Unit of capacitance.
        joules: Unit of energy: that of capacitance times the square of that of voltage.
        cells: By name.
    """

    name: str
    volts: float
    seconds: float
    farads: float
    joules: float
    cells: Mapping[str, Cell]


def _gate(transistors: int, function: str, inputs: str = "AB") -> Cell:
    pins = {pin: Pin(False, 0.0, "", (), ()) for pin in inputs}
    return Cell(transistors, 0.0, {**pins, "Y": Pin(True, 0.0, function, (), ())}, None, "", "")


def _flop(transistors: int) -> Cell:
    pins = {"C": Pin(False, 0.0, "", (), ()), "D": Pin(False, 0.0, "", (), ()), "Q": Pin(True, 0.0, "IQ", (), ())}
    return Cell(transistors, 0.0, pins, ("IQ", "IQN"), "D", "C")


# Yosys' own gates, for synthesis without a library; the transistors are those that its `stat -tech cmos` counts.
GENERIC = Library(
    "generic",
    1.0,
    1.0,
    1.0,
    1.0,
    {
        "$_NOT_": _gate(2, "!A", "A"),
        "$_NAND_": _gate(4, "!(A & B)"),
        "$_NOR_": _gate(4, "!(A | B)"),
        "$_AND_": _gate(6, "A & B"),
        "$_OR_": _gate(6, "A | B"),
        "$_ANDNOT_": _gate(6, "A & !B"),
        "$_ORNOT_": _gate(6, "A | !B"),
        "$_XOR_": _gate(12, "A ^ B"),
        "$_XNOR_": _gate(12, "!(A ^ B)"),
        "$_MUX_": _gate(12, "(A & !S) | (B & S)", "ABS"),
        "$_DFF_P_": _flop(16),
    },
)
