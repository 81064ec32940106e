"""``torchdfa bench ops``."""

from torchdfa import ops
from torchdfa.cli import main
from torchdfa.ops import bench


def test_it_says_which_path_runs_and_prints_a_line_a_size(monkeypatch, capsys):
    monkeypatch.setattr(bench, "SIZES", ((3, 20), (40, 30)))
    monkeypatch.setattr(bench, "BATCHES", (1, 2))
    assert main(["bench", "ops", "--seconds", "0.001"]) == 0
    shown = capsys.readouterr().out
    assert f"path: {ops.path()} (of {', '.join(ops.PATHS)})" in shown
    assert sum("3 × 20" in line or "40 × 30" in line for line in shown.splitlines()) == 4


def test_settings_that_make_no_sense_are_refused(capsys):
    assert main(["bench", "ops", "--threads", "0"]) == 2
    assert "threads=0" in capsys.readouterr().err
