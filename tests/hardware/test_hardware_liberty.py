"""Reading Liberty files, timing and energy, against hand formulas on a library of three cells."""

import gzip
import itertools
import json

import numpy as np
import pytest

pytest.importorskip("amaranth", reason="the extra `hardware` is not installed")

from torchdfa.hardware.cells import GENERIC, LibertyError
from torchdfa.hardware.functions import render
from torchdfa.hardware.liberty import read_liberty
from torchdfa.hardware.netlist import Netlist, Process
from torchdfa.hardware.power import energy
from torchdfa.hardware.vectors import Vectors

TEXT = """/* three cells */
library ("{name}") {{
  time_unit : "1ns"; leakage_power_unit : "1nW"; capacitive_load_unit (1, pf); nom_voltage : 2.0;
  lu_table_template (delay) {{ variable_1 : input_net_transition; variable_2 : total_output_net_capacitance;
    index_1 ("0.1, 0.3"); index_2 ("0.0, 0.1"); }}
  power_lut_template (passive) {{ variable_1 : input_transition_time; index_1 ("0.1, 0.3"); }}
  cell (INV) {{ area : 3; cell_leakage_power : 5;
    pin (A) {{ direction : input; capacitance : 0.01; }}
    pin (Y) {{ direction : output; function : "!A";
      timing () {{ related_pin : "A";
        cell_rise (delay) {{ values ("1.0, 2.0", "1.4, 2.4"); }}
        rise_transition (delay) {{ values ("0.1, 0.3", "0.1, 0.3"); }}
        cell_fall (delay) {{ values ("0.5, 1.0", "0.5, 1.0"); }} }}
      internal_power () {{ related_pin : "A";
        rise_power (delay) {{ values ("{rise}, {rise}", "{rise}, {rise}"); }}
        fall_power (delay) {{ values ("{fall}, {fall}", "{fall}, {fall}"); }} }} }} }}
  cell (DFF) {{ area : 7; cell_leakage_power : 10;
    ff (IQ, IQN) {{ next_state : "D"; clocked_on : "CK"; }}
    pin (CK) {{ direction : input; capacitance : 0.02; clock : true;
      internal_power () {{ rise_power (passive) {{ values ("0.4, 0.4"); }}
        fall_power (passive) {{ values ("0.2, 0.2"); }} }} }}
    pin (D) {{ direction : input; capacitance : 0.03;
      timing () {{ related_pin : "CK"; timing_type : setup_rising;
        rise_constraint (scalar) {{ values ("0.25"); }} }} }}
    pin (Q) {{ direction : output; function : "IQ";
      timing () {{ related_pin : "CK"; timing_type : rising_edge;
        cell_rise (delay) {{ values ("0.5, 1.5", "0.5, 1.5"); }}
        rise_transition (delay) {{ values ("0.2, 0.2", "0.2, 0.2"); }} }} }} }}
}}
"""


def write(tmp_path, name="unknown", rise=0.6, fall=0.6):
    path = tmp_path / f"{name}.lib"
    path.write_text(TEXT.format(name=name, rise=rise, fall=fall))
    return path


@pytest.fixture
def toggler(tmp_path):
    """A flip-flop that an inverter feeds back: Q changes every cycle."""
    cells = {
        "u0": {"type": "INV", "connections": {"A": [4], "Y": [5]}},
        "u1": {"type": "DFF", "connections": {"CK": [2], "D": [5], "Q": [4]}},
    }
    ports = {
        "clk": {"direction": "input", "bits": [2]},
        "rst": {"direction": "input", "bits": [3]},
        "q": {"direction": "output", "bits": [4]},
    }
    path = tmp_path / "netlist.json"
    path.write_text(json.dumps({"modules": {"top": {"ports": ports, "cells": cells}}}))
    return path


def ticks(cycles):
    # The reset cycle toggles it once.
    q = (np.arange(cycles)[:, None] + 1) % 2
    return Vectors({}, {"q": q}, np.ones((cycles, 1), bool))


def test_tables_are_interpolated_and_extrapolated(tmp_path):
    library = read_liberty(write(tmp_path))
    rise = library.cells["INV"].pins["Y"].timing[0].tables["cell_rise"]
    assert rise(0.1, 0.0) == 1.0
    assert rise(0.2, 0.05) == pytest.approx(1.7)
    # Beyond the ends the last segments go on: 0.2 ns for 0.1 ns of slew, 1 ns for 0.1 pF.
    assert rise(0.5, 0.3) == pytest.approx(1.0 + 0.8 + 3.0)
    assert rise(0.0, 0.05) == pytest.approx(1.3)
    assert rise(0.1, -0.05) == pytest.approx(0.5)
    arc = library.cells["INV"].pins["Y"].timing[0]
    assert arc.delays(0.1, -0.5) == [0.0, 0.0]
    assert arc.transitions(0.1, -0.2) == [0.0]
    assert (library.volts, library.seconds, library.farads, library.joules) == (2.0, 1e-9, 1e-12, 1e-12)
    assert library.cells["DFF"].watts == pytest.approx(10e-9)


def test_gzipped_files_are_read(tmp_path):
    plain = write(tmp_path)
    packed = tmp_path / "x.lib.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert set(read_liberty(packed).cells) == {"INV", "DFF"}


@pytest.mark.parametrize(
    ("text", "said"),
    [("module x; endmodule", "no Liberty file"), ("library (x) { }", "missing"), ("library (x) { a : 1;", "too early")],
)
def test_what_is_no_liberty_file_is_refused(tmp_path, text, said):
    (tmp_path / "x.lib").write_text(text)
    with pytest.raises(LibertyError, match=said):
        read_liberty(tmp_path / "x.lib")


FUNCTIONS = {
    "(!((A B)+C))": lambda a, b, c: not ((a and b) or c),
    "A*B' + !C": lambda a, b, c: (a and not b) or not c,
    "(A ^ B) & C": lambda a, b, c: (a != b) and c,
    "A | B & C": lambda a, b, c: a or (b and c),
    "A ^ B C": lambda a, b, c: (a != b) and c,
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_are_rendered_with_liberty_s_precedence(function):
    text = render(function, lambda pin: pin, lambda x: f"(1 ^ {x})")
    for values in itertools.product((0, 1), repeat=3):
        assert eval(text, dict(zip("ABC", values, strict=True))) == FUNCTIONS[function](*values)


@pytest.mark.parametrize("function", ["(A", "A &", "A ) B", ""])
def test_what_is_no_function_is_refused(function):
    with pytest.raises(LibertyError, match="function"):
        render(function, str, str)


def test_a_load_beyond_the_table_takes_longer(tmp_path, toggler):
    """Twenty flip-flops, 0.6 pF, where INV's tables end at 0.1 pF."""
    design = json.loads(toggler.read_text())
    cells = design["modules"]["top"]["cells"]
    for n in range(19):
        cells[f"f{n}"] = {"type": "DFF", "connections": {"CK": [2], "D": [5], "Q": [10 + n]}}
    toggler.write_text(json.dumps(design))
    timing = Netlist(toggler, Process.read(write(tmp_path))).timing
    # INV at Q's slew 0.2: 1.2 + 10 a pF. Its transition, 0.1 + 2 a pF, sets no constraint here.
    assert timing.nanoseconds == pytest.approx(0.6 + 1.2 + 6.0 + 0.25)
    assert timing.slews[5] == pytest.approx(0.1 + 1.2)


def test_timing_by_hand(tmp_path, toggler):
    netlist = Netlist(toggler, Process.read(write(tmp_path)))
    # Clock to Q at INV's 0.01 pF: 0.6. INV at Q's slew 0.2 and DFF's 0.03 pF: 1.2 + 0.3. Setup 0.25.
    assert netlist.timing.nanoseconds == pytest.approx(0.6 + 1.5 + 0.25)
    assert netlist.timing.levels == 2


@pytest.mark.parametrize(("rise", "fall"), [(0.6, 0.6), (1.2, 0.0)])
def test_energy_by_hand(tmp_path, toggler, rise, fall):
    """Also where a library moves energy between the tables of rise and fall, as SkyWater's does: the mean counts."""
    netlist = Netlist(toggler, Process.read(write(tmp_path, rise=rise, fall=fall)))
    wrong, changes = netlist.simulate(ticks(9))
    assert wrong == []
    assert (changes[4], changes[5]) == (1.0, 1.0)
    found = energy(netlist, changes)
    assert found.nets == pytest.approx(0.5 * 4 * (0.01 + 0.03))  # ½ C V² of both nets
    assert found.cells == pytest.approx(0.6)
    assert found.flops == pytest.approx(2 * 0.3)  # both edges of the clock
    assert found.clock == pytest.approx(4 * 0.02)
    assert found.leakage == pytest.approx(15e-3)
    assert (netlist.area, found.picojoules) == (10, pytest.approx(0.08 + 0.6 + 0.6 + 0.08))


def test_a_known_library_s_wires_and_flip_flops(tmp_path, toggler):
    ihp = Process.read(write(tmp_path, "sg13g2_stdcell"))
    assert ihp.nanometres == 130
    netlist = Netlist(toggler, ihp)
    _, changes = netlist.simulate(ticks(9))
    fixed, each = ihp.wire
    # The flip-flop's tables hold its load's energy: only the inverter's net is charged.
    assert energy(netlist, changes).nets == pytest.approx(0.5 * 4 * (0.03 + (fixed + each) / 1e-12))
    assert Process.read(write(tmp_path, "sg13g2_stdcell"), wires=0.0).wire == (0.0, 0.0)


def test_a_cell_that_is_not_there_is_named(tmp_path, toggler):
    toggler.write_text(toggler.read_text().replace("INV", "NAND9"))
    with pytest.raises(LibertyError, match="no cell 'NAND9'"):
        Netlist(toggler, Process.read(write(tmp_path)))


def test_a_loop_is_refused(tmp_path, toggler):
    toggler.write_text(toggler.read_text().replace('"A": [4]', '"A": [5]'))
    with pytest.raises(LibertyError, match="form a loop"):
        Netlist(toggler, Process.read(write(tmp_path)))


def test_generic_gates_have_their_truth_tables():
    for name, cell in GENERIC.cells.items():
        if cell.state or name == "$_MUX_":
            continue
        text = render(cell.pins["Y"].function, lambda pin: pin, lambda x: f"(1 ^ {x})")
        found = [eval(text, {"A": a, "B": b}) for a in (0, 1) for b in (0, 1)]
        expected = {
            "$_NOT_": [1, 1, 0, 0], "$_NAND_": [1, 1, 1, 0], "$_NOR_": [1, 0, 0, 0], "$_AND_": [0, 0, 0, 1],
            "$_OR_": [0, 1, 1, 1], "$_ANDNOT_": [0, 0, 1, 0], "$_ORNOT_": [1, 0, 1, 1], "$_XOR_": [0, 1, 1, 0],
            "$_XNOR_": [1, 0, 0, 1],
        }  # fmt: skip
        assert found == expected[name], name
