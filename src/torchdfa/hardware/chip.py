"""A described chip: its arrays, memories, clock, and what an operation or a byte costs."""

from __future__ import annotations

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
        name: Of its file.
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
        direct = fields["direct"] or {"terms": 0, "lanes": 0}
        sram = fields["sram"]
        low, middle, high = (8.0 * x for x in fields["dram"]["pj_per_bit"])
        per_byte = sram.get("pj_per_byte") or sram_picojoules(float(sram["kib"]), int(fields["nanometres"]))
        chip = Chip(
            name=Path(name).stem,
            about=" ".join(fields["about"].split()),
            megahertz=float(fields["clock_mhz"]),
            rows=int(fields["mac"]["rows"]),
            columns=int(fields["mac"]["columns"]),
            terms=int(direct["terms"]),
            lanes=int(direct["lanes"]),
            update_lanes=int(fields["update"]["lanes"]),
            bytes={k: float(fields["bytes"][k]) for k in ("activation", "error", "weight", "velocity", "feedback")},
            sram_bytes=int(sram["kib"] * 1024),
            sram_pj=float(per_byte),
            dram_pj=(low, middle, high),
            dram_bandwidth=float(fields["dram"]["bytes_per_cycle"]),
            pj={k: float(fields["picojoules"][k]) for k in ("mac", "add", "sign_bit", "weight_update")},
            sources=" ".join(fields["energies_from"].split()),
        )
        _demand_sound(chip)
        return chip
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"chip {name}: {error} is missing or of the wrong kind; bdfa-65nm.yaml is an example."
        ) from error


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
    others = {"direct.terms": chip.terms, "direct.lanes": chip.lanes, "sram.pj_per_byte": chip.sram_pj}
    others |= {f"dram.pj_per_bit[{i}]": value for i, value in enumerate(chip.dram_pj)}
    others |= {f"bytes.{k}": v for k, v in chip.bytes.items()} | {f"picojoules.{k}": v for k, v in chip.pj.items()}
    for where, value in {**positive, **others}.items():
        if not (0 <= value < float("inf")) or (where in positive and not value):
            raise ValueError(f"{where}={value}")


def _read(name: str | Path) -> dict[str, Any]:
    own = resources.files("torchdfa.hardware").joinpath("chips").joinpath(f"{name}.yaml")
    if str(name) in chips():
        text = own.read_text()
    elif Path(name).is_file():
        text = Path(name).read_text(errors="replace")
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
    return {**_read(base), **fields}
