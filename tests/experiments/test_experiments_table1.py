import math
from dataclasses import replace

import pytest

from torchdfa.data import DataError
from torchdfa.experiments import ReproduceConfig, table1, write_page
from torchdfa.experiments.paper import TABLE1
from torchdfa.experiments.results import Results, rows_of
from torchdfa.experiments.table1 import FEEDBACK_SCALES, LINES, LRS, WEIGHT_DECAYS, run_table1
from torchdfa.experiments.table1_report import spread, standings
from torchdfa.training import EpochResult

BY_NAME = {line.name: line for line in LINES}


def epoch(number, **values):
    empty = dict.fromkeys(EpochResult.__dataclass_fields__, math.nan)
    return EpochResult(**(empty | {"epoch": number, "trunk_angle": 60.0, "trunk_ratio": 0.5} | values))


@pytest.fixture
def pretend(monkeypatch):
    """Make up results: a function of a cell gives its accuracy, or None to diverge. No data is loaded."""
    ran = []
    monkeypatch.setattr(table1, "load", lambda name, root: None)

    def arrange(accuracy):
        def run_cells(cells, folder, workers):
            results = Results(folder / "results.csv")
            for cell in cells:
                ran.append(cell)
                value = accuracy(cell)
                if value is None:
                    rows = rows_of(cell, [], "the loss is nan", 5000)
                else:
                    part = "val_top1" if cell.phase == "search" else "test_top1"
                    epochs = cell.config.epochs
                    history = [epoch(i, **{part: value * i / epochs}) for i in range(1, epochs + 1)]
                    rows = rows_of(cell, history, "", 5000)
                results.add(rows)
                yield cell, rows

        monkeypatch.setattr(table1, "run_cells", run_cells)
        return ran

    return arrange


def bump(cell, peak):
    """Score a cell by how near its learning rate is to a peak."""
    return 60 - 10 * abs(math.log10(cell.config.lr / peak)) - (cell.config.head_lr != 1) + cell.config.seed / 10


def test_the_paper_s_rows_are_all_there():
    assert set(TABLE1["cifar10"]) == set(TABLE1["cifar100"]) <= set(BY_NAME)


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.name)
def test_a_trial_s_settings_are_read_back_from_its_row(line):
    second = WEIGHT_DECAYS[2] if line.tunes == "weight_decay" else FEEDBACK_SCALES[2]
    keys = set()
    for trial in [(0.02, None, 1.0), (0.02, second, 1.0), (0.05, None, 0.1), (0.05, second, 0.1)]:
        cell = table1._cell(ReproduceConfig(), line, "search", *trial)
        keys.add(cell.key)
        assert table1._settings(rows_of(cell, [], "", 5000)[0], line) == trial
        assert cell.config.validation == 1000 and cell.config.alignment == 0
    assert len(keys) == 4


def test_every_row_has_the_same_number_of_trials_and_finals_at_the_best(pretend, tmp_path):
    ran = pretend(lambda cell: bump(cell, 0.05))
    run_table1(ReproduceConfig(), tmp_path, progress=False)
    for line in LINES:
        own = [c for c in ran if c.method == line.name]
        searched = [c for c in own if c.phase == "search"]
        assert len(searched) == len({c.key for c in searched}) == 12
        assert {c.config.lr for c in searched} >= set(LRS)
        assert all(c.config.seed == 0 for c in searched)
        finals = [c for c in own if c.phase == "final"]
        assert [(c.config.lr, c.config.seed) for c in finals] == [(0.05, seed) for seed in range(5)]
        assert all(c.config.validation == 0 and c.config.alignment == 1 for c in finals)
    assert len({c.key for c in ran}) == len(ran)
    # At a seed rows differ in nothing but rule, the head's norm and what was tuned.
    for seed in range(5):
        finals = [c.config for c in ran if c.phase == "final" and c.config.seed == seed]
        alike = {repr(replace(f, rule=finals[0].rule, model=finals[0].model, weight_decay=0.0)) for f in finals}
        assert len(alike) == 1


def test_the_grid_is_widened_at_an_edge_and_not_without_end(pretend, tmp_path):
    ran = pretend(lambda cell: bump(cell, 0.8 if cell.method == "BP" else 1e-9))
    run_table1(ReproduceConfig(rows=("BP", "CDFA (7)")), tmp_path, progress=False)
    tried = {n: {c.config.lr for c in ran if (c.method, c.phase) == (n, "search")} for n in ("BP", "CDFA (7)")}
    assert {0.8, 1.6} <= tried["BP"] and 3.2 not in tried["BP"]
    assert min(tried["CDFA (7)"]) >= 0.005 / 8


def test_shards_share_the_rows(pretend, tmp_path):
    ran = pretend(lambda cell: 50.0)
    run_table1(ReproduceConfig(shard="1/3"), tmp_path / "a", progress=False)
    assert {c.method for c in ran} == {line.name for line in LINES[1::3]}


def test_page(pretend, tmp_path):
    def accuracy(cell):
        if cell.method == "FA in the head":
            return None
        return bump(cell, 0.05) + (5 + cell.config.seed / 10 if cell.method.startswith("C") else 0)

    pretend(accuracy)
    rows = ("BP", "CDFA (7)", "CBDFA (9)", "FA in the head")
    run_table1(ReproduceConfig(rows=rows), tmp_path, progress=False)
    assert write_page(tmp_path) == tmp_path / "table1.md"
    text = (tmp_path / "table1.md").read_text()
    line = next(x for x in text.splitlines() if x.startswith("| CDFA (7) |"))
    # Five seeds at 65.0 to 65.8, BP's at 60.0 to 60.4.
    assert [cell.strip() for cell in line.split("|")[2:]] == [
        "65.40 ± 0.32", "–", "–", "+5.20", "0.000", "19", "60°, × 0.50", "5", "86.36", "98.55", ""
    ]  # fmt: skip
    assert "5 diverged" in next(x for x in text.splitlines() if x.startswith("| FA in the head |"))
    assert text.count("| CBDFA (9) |") == 1 + 12
    assert (tmp_path / "table1.png").read_bytes().startswith(b"\x89PNG") and "<svg" in (
        tmp_path / "table1.svg"
    ).read_text()
    assert [s.name for s in standings(Results(tmp_path / "results.csv"))] == list(rows)
    again = tmp_path / "table1.md"
    before = again.read_text()
    write_page(tmp_path)
    assert again.read_text() == before


def test_a_stand_in_is_called_one(pretend, tmp_path):
    pretend(lambda cell: 30.0)
    run_table1(ReproduceConfig(rows=("BP",), data="tiny-imagenet100-32"), tmp_path, progress=False)
    write_page(tmp_path)
    text = (tmp_path / "table1.md").read_text()
    assert "a 100-class stand-in for CIFAR-100" in text and "40.29" not in text


def test_no_results_no_page(tmp_path):
    with pytest.raises(ValueError, match="holds no runs"):
        write_page(tmp_path)


def test_missing_data_shows_first(tmp_path):
    with pytest.raises(DataError):
        run_table1(ReproduceConfig(data_root=str(tmp_path / "none"), data="tiny-imagenet100-32"), tmp_path)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"scale": "huge"}, "small, medium, paper"),
        ({"rows": ("XP",)}, r"\['XP'\] not among 'BP'"),
        ({"shard": "2/2"}, "i/n"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ReproduceConfig(**settings)


@pytest.mark.parametrize(
    "values, shown",
    [
        ([1.0, 2.0], "1.50 ± 0.71"),
        ([3.0], "3.00"),
        ([1.0, math.nan], "1.00 (1 diverged)"),
        ([math.nan], "1 diverged"),
        ([], "–"),
    ],
)
def test_spread(values, shown):
    assert spread(values) == shown
