"""Our timing, power and step energies beside those of other tools, where they are installed: OpenSTA, ZigZag."""

from __future__ import annotations

import importlib.util
import logging
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from torchdfa.hardware import rows
from torchdfa.hardware.chip import Chip, load_chip
from torchdfa.hardware.designs import Parameters
from torchdfa.hardware.netlist import Netlist, Process
from torchdfa.hardware.phases import product_cost
from torchdfa.hardware.power import energy
from torchdfa.hardware.rows import Crosschecked
from torchdfa.hardware.synthesis import ToolError, synthesise

# Two cores, and a unit so small that single nets with many inputs decide its longest path.
_DESIGNS = ("depc-generator", "mac-16x8", "runlength-encoder")
_ACTIVITY = 0.1  # changes of every net a cycle
_PERIOD = 20.0  # ns
_PATIENCE = 300.0  # seconds for OpenSTA
# A forward pass, an error through weights and a gradient of Linear(512, 512) at batch 32: M, K, N.
_PRODUCTS = {"forward": (32, 512, 512), "error": (32, 512, 512), "gradient": (512, 32, 512)}


def run_crosscheck(library: Path | None, out: Path) -> None:
    """Write ``crosscheck.csv``, with the tools that are there.

    Raises:
        ToolError: One of them fails, or takes longer than five minutes; nothing is written then.
    """
    found: list[Crosschecked] = []
    if library is not None and shutil.which("sta"):
        for name in _DESIGNS:
            found += against_opensta(name, library, out / "work")
    if importlib.util.find_spec("zigzag"):
        found += against_zigzag(load_chip("bdfa-65nm"))
    for row in found:
        print(f"{row.what}: {row.ours:.4g} {row.unit}, {row.tool} {row.theirs:.4g}")
    if not found:
        print("neither OpenSTA (with a Liberty file) nor ZigZag is installed: no cross-check", file=sys.stderr)
    rows.write(out / "crosscheck.csv", Crosschecked, found)


def against_opensta(name: str, library: Path, folder: Path) -> Iterator[Crosschecked]:
    """Yield the longest path, and the power where every net changes alike, without wires, which OpenSTA is not told.

    Raises:
        ToolError: OpenSTA fails or takes too long.
    """
    process = Process.read(library, wires=0.0)
    path = synthesise(name, Parameters(), library, folder / process.library.name / name)
    netlist = Netlist(path, process)
    top = name.replace("-", "_")
    # OpenSTA's commands and path reports are in the library's unit of time, its powers in watts. Inputs that belong to
    # no clock would start no path and have no activity.
    edge, unit = process.slew, process.library.seconds / 1e-9
    script = f"""read_liberty cells.lib
read_verilog opensta.v
link_design {top}
create_clock -name clk -period {_PERIOD / unit} [get_ports clk]
set_clock_transition {edge} [get_clocks clk]
set_input_transition {edge} [all_inputs]
set_input_delay 0 -clock clk [all_inputs]
report_checks -path_delay max -digits 4
set_power_activity -global -activity {_ACTIVITY} -duty 0.5
report_power -digits 6
exit
"""
    (path.parent / "opensta.tcl").write_text(script)
    # It knows no `signed`, and goes on without the ports that are.
    gates = (path.parent / "gates.v").read_text()
    (path.parent / "opensta.v").write_text(re.sub(r"\b(input|output|wire) signed\b", r"\1", gates))
    try:
        done = subprocess.run(
            ["sta", "-exit", "opensta.tcl"], cwd=path.parent, capture_output=True, text=True, errors="replace",
            check=False, timeout=_PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"OpenSTA took more than {_PATIENCE:.0f} s in {path.parent}.") from error
    except OSError as error:
        raise ToolError(f"OpenSTA can't be run: {error}") from error
    number = r"(-?\d+(?:\.\d*)?(?:e[-+]?\d+)?)"
    arrival = re.search(rf"{number}\s+data arrival time", done.stdout)
    setup = re.search(rf"{number}\s+{number}\s+library setup time", done.stdout)
    total = re.search(rf"^Total\s+{number}\s+{number}\s+{number}", done.stdout, re.M)
    # After most errors it goes on, with less of the netlist.
    wrong = re.search(r"^Error.*", done.stdout + done.stderr, re.M)
    if wrong or not (arrival and setup and total):
        said = wrong[0] if wrong else (done.stderr or done.stdout).strip()[-300:]
        raise ToolError(f"OpenSTA failed in {path.parent}: {said}")
    theirs = (float(arrival[1]) - float(setup[1])) * unit
    yield Crosschecked(f"{name}: longest path, no wires", "OpenSTA", "ns", netlist.timing.nanoseconds, theirs)
    found = energy(netlist, np.full(netlist.nets, _ACTIVITY))
    driven = np.zeros(netlist.nets)
    driven[[n for i in netlist.instances for _, n in i.outputs()]] = _ACTIVITY
    milliwatts = 1 / _PERIOD  # of picojoules a cycle
    at = f"all nets {_ACTIVITY} a cycle, {1e3 / _PERIOD:g} MHz"
    # OpenSTA charges a net to the cell that drives it, and none to ports; its clock net is ideal.
    ours = energy(netlist, driven).nets * milliwatts
    yield Crosschecked(f"{name}: power of nets, {at}", "OpenSTA", "mW", ours, 1e3 * float(total[2]))
    ours = (found.cells + found.flops) * milliwatts
    yield Crosschecked(f"{name}: power within cells, {at}", "OpenSTA", "mW", ours, 1e3 * float(total[1]))
    yield Crosschecked(f"{name}: leakage", "OpenSTA", "µW", found.leakage, 1e6 * float(total[3]))


def against_zigzag(chip: Chip) -> Iterator[Crosschecked]:
    """Yield the energies of the three products of a Linear layer, all operands in DRAM."""
    for phase, (m, k, n) in _PRODUCTS.items():
        ours = product_cost(chip, m, k, n).picojoules[1] / 1e6
        yield Crosschecked(f"{phase}, {m} × {k} × {n}", "ZigZag", "µJ", ours, _zigzag(chip, m, k, n) / 1e6)


def _zigzag(chip: Chip, m: int, k: int, n: int) -> float:
    """Return ZigZag's picojoules of a product on the chip's array, an output a MAC unit, at its best mapping.

    Raises:
        ToolError: ZigZag fails.
    """

    def port(name: str, kind: str, bits: int, *uses: str) -> dict[str, Any]:
        return {"name": name, "type": kind, "bandwidth_min": 16, "bandwidth_max": bits, "allocation": list(uses)}

    def memory(
        bits: float, pj: float, operands: list[str], served: list[str], *ports: dict[str, Any]
    ) -> dict[str, Any]:
        fixed = {"area": 0, "latency": 1}
        return {"size": int(bits), "r_cost": pj, "w_cost": pj, **fixed, "operands": operands, "ports": list(ports),
                "served_dimensions": served}  # fmt: skip

    line = 16 * 16
    every, both = ["I1", "I2", "O"], ["D1", "D2"]
    accelerator = {
        "name": chip.name,
        "memories": {
            "sums": memory(
                32, 0.0, ["O"], [],
                port("r_port_1", "read", 32, "O, tl"), port("r_port_2", "read", 32, "O, th"),
                port("w_port_1", "write", 32, "O, fh"), port("w_port_2", "write", 32, "O, fl"),
            ),
            "sram": memory(
                chip.sram_bytes * 8, line / 8 * chip.sram_pj, every, both,
                port("r_port_1", "read", line, "I1, tl", "I2, tl", "O, tl", "O, th"),
                port("w_port_1", "write", line, "I1, fh", "I2, fh", "O, fh", "O, fl"),
            ),
            "dram": memory(
                1e10, 8 * chip.dram_pj[1], every, both,
                port("rw_port_1", "read_write", 64, *(f"{o}, {way}" for o in every for way in ("fh", "tl")),
                     "O, fl", "O, th"),
            ),
        },
        "operational_array": {
            "unit_energy": chip.pj["mac"], "unit_area": 1, "dimensions": both, "sizes": [chip.rows, chip.columns],
        },
    }  # fmt: skip
    mapping = [
        {
            "name": "default",
            "spatial_mapping": {"D1": [f"K, {chip.rows}"], "D2": [f"B, {chip.columns}"]},
            "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"},
        }
    ]
    layer = {
        "id": 0, "name": "product", "operator_type": "Gemm", "equation": "O[b][k]+=W[k][c]*I[b][c]",
        "loop_dims": ["B", "K", "C"], "loop_sizes": [m, n, k],
        "operand_precision": {"W": 16, "I": 16, "O": 32, "O_final": 16}, "operand_source": {"I": 0, "W": 0},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        paths = {}
        for name, content in (("accelerator", accelerator), ("mapping", mapping), ("workload", [layer])):
            paths[name] = str(Path(scratch) / f"{name}.yaml")
            Path(paths[name]).write_text(yaml.safe_dump(content, sort_keys=False))
        logging.disable(logging.CRITICAL)
        try:
            from zigzag.api import get_hardware_performance_zigzag  # type: ignore[import-not-found]

            joules = get_hardware_performance_zigzag(
                **paths, opt="energy", dump_folder=str(Path(scratch) / "out"), loma_show_progress_bar=False
            )[0]
            return float(joules)
        except Exception as error:  # of whatever type a search in someone else's code raises
            raise ToolError(f"ZigZag failed: {type(error).__name__}: {error}") from error
        finally:
            logging.disable(logging.NOTSET)
