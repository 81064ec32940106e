"""Reads Liberty files."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchdfa.hardware.cells import OTHER_EDGE, Arc, Cell, LibertyError, Library, Pin, Table

# Comments and strings that are not closed go on to the end: to look for the end of each would take the square of time.
_TOKEN = re.compile(
    r"""/\*(?:.*?\*/|.*)|//[^\n]*|\\\r?\n|"[^"\\]*(?:\\.[^"\\]*)*"?|(?:[^\s"(){}:;,/\\]|/(?![*/])|\\(?!\r?\n))+"""
    r"""|[(){}:;,]""",
    re.S,
)
# Bytes of a library that was packed, unpacked.
_LARGEST = 1 << 29
_FARADS = {"pf": 1e-12, "ff": 1e-15}
_PREFIX = {"f": 1e-15, "p": 1e-12, "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0}
# The tables that are read; a library may have others beside them.
_TIMES = ("cell_rise", "cell_fall", "rise_transition", "fall_transition", "rise_constraint", "fall_constraint")
_ENERGIES = ("rise_power", "fall_power", "power")
# What entries of a wrong type or number raise.
_BROKEN = (KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError)


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


def read_liberty(path: Path | str) -> Library:
    """Read a Liberty file, gzipped or not.

    Raises:
        LibertyError: It is none, has no unit of capacitance or supply voltage, or an entry of a cell is broken, which
            the message names.
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
        seconds = _quantity(top.attributes["time_unit"], "s")
        watts = _quantity(top.attributes.get("leakage_power_unit", "1nW"), "W")
        volt = _quantity(top.attributes.get("voltage_unit", "1V"), "V")
        volts = float(top.attributes["nom_voltage"]) * volt
        if not all(math.isfinite(x) and x > 0 for x in (farads, seconds, volts)):
            raise LibertyError(f"units of {farads} F and {seconds} s at {volts} V, expected positive numbers.")
        templates = {g.arguments[0]: g for g in top.all("lu_table_template", "power_lut_template")}
        cells = {g.arguments[0]: _cell(g, top.attributes, templates, farads, watts) for g in top.all("cell")}
        return Library(top.arguments[0], volts, seconds, farads, farads * volt**2, cells)
    except LibertyError as error:
        raise LibertyError(f"{path}: {error}") from error
    except (KeyError, IndexError) as error:
        raise LibertyError(f"{path}: {error} is missing, or the file ends too early.") from error
    except (*_BROKEN, RecursionError) as error:
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


def _quantity(text: str, unit: str) -> float:
    match = re.fullmatch(rf"(\d+\.?\d*|\.\d+)\s*([fpnum]?){unit}", text)
    if not match:
        raise LibertyError(f"unit {text!r}, expected one such as 1n{unit}.")
    return float(match[1]) * _PREFIX[match[2]]


def _text(token: str) -> str:
    """Return a string without its quotes and escapes, lines that go on joined by a blank; anything else as it is."""
    if token[0] != '"':
        return token
    return re.sub(r'\\(?:(["\\])|\r?\n)', lambda m: m[1] or " ", token.removeprefix('"').removesuffix('"'))


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
            group.attributes[name] = " ".join(map(_text, value))
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
            group.arguments.append(_text(tokens[i]))
        i += 1
    return group, i + 1


def _numbers(texts: list[str]) -> NDArray[np.float64]:
    return np.array([float(x) for text in texts for x in re.split(r"[,\s]+", text) if x])


def _table(group: Group, templates: Mapping[str, Group]) -> Table:
    template = templates.get(group.arguments[0] if group.arguments else "", Group("", []))
    axes: dict[str, NDArray[np.float64]] = {}
    for n in ("1", "2", "3"):
        variable = template.attributes.get(f"variable_{n}", "")
        index = group.attributes.get(f"index_{n}", template.attributes.get(f"index_{n}"))
        if index is None:
            continue
        if variable.startswith(("equal_or_opposite_output", "related_out")):
            axis = "other"
        # Constraint tables run over the clock's slew and the data's: the clock's takes the load's place.
        elif "capacitance" in variable or variable == "related_pin_transition" or "slew" in axes:
            axis = "load"
        else:
            axis = "slew"
        axes[axis] = _numbers(index)
        if not (np.diff(axes[axis]) > 0).all():
            raise LibertyError(f"{group.name}: index_{n} is {', '.join(index)!r}, expected rising numbers.")
    values, shape = _numbers(group.attributes["values"]), [len(x) for x in axes.values()]
    if values.size != math.prod(shape):
        raise LibertyError(f"{group.name}: {values.size} values, expected {' x '.join(map(str, shape)) or 1}.")
    # What another output's load adds is that output's own: the lightest one is taken.
    order = [list(axes).index(axis) for axis in ("other", "slew", "load") if axis in axes]
    values = values.reshape(shape).transpose(order)
    values = values[0] if "other" in axes else values
    slews, loads = (axes.get(axis, np.zeros(0)) for axis in ("slew", "load"))
    return Table(slews, loads, values.reshape(max(1, len(slews)), max(1, len(loads))))


def _arcs(pin: Group, kind: str, read: tuple[str, ...], templates: Mapping[str, Group]) -> Iterator[Arc]:
    """Yield the arcs of a pin's groups of one kind, one for each pin that a group names."""
    for g in pin.all(kind):
        way = g.attributes.get("timing_type", "combinational") if kind == "timing" else "power"
        other = OTHER_EDGE.get(way)
        tables = {t.name: _table(t, templates) for t in g.all(*read) if other is None or other not in t.name}
        for related in g.attributes.get("related_pin", "").split() or [""]:
            yield Arc(related, way, tables)


def _pins(cell: Group) -> dict[str, Group]:
    """Return a cell's pins; those of a bus or bundle have what it says, and what they say themselves."""
    found = {name: g for g in cell.all("pin") for argument in g.arguments for name in argument.split()}
    for outer in cell.all("bus", "bundle"):
        members = [name for text in outer.attributes.get("members", ()) for name in text.split()]
        for name, inner in ({name: Group("pin", [name]) for name in members} | _pins(outer)).items():
            attributes = {**outer.attributes, **inner.attributes}
            found[name] = Group("pin", [name], attributes, [*outer.groups, *inner.groups])
    return found


def _pin(group: Group, defaults: Mapping[str, Any], templates: Mapping[str, Group], farads: float) -> Pin:
    attributes = group.attributes
    direction = attributes.get("direction", "")
    edges = [float(attributes[x]) for x in ("rise_capacitance", "fall_capacitance") if x in attributes]
    default = sum(edges) / len(edges) if edges else defaults.get(f"default_{direction}_pin_cap", 0)
    return Pin(
        direction == "output",
        float(attributes.get("capacitance", default)) * farads,
        attributes.get("function", ""),
        tuple(_arcs(group, "timing", _TIMES, templates)),
        tuple(_arcs(group, "internal_power", _ENERGIES, templates)),
    )


def _cell(
    group: Group, defaults: Mapping[str, Any], templates: Mapping[str, Group], farads: float, watts: float
) -> Cell:
    """Read a cell; ``defaults`` are the library's attributes, ``watts`` its unit of leakage."""
    where = f"cell {group.arguments[0]!r}"
    try:
        area = float(group.attributes.get("area", 0))
        states = [float(g.attributes["value"]) for g in group.all("leakage_power")]
        default = sum(states) / len(states) if states else defaults.get("default_cell_leakage_power", 0)
        leakage = float(group.attributes.get("cell_leakage_power", default)) * watts
        flop = next(group.all("ff"), None)
        state = (flop.arguments[0], flop.arguments[1]) if flop else None
        pins = {}
        for name, pin in _pins(group).items():
            where = f"cell {group.arguments[0]!r}, pin {name!r}"
            pins[name] = _pin(pin, defaults, templates, farads)
    except LibertyError as error:
        raise LibertyError(f"{where}: {error}") from error
    except _BROKEN as error:
        raise LibertyError(f"{where}: an entry is missing or none ({type(error).__name__}: {error}).") from error
    said = flop.attributes if flop else {}
    return Cell(area, leakage, pins, state, said.get("next_state", ""), said.get("clocked_on", ""))
