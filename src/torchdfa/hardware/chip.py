"""A described chip: its arrays, memories, clock, and what an operation or a byte costs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from torchdfa.hardware.cacti import sram_picojoules


@dataclass(frozen=True, kw_only=True)
class Chip:
    """What ``torchdfa.hardware.step`` needs of a chip.

    Attributes:
        name: Of its file; of a user's, with six digits of what it holds.
        about: What it is.
        megahertz: Clock.
        rows: Of the MAC array: outputs of one sample that are accumulated side by side.
        columns: Of the MAC array: samples or positions side by side.
        terms: Of the direct error propagation core, a cycle and lane; 0 where there is none.
        lanes: Of it.
        update_lanes: Weights that are updated a cycle.
        bytes: Of an activation, error, weight, velocity and dense feedback entry.
        sram_bytes: Of the on-chip memory, of which half holds what is used and half what is fetched next.
        sram_pj: Picojoules a byte.
        dram_pj: Picojoules a byte: low, middle, high.
        dram_bandwidth: Bytes a cycle.
        pj: Of a MAC, an addition, a generated sign, and a weight's update.
        sources: Where the energies come from.
    """

    name: str
    about: str
    megahertz: float
    rows: int
    columns: int
    terms: int
    lanes: int
    update_lanes: int
    bytes: Mapping[str, float]
    sram_bytes: int
    sram_pj: float
    dram_pj: tuple[float, float, float]
    dram_bandwidth: float
    pj: Mapping[str, float]
    sources: str


def chips() -> list[str]:
    """Return the names of the chips that come with the package."""
    files = resources.files("torchdfa.hardware").joinpath("chips").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def load_chip(name: str | Path) -> Chip:
    """Read a chip: one of the package's by name, or a YAML file.

    Raises:
        ValueError: There is no such chip, or its file lacks something or has something else; it says what.
    """
    fields = _read(name)
    try:
        _demand_known(fields)
        low, middle, high = (8.0 * x for x in _dram(fields))
        kib, per_byte = _number(fields, "sram", "kib"), fields["sram"].get("pj_per_byte")
        if per_byte is None:
            per_byte = sram_picojoules(kib, _count(fields, "nanometres"))
        core = fields["direct"] is not None
        chip = Chip(
            name=_name(name),
            about=_text(fields, "about"),
            megahertz=_number(fields, "clock_mhz"),
            rows=_count(fields, "mac", "rows"),
            columns=_count(fields, "mac", "columns"),
            terms=_count(fields, "direct", "terms") if core else 0,
            lanes=_count(fields, "direct", "lanes") if core else 0,
            update_lanes=_count(fields, "update", "lanes"),
            bytes={k: _number(fields, "bytes", k) for k in _KEYS["bytes"]},
            sram_bytes=int(kib * 1024),
            sram_pj=_checked(per_byte, "sram.pj_per_byte"),
            dram_pj=(low, middle, high),
            dram_bandwidth=_number(fields, "dram", "bytes_per_cycle"),
            pj={k: _number(fields, "picojoules", k) for k in _KEYS["picojoules"]},
            sources=_text(fields, "energies_from"),
        )
        _demand_sound(chip)
        return chip
    except (ValueError, OverflowError) as error:
        raise ValueError(f"chip {name}: {error}; bdfa-65nm.yaml is an example.") from error


# What a file says: one value, or more by name.
_KEYS: dict[str, tuple[str, ...]] = {
    "about": (),
    "nanometres": (),
    "clock_mhz": (),
    "mac": ("rows", "columns"),
    "direct": ("terms", "lanes"),
    "update": ("lanes",),
    "bytes": ("activation", "error", "weight", "velocity", "feedback"),
    "sram": ("kib", "pj_per_byte"),
    "dram": ("pj_per_bit", "bytes_per_cycle"),
    "picojoules": ("mac", "add", "sign_bit", "weight_update"),
    "energies_from": (),
}


def _demand_known(fields: Mapping[str, Any]) -> None:
    """Refuse names that nothing would read, such as misspelled ones, and what is not there at all."""
    for name, value in fields.items():
        if name not in _KEYS:
            raise ValueError(f"{name!r} is unknown, expected {', '.join(_KEYS)}")
        for part in value if isinstance(value, Mapping) else ():
            if part not in _KEYS[name]:
                raise ValueError(f"{name}.{part} is unknown, expected {', '.join(_KEYS[name]) or 'one value'}")
    for name, parts in _KEYS.items():
        if name not in fields:
            raise ValueError(f"{name!r} is missing")
        optional_core = name == "direct" and fields[name] is None
        if parts and not isinstance(fields[name], Mapping) and not optional_core:
            raise ValueError(f"{name}={fields[name]!r}, expected {', '.join(parts)}")


def _value(fields: Mapping[str, Any], *path: str) -> Any:
    value: Any = fields
    for part in path:
        if part not in value:
            raise ValueError(f"{'.'.join(path)} is missing")
        value = value[part]
    return value


def _number(fields: Mapping[str, Any], *path: str) -> float:
    return _checked(_value(fields, *path), ".".join(path))


def _checked(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{where}={value!r}, expected a number")
    return float(value)


def _count(fields: Mapping[str, Any], *path: str) -> int:
    value = _number(fields, *path)
    if not value.is_integer():
        raise ValueError(f"{'.'.join(path)}={value:g}, expected a whole number")
    return int(value)


def _dram(fields: Mapping[str, Any]) -> list[float]:
    found = _value(fields, "dram", "pj_per_bit")
    if not isinstance(found, list) or len(found) != 3:
        raise ValueError(f"dram.pj_per_bit={found!r}, expected three numbers: low, middle, high")
    values = [_checked(x, "dram.pj_per_bit") for x in found]
    if values != sorted(values):
        raise ValueError(f"dram.pj_per_bit={found!r}, expected low, middle, high: none below the one before")
    return values


def _text(fields: Mapping[str, Any], name: str) -> str:
    if not isinstance(fields[name], str):
        raise ValueError(f"{name}={fields[name]!r}, expected text")
    return " ".join(fields[name].split())


def _name(name: str | Path) -> str:
    """Return what a chip is called: a user's file by what it holds as well, since it may change, or be called alike."""
    if str(name) in chips():
        return str(name)
    return f"{Path(name).stem}-{hashlib.sha256(Path(name).read_bytes()).hexdigest()[:6]}"


def _demand_sound(chip: Chip) -> None:
    """Refuse what no chip can have: the cost of a step divides by some of it."""
    positive = {
        "clock_mhz": chip.megahertz,
        "mac.rows": chip.rows,
        "mac.columns": chip.columns,
        "update.lanes": chip.update_lanes,
        "sram.kib": chip.sram_bytes,
        "dram.bytes_per_cycle": chip.dram_bandwidth,
    }
    if chip.terms:
        positive["direct.lanes"] = chip.lanes
    others = {"direct.terms": chip.terms, "sram.pj_per_byte": chip.sram_pj}
    others |= {f"dram.pj_per_bit[{i}]": value for i, value in enumerate(chip.dram_pj)}
    others |= {f"bytes.{k}": v for k, v in chip.bytes.items()} | {f"picojoules.{k}": v for k, v in chip.pj.items()}
    for where, value in {**positive, **others}.items():
        if not (0 <= value < float("inf")) or (where in positive and not value):
            raise ValueError(f"{where}={value:g}, expected {'more than 0' if where in positive else 'at least 0'}")


def _read(name: str | Path) -> dict[str, Any]:
    own = resources.files("torchdfa.hardware").joinpath("chips").joinpath(f"{name}.yaml")
    if str(name) in chips():
        text = own.read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8", errors="replace")
    else:
        raise ValueError(f"no chip {str(name)!r}: give a YAML file, or one of {', '.join(chips())}.")
    try:
        fields = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"chip {name}: its file is no YAML ({error}).") from error
    if not isinstance(fields, dict):
        raise ValueError(f"chip {name}: its file holds no mapping.")
    base = fields.pop("base", None)
    if base is None:
        return fields
    # A described chip may stand on one of the package's, not on any file of the machine, nor on itself.
    if base not in chips() or base == name:
        raise ValueError(f"chip {name}: base: {base!r}, expected one of {', '.join(chips())}.")
    below = _read(base)
    # What a file does not say of a part is as there, too; null: there is no such part.
    return below | {k: {**below[k], **v} if _both_mappings(below.get(k), v) else v for k, v in fields.items()}


def _both_mappings(a: Any, b: Any) -> bool:
    return isinstance(a, Mapping) and isinstance(b, Mapping)
