"""What Liberty files of other makers have: enable flip-flops, lists of pins, arcs of one edge, defaults, units."""

import json

import numpy as np
import pytest

pytest.importorskip("amaranth", reason="the extra `hardware` is not installed")

from torchdfa.hardware import timed
from torchdfa.hardware.cells import LibertyError
from torchdfa.hardware.liberty import read_liberty
from torchdfa.hardware.netlist import Netlist, Process
from torchdfa.hardware.power import energy
from torchdfa.hardware.vectors import Vectors

HEAD = """library (small) { time_unit : "1ns"; leakage_power_unit : "1nW"; capacitive_load_unit (1, pf);
  lu_table_template (energy) { variable_1 : input_transition_time; variable_2 : total_output_net_capacitance;
    variable_3 : equal_or_opposite_output_net_capacitance; }
"""
CONSTANT = 'cell_rise (scalar) { values ("%s"); } cell_fall (scalar) { values ("%s"); }'


def delay(related, rise=0.5, fall=0.5, kind="combinational"):
    return f'timing () {{ related_pin : "{related}"; timing_type : {kind}; {CONSTANT % (rise, fall)} }}'


def flop(name="DFF", next_state="D", clocked_on="CK", pins="CK D", outputs=("Q", "IQ")):
    inputs = "".join(f"pin ({pin}) {{ direction : input; capacitance : 0.02; }}" for pin in pins.split())
    arc = delay("CK", kind="rising_edge")
    q = "".join(
        f'pin ({pin}) {{ direction : output; function : "{function}"; {arc} }}'
        for pin, function in zip(outputs[::2], outputs[1::2], strict=True)
    )
    return (
        f'cell ({name}) {{ ff (IQ, IQN) {{ next_state : "{next_state}"; clocked_on : "{clocked_on}"; }} {inputs} {q} }}'
    )


def gate(name, function, arcs, pins="A, B"):
    return (
        f"cell ({name}) {{ pin ({pins}) {{ direction : input; capacitance : 0.01; }} "
        f'pin (Y) {{ direction : output; function : "{function}"; {arcs} }} }}'
    )


def library(tmp_path, *cells, head="nom_voltage : 2.0;"):
    path = tmp_path / "small.lib"
    path.write_text("\n".join([HEAD, head, *cells, "}"]))
    return path


def netlist(tmp_path, path, *cells, **ports):
    """Return gates: of cells as (type, nets by pin), of ports their nets; clk is net 2 and rst net 3."""
    every = {"clk": 2, "rst": 3, **ports}
    top = {
        "ports": {name: {"direction": "", "bits": [net]} for name, net in every.items()},
        "cells": {
            f"u{n}": {"type": kind, "connections": {pin: [net] for pin, net in nets.items()}}
            for n, (kind, nets) in enumerate(cells)
        },
    }
    design = tmp_path / "netlist.json"
    design.write_text(json.dumps({"modules": {"top": top}}))
    return Netlist(design, Process.read(path))


def differences(gates, vectors, tmp_path):
    """Return what differs, without delays and, where Icarus is there, with them."""
    found, _ = gates.simulate(vectors)
    return found + (timed.simulate_timed(gates, vectors, tmp_path / "timed")[0] if timed.installed() else [])


ENABLED = "(D & DE) | (IQ & !DE)"


@pytest.mark.parametrize(
    ("next_state", "outputs"),
    [
        (ENABLED, ("Q", "IQ")),
        (ENABLED, ("QN", "IQN")),
        (ENABLED, ("QN", "!IQ", "Q", "IQ")),
        ("(D DE) + (IQN' DE')", ("Q", "IQ")),
        ("(D & DE) | !(IQN | DE)", ("QN", "IQ'")),
    ],
)
def test_an_enable_flip_flop_keeps_its_state(tmp_path, next_state, outputs):
    path = library(tmp_path, flop("EDFF", next_state, pins="CK D DE", outputs=outputs))
    pins = dict(zip(outputs[::2], (6, 7), strict=False))
    ports = {pin.lower(): net for pin, net in pins.items()}
    gates = netlist(tmp_path, path, ("EDFF", {"CK": 2, "D": 4, "DE": 5, **pins}), d=4, de=5, **ports)
    d, de = np.random.default_rng(0).integers(0, 2, (2, 40, 1))
    q = np.zeros((40, 1), int)
    for t in range(39):
        q[t + 1] = d[t] if de[t] else q[t]
    expected = {port: 1 - q if port == "qn" else q for port in ports}
    assert differences(gates, Vectors({"d": d, "de": de}, expected, np.ones((40, 1), bool)), tmp_path) == []


def test_a_state_without_an_output_is_hidden(tmp_path):
    """A flip-flop that nothing reads still runs, and has no wire to charge."""
    path = library(tmp_path, flop("EDFF", ENABLED, pins="CK D DE"))
    gates = netlist(tmp_path, path, ("EDFF", {"CK": 2, "D": 4, "DE": 5}), d=4, de=5)
    ones = np.ones((4, 1), int)
    vectors = Vectors({"d": np.arange(4)[:, None] % 2, "de": ones}, {}, ones == 1)
    assert differences(gates, vectors, tmp_path) == []
    _, changes = gates.simulate(vectors)
    assert (changes > 0).sum() == 2  # the input and the state
    assert energy(gates, changes).nets == pytest.approx(0.5 * 4 * 0.02)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (flop(next_state="D & XX"), "cell 'DFF', next state: 'D & XX' names 'XX'"),
        (flop(outputs=("Q", "IQ & D")), "cell 'DFF': function 'IQ & D' is of 'D', expected only IQ, IQN"),
        (flop(outputs=("Q", "IQ | IQN")), "cell 'DFF': output 'Q' is 'IQ | IQN', expected IQ or IQN"),
        (flop(outputs=("QQ", "IQ")), "cell 'DFF' has no pin 'Q', which the netlist connects; small has CK, D, QQ"),
        (flop(clocked_on=""), "cell 'DFF': function ''"),
        (flop(clocked_on="!CK"), "cell 'DFF': clocked by the falling edge"),
        (flop(clocked_on="(!CK)"), "by the falling edge"),
        (flop(clocked_on="CK'"), "by the falling edge"),
        (flop(clocked_on="CK & D"), "by no single pin"),
    ],
)
def test_flip_flops_that_are_not_simulated_are_named(tmp_path, cell, said):
    path = library(tmp_path, cell)
    with pytest.raises(LibertyError, match=said.replace("|", r"\|")):
        netlist(tmp_path, path, ("DFF", {"CK": 2, "D": 4, "Q": 5}), d=4).simulate(
            Vectors({"d": np.ones((3, 1), int)}, {}, np.ones((3, 1), bool))
        )


def test_a_clock_inverted_twice_is_a_rising_edge(tmp_path):
    path = library(tmp_path, flop(clocked_on="(!(CK'))"))
    assert netlist(tmp_path, path, ("DFF", {"CK": 2, "D": 4, "Q": 5}), d=4).flops


def between_registers(tmp_path, cell, kind):
    """A gate between two flip-flops, at its second input."""
    path = library(tmp_path, flop(), cell)
    return netlist(
        tmp_path,
        path,
        ("DFF", {"CK": 2, "D": 4, "Q": 5}),
        (kind, {"A": 4, "B": 5, "Y": 6}),
        ("DFF", {"CK": 2, "D": 6, "Q": 7}),
        d=4,
    )


def test_an_arc_of_several_pins_is_one_of_each(tmp_path):
    gates = between_registers(tmp_path, gate("AND", "A & B", delay("A B", 2.0, 1.0)), "AND")
    assert gates.timing.nanoseconds == pytest.approx(0.5 + 2.0)
    power = 'internal_power () { related_pin : "A B"; power (scalar) { values ("0.3"); } }'
    cell = gate("AND", "A & B", delay("A") + delay("B") + power)
    gates = between_registers(tmp_path, cell, "AND")
    assert [a.related for a in gates.order[0].cell.pins["Y"].power] == ["A", "B"]
    changes = np.zeros(gates.nets)
    changes[6] = 1
    assert energy(gates, changes).cells == pytest.approx(0.3)


def test_arcs_of_one_edge_count_for_that_edge(tmp_path):
    arcs = delay("A B", 1.0, 99.0, "combinational_rise") + delay("A B", 99.0, 3.0, "combinational_fall")
    gates = between_registers(tmp_path, gate("AND", "A & B", arcs), "AND")
    assert gates.timing.nanoseconds == pytest.approx(0.5 + 3.0)
    assert timed._delay(gates, gates.order[0], "Y") == 2000  # ps, the mean


@pytest.mark.parametrize(
    ("arcs", "said"),
    [
        ("", "no timing arc with a delay"),
        (delay("A", kind="three_state_enable"), "no timing arc with a delay"),
        (delay(""), "no timing arc with a delay"),
        ('timing () { related_pin : "A"; rise_transition (scalar) { values ("1"); } }', "no timing arc with a delay"),
        (delay("A C"), "a timing arc from 'C', expected one of the pins A, B, Y"),
    ],
)
def test_an_output_without_a_delay_is_refused(tmp_path, arcs, said):
    gates = between_registers(tmp_path, gate("AND", "A & B", arcs), "AND")
    with pytest.raises(LibertyError, match=f"cell 'AND', pin 'Y': {said}"):
        gates.timing  # noqa: B018


def test_a_constant_cell_needs_no_delay(tmp_path):
    path = library(tmp_path, flop(), gate("TIE", "1", "", pins="A"))
    gates = netlist(tmp_path, path, ("TIE", {"Y": 4}), ("DFF", {"CK": 2, "D": 4, "Q": 5}), d=6, q=5)
    ones = np.ones((4, 1), int)
    assert gates.timing.nanoseconds == 0.0
    assert differences(gates, Vectors({"d": ones}, {"q": ones}, ones == 1), tmp_path) == []


@pytest.mark.parametrize("period", [None, 1.2])
def test_inputs_have_the_whole_period(tmp_path, period):
    """An input's way to its register, 5.0 ns, is the longest: half a period less would be too short for it."""
    if not timed.installed():
        pytest.skip("Icarus Verilog is not installed")
    path = library(tmp_path, flop(), gate("INV", "!A", delay("A", 5.0, 5.0), pins="A"))
    gates = netlist(tmp_path, path, ("INV", {"A": 4, "Y": 5}), ("DFF", {"CK": 2, "D": 5, "Q": 6}), d=4, q=6)
    d = np.random.default_rng(0).integers(0, 2, (40, 1))
    q = np.concatenate([[[1]], 1 - d[:-1]])  # the reset cycle has d = 0
    vectors = Vectors({"d": d}, {"q": q}, np.ones((40, 1), bool))
    assert gates.timing.nanoseconds == pytest.approx(5.0)
    found, changes = timed.simulate_timed(gates, vectors, tmp_path, period and period * gates.timing.nanoseconds)
    assert found == []
    np.testing.assert_allclose(changes, gates.simulate(vectors)[1])
    assert timed.simulate_timed(gates, vectors, tmp_path, 0.9 * gates.timing.nanoseconds)[0]


def test_a_slow_output_is_read_when_it_has_settled(tmp_path):
    """What lies between a register and an output is on no path between registers."""
    path = library(tmp_path, flop(), gate("INV", "!A", delay("A", 5.0, 5.0), pins="A"))
    gates = netlist(tmp_path, path, ("DFF", {"CK": 2, "D": 4, "Q": 5}), ("INV", {"A": 5, "Y": 6}), d=4, y=6)
    d = np.random.default_rng(0).integers(0, 2, (20, 1))
    assert (gates.timing.nanoseconds, gates.timing.settled) == (0.0, pytest.approx(5.5))
    vectors = Vectors({"d": d}, {"y": np.concatenate([[[1]], 1 - d[:-1]])}, np.ones((20, 1), bool))
    assert differences(gates, vectors, tmp_path) == []


@pytest.mark.parametrize(
    "pins",
    [
        "pin (A, B) { direction : input; capacitance : 0.03; }",
        'pin ("A B") { direction : input; capacitance : 0.03; }',
        "bundle (AB) { members (A, B); direction : input; capacitance : 0.03; }",
        "bundle (AB) { members (A, B); direction : input; capacitance : 0.03; pin (A) { } pin (B) { } }",
        "bus (AB) { direction : input; capacitance : 0.01; pin (A, B) { capacitance : 0.03; } }",
    ],
)
def test_pins_of_groups_buses_and_bundles(tmp_path, pins):
    cell = f'cell (AND) {{ {pins} pin (Y) {{ direction : output; function : "A & B"; {delay("A B")} }} }}'
    found = read_liberty(library(tmp_path, cell)).cells["AND"].pins
    assert set(found) == {"A", "B", "Y"}
    assert [(found[pin].output, found[pin].farads) for pin in "AB"] == [(False, pytest.approx(0.03e-12))] * 2
    assert between_registers(tmp_path, cell, "AND").farads[5] == pytest.approx(0.03e-12)


def test_a_bundle_s_arcs_are_those_of_its_outputs(tmp_path):
    cell = f"""cell (TWO) {{ pin (A) {{ direction : input; }}
      bundle (Y) {{ members (Y0, Y1); direction : output; {delay("A")} pin (Y0) {{ function : "A"; }}
        pin (Y1) {{ function : "!A"; }} }} }}"""
    found = read_liberty(library(tmp_path, cell)).cells["TWO"].pins
    assert [(found[pin].function, len(found[pin].delays)) for pin in ("Y0", "Y1")] == [("A", 1), ("!A", 1)]


def test_defaults_and_means(tmp_path):
    head = (
        "nom_voltage : 2; default_cell_leakage_power : 7; default_input_pin_cap : 0.5; default_output_pin_cap : 0.25;"
    )
    pins = """pin (A) { direction : input; }
      pin (B) { direction : input; rise_capacitance : 0.1; fall_capacitance : 0.3; }
      pin (C) { direction : input; capacitance : 0.7; rise_capacitance : 0.1; } pin (Y) { direction : output; }"""
    states = 'leakage_power () { when : "A"; value : 2; } leakage_power () { when : "!A"; value : 4; }'
    cells = [f"cell (NONE) {{ {pins} }}", f"cell (STATES) {{ {states} }}"]
    cells.append(f"cell (BOTH) {{ cell_leakage_power : 9; {states} }}")
    found = read_liberty(library(tmp_path, *cells, head=head)).cells
    assert [found[name].watts for name in ("NONE", "STATES", "BOTH")] == pytest.approx([7e-9, 3e-9, 9e-9])
    farads = [found["NONE"].pins[pin].farads for pin in "ABCY"]
    assert farads == pytest.approx([0.5e-12, 0.2e-12, 0.7e-12, 0.25e-12])


def test_volts_have_a_unit(tmp_path):
    """The unit of energy follows from those of capacitance and voltage."""
    head = 'voltage_unit : "1mV"; nom_voltage : 1800;'
    power = 'internal_power () { related_pin : "A"; power (scalar) { values ("3e6"); } }'
    path = library(tmp_path, gate("INV", "!A", delay("A") + power, pins="A"), head=head)
    found = read_liberty(path)
    assert (found.volts, found.joules) == (pytest.approx(1.8), pytest.approx(1e-18))
    gates = netlist(tmp_path, path, ("INV", {"A": 4, "Y": 5}), ("INV", {"A": 5, "Y": 6}), d=4)
    changes = np.zeros(gates.nets)
    changes[5] = 1
    assert energy(gates, changes).nets == pytest.approx(0.5 * 1.8**2 * 0.01)
    assert energy(gates, changes).cells == pytest.approx(3.0)


def test_tables_that_are_not_needed_are_not_read(tmp_path):
    noise = 'steady_state_current_low (other) { index_1 ("1, 2"); index_2 ("1, 2"); values ("1, 2, 3"); }'
    sigma = 'ocv_sigma_rise_transition (scalar) { values ("1, 2, 3"); }'
    arc = delay("A").replace("timing () {", f"timing () {{ {noise} {sigma}")
    found = read_liberty(library(tmp_path, gate("INV", "!A", arc, pins="A"))).cells["INV"].pins["Y"]
    assert set(found.timing[0].tables) == {"cell_rise", "cell_fall"}


def test_energies_that_depend_on_another_output_take_its_lightest_load(tmp_path):
    power = """internal_power () { related_pin : "A"; rise_power (energy) {
      index_1 ("0.1, 0.2"); index_2 ("0, 1, 2"); index_3 ("0, 5");
      values ("1, 9, 2, 9, 3, 9", "4, 9, 5, 9, 6, 9"); } }"""
    found = read_liberty(library(tmp_path, gate("INV", "!A", delay("A") + power, pins="A"))).cells["INV"].pins["Y"]
    np.testing.assert_array_equal(found.power[0].tables["rise_power"].values, [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("pin (A) { capacitance : much; }", "cell 'X', pin 'A': an entry is missing or none .*much"),
        ("area : wide;", "cell 'X': an entry is missing or none .*wide"),
        (
            'pin (Y) { timing () { cell_rise (d) { index_1 ("1, 2"); index_2 ("1, 2"); values ("1, 2, 3"); } } }',
            "cell 'X', pin 'Y': cell_rise: 3 values, expected 2 x 2",
        ),
        (
            'pin (Y) { timing () { cell_rise (d) { index_1 ("2, 2"); values ("1, 2"); } } }',
            "cell 'X', pin 'Y': cell_rise: index_1 is '2, 2', expected rising numbers",
        ),
    ],
)
def test_errors_name_cell_and_pin(tmp_path, cell, said):
    path = library(tmp_path, f"cell (X) {{ {cell} }}")
    with pytest.raises(LibertyError, match=f"small.lib: {said}"):
        read_liberty(path)


def test_comments_and_escapes_are_read(tmp_path):
    head = r"""nom_voltage : 1.8/* V */; comment : "a \"quoted\" word; }"; default_input_pin_cap : 0.5// pF
      ; revision : 1\
      ;"""
    cell = r"""cell (X) { area : 3/**/; pin (A) { direction:input; } pin (Y) { direction : output; function : "A & \
      B"; } }"""
    found = read_liberty(library(tmp_path, cell, head=head))
    assert (found.volts, found.cells["X"].area) == (1.8, 3.0)
    assert found.cells["X"].pins["A"].farads == pytest.approx(0.5e-12)
    assert found.cells["X"].pins["Y"].function.split() == ["A", "&", "B"]
