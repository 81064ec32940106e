"""Reads Liberty files: areas, functions, capacitances, tables of delay and energy."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A comment that is not closed goes on to the end: to look for its end from every one on would take the square of time.
_TOKEN = re.compile(r'/\*(?:.*?\*/|.*)|//[^\n]*|\\\r?\n|"[^"]*"|[^\s"(){}:;,]+|[(){}:;,]', re.S)
# Bytes of a library that was packed, unpacked.
_LARGEST = 1 << 29
_FARADS = {"pf": 1e-12, "ff": 1e-15}
_PREFIX = {"p": 1e-12, "n": 1e-9, "u": 1e-6, "m": 1e-3}


class LibertyError(ValueError):
    """A file is no Liberty file, or lacks what is needed of it; the message says what."""


@dataclass
class Group:
    """``name (arguments) { attributes and groups }``."""

    name: str
    arguments: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)

    def all(self, *names: str) -> Iterator[Group]:
        """Yield the groups of these names."""
        return (g for g in self.groups if g.name in names)


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
        """Interpolate; beyond the ends take the end's value."""
        i, f = _place(self.slews, slew)
        j, g = _place(self.loads, load)
        v = self.values
        low = v[i, j] if not g else v[i, j] * (1 - g) + v[i, j + 1] * g
        if not f:
            return float(low)
        high = v[i + 1, j] if not g else v[i + 1, j] * (1 - g) + v[i + 1, j + 1] * g
        return float(low * (1 - f) + high * f)


def _place(axis: NDArray[np.float64], at: float) -> tuple[int, float]:
    if len(axis) < 2 or at <= axis[0]:
        return 0, 0.0
    if at >= axis[-1]:
        return len(axis) - 1, 0.0
    i = int(np.searchsorted(axis, at)) - 1
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
        farads: Unit of capacitance; energies are in farads · V².
        cells: By name.
    """

    name: str
    volts: float
    seconds: float
    farads: float
    cells: Mapping[str, Cell]


def read_liberty(path: Path | str) -> Library:
    """Read a Liberty file, gzipped or not.

    Raises:
        LibertyError: It is none, or has no unit of capacitance or supply voltage.
        OSError: It can't be read.
    """
    path = Path(path)
    raw = _unpacked(path) if path.suffix == ".gz" else path.read_bytes()
    tokens = [t for t in _TOKEN.findall(raw.decode(errors="replace")) if t[:2] not in ("/*", "//") and t[0] != "\\"]
    if not tokens or tokens[0] != "library":
        raise LibertyError(f"{path} is no Liberty file: it does not begin with library(...).")
    try:
        top, _ = _group(tokens, 0)
        unit = top.attributes["capacitive_load_unit"]
        farads = float(unit[0]) * _FARADS[unit[1].lower()]
        seconds = _quantity(top.attributes["time_unit"])
        leakage = _quantity(top.attributes.get("leakage_power_unit", "1nW"))
        volts = float(top.attributes["nom_voltage"])
        if not all(math.isfinite(x) and x > 0 for x in (farads, seconds, volts)):
            raise LibertyError(f"units of {farads} F and {seconds} s at {volts} V, expected positive numbers.")
        templates = {g.arguments[0]: g for g in top.all("lu_table_template", "power_lut_template")}
        cells = {g.arguments[0]: _cell(g, templates, farads, leakage) for g in top.all("cell")}
        return Library(top.arguments[0], volts, seconds, farads, cells)
    except LibertyError as error:
        raise LibertyError(f"{path}: {error}") from error
    except (KeyError, IndexError) as error:
        raise LibertyError(f"{path}: {error} is missing, or the file ends too early.") from error
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise LibertyError(f"{path}: an entry is none ({type(error).__name__}: {error}).") from error


def _unpacked(path: Path) -> bytes:
    try:
        with gzip.open(path) as stream:
            raw = stream.read(_LARGEST + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise LibertyError(f"{path}: a broken gzip stream ({error}).") from error
    if len(raw) > _LARGEST:
        raise LibertyError(f"{path}: more than {_LARGEST:,} bytes when unpacked; no library is that large.")
    return raw


def _quantity(text: str) -> float:
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([pnum]?)[sW]", text)
    if not match:
        raise LibertyError(f"unit {text!r}, expected one such as 1ns or 1nW.")
    return float(match[1]) * _PREFIX.get(match[2], 1.0)


def _group(tokens: list[str], i: int) -> tuple[Group, int]:
    """Read a group from its name on; return it and the place behind it."""
    arguments, i = _arguments(tokens, i + 1, Group(tokens[i], []))
    group = arguments
    i += 1  # the brace
    while tokens[i] != "}":
        name, following = tokens[i], tokens[i + 1]
        if name == ";":
            i += 1
        elif following == ":":
            value = [tokens[i + 2]]
            i += 3
            while value[0][0] != '"' and tokens[i] not in (";", "}") and tokens[i + 1] not in (":", "("):
                value.append(tokens[i])
                i += 1
            group.attributes[name] = " ".join(value).strip('"')
        elif following == "(":
            inner, end = _arguments(tokens, i + 1, Group(name, []))
            if end < len(tokens) and tokens[end] == "{":
                inner, i = _group(tokens, i)
                group.groups.append(inner)
            else:
                group.attributes[name] = inner.arguments
                i = end
        else:
            raise LibertyError(f"Liberty: {' '.join(tokens[i : i + 4])!r}, expected `name : value` or `name (...)`.")
    return group, i + 1


def _arguments(tokens: list[str], i: int, group: Group) -> tuple[Group, int]:
    i += 1
    while tokens[i] != ")":
        if tokens[i] != ",":
            group.arguments.append(tokens[i].strip('"'))
        i += 1
    return group, i + 1


def _numbers(texts: list[str]) -> NDArray[np.float64]:
    return np.array([float(x) for text in texts for x in re.split(r"[,\s\\]+", text) if x])


def _table(group: Group, templates: Mapping[str, Group]) -> Table:
    template = templates.get(group.arguments[0] if group.arguments else "", Group("", []))
    empty = np.zeros(0)
    axes = {"slew": empty, "load": empty}
    order: list[str] = []
    for n in ("1", "2"):
        variable = template.attributes.get(f"variable_{n}", "")
        index = group.attributes.get(f"index_{n}", template.attributes.get(f"index_{n}"))
        if index is None or len(numbers := _numbers(index)) < 2:
            continue
        # Constraint tables run over the clock's slew and the data's: the clock's takes the load's place.
        axis = (
            "load" if "capacitance" in variable or variable == "related_pin_transition" or "slew" in order else "slew"
        )
        axes[axis] = numbers
        order.append(axis)
    values = _numbers(group.attributes["values"])
    if order == ["load", "slew"]:
        values = values.reshape(len(axes["load"]), -1).T
    values = values.reshape(max(1, len(axes["slew"])), max(1, len(axes["load"])))
    return Table(axes["slew"], axes["load"], values)


def _arcs(pin: Group, kind: str, templates: Mapping[str, Group]) -> tuple[Arc, ...]:
    return tuple(
        Arc(
            g.attributes.get("related_pin", "").strip(),
            g.attributes.get("timing_type", "combinational") if kind == "timing" else "power",
            {t.name: _table(t, templates) for t in g.groups if "values" in t.attributes},
        )
        for g in pin.all(kind)
    )


def _cell(group: Group, templates: Mapping[str, Group], farads: float, leakage: float) -> Cell:
    pins = {
        g.arguments[0]: Pin(
            g.attributes.get("direction") == "output",
            float(g.attributes.get("capacitance", 0)) * farads,
            g.attributes.get("function", ""),
            _arcs(g, "timing", templates),
            _arcs(g, "internal_power", templates),
        )
        for g in group.all("pin")
    }
    flop = next(group.all("ff"), None)
    return Cell(
        float(group.attributes.get("area", 0)),
        float(group.attributes.get("cell_leakage_power", 0)) * leakage,
        pins,
        (flop.arguments[0], flop.arguments[1]) if flop else None,
        flop.attributes.get("next_state", "") if flop else "",
        flop.attributes.get("clocked_on", "") if flop else "",
    )


def render(function: str, name: Callable[[str], str], negate: Callable[[str], str]) -> str:
    """Rewrite a Liberty function with ``& | ^`` and brackets, its pins by ``name``, negations by ``negate``.

    Raises:
        LibertyError: It is no function.
    """
    tokens = re.findall(r"[A-Za-z_][\w\[\]]*|[01]|[()!'&*|+^]", function)
    place = 0

    def peek() -> str:
        return tokens[place] if place < len(tokens) else ""

    def take() -> str:
        nonlocal place
        place += 1
        return tokens[place - 1]

    def atom() -> str:
        token = take() if peek() else ""
        if token == "(":
            value = either()
            if not peek() or take() != ")":
                raise LibertyError(f"function {function!r}: a bracket is not closed.")
        elif token == "!":
            return negate(atom())
        elif re.match(r"[\w]", token):
            value = name(token)
        else:
            raise LibertyError(f"function {function!r}: {token!r} where a pin was expected.")
        while peek() == "'":
            take()
            value = negate(value)
        return value

    def exclusive() -> str:
        value = atom()
        while peek() == "^":
            take()
            value = f"({value} ^ {atom()})"
        return value

    def both() -> str:
        value = exclusive()
        while peek() in ("&", "*") or re.match(r"[\w(!]", peek()):
            if peek() in ("&", "*"):
                take()
            value = f"({value} & {exclusive()})"
        return value

    def either() -> str:
        value = both()
        while peek() in ("|", "+"):
            take()
            value = f"({value} | {both()})"
        return value

    if "".join(tokens) != "".join(function.split()):
        raise LibertyError(f"function {function[:200]!r} has characters that no function has.")
    try:
        value = either()
    except RecursionError:
        raise LibertyError(f"function {function[:200]!r}…: too many brackets in one another.") from None
    if peek():
        raise LibertyError(f"function {function[:200]!r}: {peek()!r} is left over.")
    return value


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
