"""OpenSTA's figures are read in the library's units, and what goes wrong in it is one kind of error."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("amaranth", reason="the extra `hardware` is not installed")

from torchdfa.hardware import crosscheck
from torchdfa.hardware.crosscheck import against_opensta, run_crosscheck
from torchdfa.hardware.synthesis import ToolError

LIBRARY = """library (slow) { time_unit : "1ps"; leakage_power_unit : "1nW"; capacitive_load_unit (1, pf);
  nom_voltage : 2; cell (DFF) { cell_leakage_power : 10; ff (IQ, IQN) { next_state : "D"; clocked_on : "CK"; }
    pin (CK) { direction : input; capacitance : 0.02; } pin (D) { direction : input; capacitance : 0.01;
      timing () { related_pin : "CK"; timing_type : setup_rising; rise_constraint (scalar) { values ("250"); } } }
    pin (Q) { direction : output; function : "IQ"; timing () { related_pin : "CK"; timing_type : rising_edge;
      cell_rise (scalar) { values ("600"); } } } } }
"""
SAID = """  600.0000   data arrival time
   20000.0000 20000.0000   clock clk (rise edge)
   -21250.0000 -1250.0000   library setup time
             -1250.0000   data required time
Total                1.000000e-03 2.000000e-03 3.000000e-08 3.000030e-03 100.0%
"""


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library in picoseconds, and a ring of two flip-flops instead of every design."""
    cells = {f"u{n}": {"type": "DFF", "connections": {"CK": [2], "D": [4 + n], "Q": [5 - n]}} for n in range(2)}
    ports = {"clk": {"direction": "input", "bits": [2]}, "rst": {"direction": "input", "bits": [3]}}
    design = tmp_path / "netlist.json"
    design.write_text(json.dumps({"modules": {"top": {"ports": ports, "cells": cells}}}))
    (tmp_path / "gates.v").write_text("module top(x);\n  input signed [3:0] x;\n  wire signed [3:0] x;\nendmodule\n")
    monkeypatch.setattr(crosscheck, "synthesise", lambda *_: design)
    path = tmp_path / "slow.lib"
    path.write_text(LIBRARY)
    return path


def stand_in(tmp_path, monkeypatch, code):
    """Put a program in OpenSTA's place, in front of all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = folder / "sta"
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_opensta_works_in_the_library_s_unit(library, tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, f"print({SAID!r})")
    rows = {row.what.split(": ")[1].split(",")[0]: row for row in against_opensta("top", library, tmp_path)}
    assert "-period 20000.0 " in (tmp_path / "opensta.tcl").read_text()
    assert "signed" not in (tmp_path / "opensta.v").read_text()
    path = rows["longest path"]
    assert (path.unit, path.ours) == ("ns", pytest.approx(0.6 + 0.25))
    assert path.theirs == pytest.approx(0.6 + 21.25)
    powers = [rows[what].theirs for what in ("power of nets", "power within cells", "leakage")]
    assert powers == pytest.approx([2.0, 1.0, 0.03])  # mW, mW, µW
    # Nets of 0.01 pF, 0.1 changes in 20 ns, ½ C V²: nanowatts.
    assert rows["power of nets"].ours == pytest.approx(2 * 0.5 * 4 * 0.01e-12 * 0.1 / 20e-9 / 1e-3)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit('no licence')", "OpenSTA failed in .*no licence"),
        ("print('Total nan nan nan')", "OpenSTA failed"),
        (f"print('Error: gates.v, line 9 syntax error'); print({SAID!r})", "OpenSTA failed in .*line 9 syntax error"),
        ("import sys; sys.stdout.buffer.write(bytes(range(128, 256)))", "OpenSTA failed"),
        ("import time; time.sleep(60)", "OpenSTA took more than"),
    ],
)
def test_a_failing_opensta_is_a_tool_error(library, tmp_path, monkeypatch, code, said):
    stand_in(tmp_path, monkeypatch, code)
    monkeypatch.setattr(crosscheck, "_PATIENCE", 0.5 if "sleep" in code else 30.0)
    with pytest.raises(ToolError, match=said):
        run_crosscheck(library, tmp_path)
    assert not (tmp_path / "crosscheck.csv").exists()


def test_an_opensta_that_can_t_be_run_is_a_tool_error(library, tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "")
    (tmp_path / "bin" / "sta").write_text("#!/none\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ToolError, match="OpenSTA can't be run"):
        run_crosscheck(library, tmp_path)


def test_a_failing_zigzag_is_a_tool_error(tmp_path, monkeypatch):
    package = tmp_path / "zigzag"
    package.mkdir()
    (package / "__init__.py").write_text("")
    code = "def get_hardware_performance_zigzag(**_):\n    raise IndexError('no mapping')\n"
    (package / "api.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.partition(".")[0] == "zigzag"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ToolError, match="ZigZag failed: IndexError: no mapping"):
        run_crosscheck(None, Path(tmp_path))
    for name in ("zigzag", "zigzag.api"):
        sys.modules.pop(name, None)
