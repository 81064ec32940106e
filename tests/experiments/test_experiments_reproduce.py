import csv
import math
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from torchdfa.data import TEXTS, DataError
from torchdfa.experiments import EXPERIMENTS, ReproduceConfig, reproduce, study, write_page
from torchdfa.experiments.layers import keep_angles, read_angles
from torchdfa.experiments.markdown import spread, table
from torchdfa.experiments.methods import METHODS
from torchdfa.experiments.reproduce import experiment as module
from torchdfa.experiments.reproduce.mlp import MLP_EXPERIMENT
from torchdfa.experiments.reproduce.page import standings
from torchdfa.experiments.reproduce.vgg import LRS
from torchdfa.experiments.results import Cell, Results, rows_of
from torchdfa.experiments.study import FEEDBACK_SCALES, WEIGHT_DECAYS, Trial
from torchdfa.models import MLP
from torchdfa.training import EpochResult, TrainConfig, fit

TABLE1 = EXPERIMENTS["table1"]
SMALL = ReproduceConfig()


def lines_of(name, **settings):
    experiment = EXPERIMENTS[name]
    config = ReproduceConfig(**settings)
    return {line.name: line for line in experiment.lines(config, experiment.data_of(config))}


LINES = lines_of("table1")


def epoch(number, **values):
    empty = dict.fromkeys(EpochResult.__dataclass_fields__, math.nan)
    return EpochResult(**(empty | {"epoch": number, "trunk_angle": 60.0, "trunk_ratio": 0.5} | values))


@pytest.fixture
def pretend(monkeypatch):
    """Make up results: a function of a cell gives its accuracy, or None to diverge. No data is loaded."""
    ran = []
    monkeypatch.setattr(module, "load_any", lambda name, root: None)

    def arrange(accuracy):
        def run_cells(cells, folder, workers):
            results = Results(folder / "results.csv")
            finished = results.read()
            for cell in cells:
                if cell.key not in finished:
                    ran.append(cell)
                    finished[cell.key] = outcome(cell)
            folder.mkdir(parents=True, exist_ok=True)
            results._write(row for run in finished.values() for row in run)  # at once: a test makes hundreds of runs
            yield from ((cell, finished[cell.key]) for cell in cells)

        def outcome(cell):
            value = accuracy(cell)
            size = cell.config.train_size or 50000
            if value is None:
                return rows_of(cell, [], "the loss is nan", size)
            part = "val" if cell.phase == "search" else "test"
            epochs, every = cell.config.epochs, cell.config.score_every
            # Of a text, what stands for an accuracy of 60 % is a loss of 1.
            text = cell.config.data in TEXTS
            scores = [
                {f"{part}_loss": 60 / value} if text else {f"{part}_top1": value * i / epochs}
                for i in range(1, epochs + 1)
            ]
            if part == "test":
                scores = [score if i % every == 0 else {} for i, score in enumerate(scores, 1)]
            return rows_of(cell, [epoch(i, **s) for i, s in enumerate(scores, 1)], "", size)

        monkeypatch.setattr(study, "run_cells", run_cells)
        return ran

    return arrange


def run(name, out, **settings):
    return reproduce(EXPERIMENTS[name], ReproduceConfig(**settings), out, progress=False)


def bump(cell, peak):
    """Score a cell by how near its learning rate is to a peak."""
    return 60 - 10 * abs(math.log10(cell.config.lr / peak)) - (cell.config.head_lr != 1) + cell.config.seed / 10


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda experiment: experiment.name)
def test_the_paper_s_rows_are_all_there(experiment):
    for data, reported in experiment.paper.items():
        names = {line.name for line in experiment.lines(SMALL, data)}
        assert data in experiment.data and set(reported) <= names


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("scale", ["small", "medium", "paper"])
def test_rows_of_every_experiment_are_told_apart(name, scale):
    lines = lines_of(name, scale=scale)
    experiment = EXPERIMENTS[name]
    assert len(lines) == len(experiment.lines(ReproduceConfig(scale=scale), experiment.data[0]))
    keys = {Cell(name, line.name, "final", line.settings(Trial(0.1))).key for line in lines.values()}
    assert len(keys) == len(lines)
    assert all(line.against in {None, *lines} for line in lines.values())
    # Within a group of rows that are compared nothing differs that the budget must not differ in.
    for line in lines.values():
        other = lines[line.against or line.name]
        same = ("data", "train_size", "augment", "batch_size", "optimizer", "schedule", "clip", "loss", "epochs")
        assert [getattr(line.config, s) for s in same] == [getattr(other.config, s) for s in same]
        assert line.budget == other.budget or line.name == "BP, 100×240, from zero weights"


@pytest.mark.parametrize("line", LINES.values(), ids=lambda line: line.name)
def test_a_trial_is_read_back_from_its_row(line):
    second = FEEDBACK_SCALES[2] if line.tunes_feedback else WEIGHT_DECAYS[2]
    assert line.tunes_feedback == (line.name not in ("BP", "BP w/ BN", "Conv-only", "CBDFA (9) unit"))
    keys = set()
    for trial in [Trial(0.02), Trial(0.02, second), Trial(0.05, None, 0.1), Trial(0.05, second, 0.1)]:
        cell = Cell("table1", line.name, "search", line.settings(trial, validation=1000))
        keys.add(cell.key)
        assert line.trial(rows_of(cell, [], "", 5000)[0]) == trial
        assert cell.config.validation == 1000 and cell.config.alignment == 0
    assert len(keys) == 4


def test_every_row_has_the_same_number_of_trials_and_finals_at_the_best(pretend, tmp_path):
    ran = pretend(lambda cell: bump(cell, 0.05))
    run("table1", tmp_path)
    for line in LINES.values():
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
    again = len(ran)
    run("table1", tmp_path)
    assert len(ran) == again


def test_the_further_trials_are_at_and_around_the_best_rate(pretend, tmp_path):
    ran = pretend(lambda cell: bump(cell, 0.05))
    run("table1", tmp_path, rows=("BP", "CBDFA (9)"))
    for line in (LINES["BP"], LINES["CBDFA (9)"]):
        trials = [line.trial(rows_of(c, [], "", 1)[0]) for c in ran if (c.method, c.phase) == (line.name, "search")]
        more = [t for t in trials if t != Trial(t.lr)]
        assert len(more) == 5 and {t.lr for t in more} <= {0.025, 0.05, 0.1}
        values = FEEDBACK_SCALES if line.tunes_feedback else WEIGHT_DECAYS
        assert {t.second for t in more} <= {None, *values[1:]} and {t.head_lr for t in more} <= {None, 0.1}


def test_the_grid_is_widened_at_an_edge_and_not_without_end(pretend, tmp_path):
    ran = pretend(lambda cell: bump(cell, 0.8 if cell.method == "BP" else 1e-9))
    run("table1", tmp_path, rows=("BP", "CDFA (7)"))
    tried = {n: {c.config.lr for c in ran if (c.method, c.phase) == (n, "search")} for n in ("BP", "CDFA (7)")}
    assert {0.8, 1.6} <= tried["BP"] and 3.2 not in tried["BP"]
    assert min(tried["CDFA (7)"]) >= 0.005 / 8


def test_shards_share_the_rows(pretend, tmp_path):
    ran = pretend(lambda cell: 50.0)
    run("table1", tmp_path / "a", shard="1/3")
    assert {c.method for c in ran} == set([*LINES][1::3])


def test_a_larger_run_takes_its_rates_from_a_smaller_one(pretend, tmp_path):
    ran = pretend(lambda cell: bump(cell, 0.05) + (5 if cell.config.head_lr != 1 else 0))
    rows = ("BP", "CBDFA (9)")
    run("table1", tmp_path / "small", rows=rows)
    small = {c.method: c.config for c in ran if c.phase == "final"}
    assert all(config.head_lr == 0.1 for config in small.values())
    for scale, factors, seeds in (("medium", (0.5, 1, 2), 2), ("paper", (1,), 1)):
        ran.clear()
        run("table1", tmp_path / scale, rows=rows, scale=scale, rates_from=str(tmp_path / "small"), seeds=seeds)
        for name in rows:
            searched = [c.config for c in ran if (c.method, c.phase) == (name, "search")]
            best = small[name].lr
            assert [c.lr for c in searched] == ([best * f for f in factors] if len(factors) > 1 else [])
            finals = [c.config for c in ran if (c.method, c.phase) == (name, "final")]
            assert len(finals) == seeds
            for config in (*searched, *finals):
                assert (config.head_lr, config.weight_decay) == (0.1, small[name].weight_decay)
                assert getattr(config.rule, "scale", 0) == getattr(small[name].rule, "scale", 0)
                assert config.train_size is None


def test_rates_from_a_folder_without_the_row(tmp_path):
    with pytest.raises(ValueError, match=r"holds no trials of 'BP'"):
        run("table1", tmp_path, scale="medium", rates_from=str(tmp_path))


def test_runs_of_the_same_settings_are_taken_over(pretend, tmp_path):
    ran = pretend(lambda cell: bump(cell, 0.05))
    run("table1", tmp_path / "a" / "table1", rows=("BP", "Conv-only", "CBDFA (9)"))
    before = len(ran)
    (tmp_path / "a" / "other").mkdir()
    (tmp_path / "a" / "other" / "results.csv").write_text("features,scenario\nanother,program's\n")
    run("table2", tmp_path / "table2", reuse=str(tmp_path / "a"))
    assert {c.method for c in ran[before:]} == {"BP, augmented", "CBDFA (9), augmented", "Conv-only, augmented"}
    taken = [run[0] for run in Results(tmp_path / "table2" / "results.csv").read().values() if run[0].method == "BP"]
    assert len(taken) == 17 and {row.experiment for row in taken} == {"table2"}
    with pytest.raises(ValueError, match=r"no results\.csv in or below"):
        run("table2", tmp_path / "b", reuse=str(tmp_path / "nothing"))


def test_fixed_rates_are_not_searched(pretend, tmp_path):
    ran = pretend(lambda cell: 50.0)
    run("figure4", tmp_path)
    assert {c.phase for c in ran} == {"final"} and {c.config.lr for c in ran} == {0.01}
    assert len(ran) == 25


def test_a_frozen_head_stays_frozen_in_every_trial():
    line = lines_of("recipe")["trunk ±1 (9), head frozen"]
    assert all(line.settings(t).head_lr == 0 for t in (Trial(0.1), Trial(0.1, 0.3)))
    assert all(t.head_lr is None for t in study._more(line, {Trial(0.1): 50.0})) or line.budget.more == 0


def test_page(pretend, tmp_path):
    def accuracy(cell):
        if cell.method == "FA in the head":
            return None
        return bump(cell, 0.05) + (5 + cell.config.seed / 10 if cell.method.startswith("C") else 0)

    pretend(accuracy)
    rows = ("BP", "CDFA (7)", "CBDFA (9)", "FA in the head")
    run("table1", tmp_path, rows=rows)
    paths = write_page(TABLE1, tmp_path)
    assert [path.name for path in paths] == ["table1.md", "table1.png", "table1.svg"]
    text = paths[0].read_text()
    line = next(x for x in text.splitlines() if x.startswith("| CDFA (7) |"))
    # Five seeds at 65.0 to 65.8, BP's at 60.0 to 60.4. Nothing has a top-5 or train accuracy: no such columns.
    assert [cell.strip() for cell in line.split("|")[2:]] == [
        "65.40 ± 0.32", "0.05", "+5.20", "< 0.001", "19", "60°, × 0.50", "5", "86.36 / 98.55", ""
    ]  # fmt: skip
    assert "5 diverged" in next(x for x in text.splitlines() if x.startswith("| FA in the head |"))
    assert text.count("| CBDFA (9) |") == 1 + 12
    assert paths[1].read_bytes().startswith(b"\x89PNG") and "<svg" in paths[2].read_text()
    assert [s.name for s in standings(TABLE1, tmp_path)] == list(rows)
    before = [path.read_bytes() for path in paths]
    write_page(TABLE1, tmp_path)
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if n != "table1"])
def test_every_experiment_has_a_page(name, pretend, tmp_path):
    pretend(lambda cell: bump(cell, 0.05))
    run(name, tmp_path, epochs=3, seeds=2)
    paths = write_page(EXPERIMENTS[name], tmp_path)
    text = paths[0].read_text()
    assert all(f"| {line} |" in text for line in lines_of(name))
    assert all(path.stat().st_size > 1000 for path in paths[1:])


def test_runs_by_training_set_size_take_over_those_of_the_table_and_the_recipe(pretend, tmp_path):
    ran = pretend(lambda cell: bump(cell, 0.05))
    rows = ("BP", "CBDFA (9)")
    run("table1", tmp_path / "table1", rows=rows, epochs=2, seeds=1)
    run("recipe1000", tmp_path / "recipe1000", rows=rows, epochs=2, seeds=1)
    before = len(ran)
    sizes = tuple(f"{row}, {size} images" for row in rows for size in ("1,000", "5,000"))
    run("sizes", tmp_path / "sizes", rows=sizes, epochs=2, seeds=1, reuse=str(tmp_path))
    assert len(ran) == before == 4 * 13


def test_few_images_are_scored_after_the_last_epoch_alone(pretend, tmp_path):
    ran = pretend(lambda cell: bump(cell, 0.05))
    run("sizes", tmp_path, rows=("BP, 1,000 images", "BP, 5,000 images"), seeds=2)
    every = {(c.method, c.phase): c.config.score_every for c in ran}
    assert every.pop(("BP, 1,000 images", "final")) == 20
    assert set(every.values()) == {1}
    assert "Epochs to match" in write_page(EXPERIMENTS["sizes"], tmp_path)[0].read_text()

    run("recipe1000", tmp_path / "1000", rows=("BP", "CBDFA (9)"), seeds=2)
    text = write_page(EXPERIMENTS["recipe1000"], tmp_path / "1000")[0].read_text()
    assert "epochs to match" not in text.lower() and "| CBDFA (9) | 60.05 ± 0.07 |" in text


def test_finalists_of_a_search_that_chose_the_second_best(pretend, tmp_path, monkeypatch, capsys):
    def accuracy(cell):
        plain = cell.config.head_lr == 1 and cell.config.weight_decay == 5e-4
        if cell.phase == "search":
            return bump(cell, 0.05) + plain
        return 40 + cell.config.seed + 10 * (cell.config.lr == 0.1 and plain)

    ran = pretend(accuracy)
    run("recipe1000", tmp_path, rows=("BP", "CBDFA (9)"), seeds=2)
    before = len(ran)
    monkeypatch.setattr("torchdfa.experiments.runner.run_cells", study.run_cells)
    example = str(Path(__file__).parents[2] / "examples" / "finalists.py")

    def printed(*options):
        arguments = [example, "recipe1000", str(tmp_path), "--out", str(tmp_path / "out"), *options]
        monkeypatch.setattr("sys.argv", arguments)
        runpy.run_path(example, run_name="__main__")
        lines = capsys.readouterr().out.splitlines()
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| BP")]

    assert printed("--rows", "BP", "--best", "1") == [
        ["BP", "0.05", "0.0005", "1", "61.00", "40.50 ± 0.71", "chosen"],
        ["BP", "40.50", "40.50", "40.50"],
    ]
    assert len(ran) == before  # the last runs of the trial that was chosen are there
    *trials, summary = printed("--rows", "BP", "--best", "20")
    assert len(trials) == 12 and len(ran) == before + 11 * 2
    assert ["BP", "0.1", "0.0005", "1", "57.99", "50.50 ± 0.71", ""] in trials
    assert trials[0][-1] == "chosen" and summary == ["BP", "40.50", "41.33 ± 2.89", "50.50"]
    assert len(printed("--rows", "BP", "--best", "20")) == 13 and len(ran) == before + 11 * 2
    with pytest.raises(SystemExit, match=r"no last runs of \['CDFA \(7\)'\], but those of 'BP', 'CBDFA \(9\)'"):
        printed("--rows", "CDFA (7)")


def test_a_page_of_what_there_is_so_far(pretend, tmp_path):
    pretend(lambda cell: None if cell.method[:2] == "BP" else bump(cell, 0.05))
    run("sizes", tmp_path, rows=("BP, 1,000 images", "CBDFA (9), 5,000 images"), epochs=2, seeds=1)
    text = write_page(EXPERIMENTS["sizes"], tmp_path)[0].read_text()
    assert "1 diverged" in text


def test_a_stand_in_is_called_one(pretend, tmp_path):
    pretend(lambda cell: 30.0)
    run("table1", tmp_path, rows=("BP",), data="tiny-imagenet100-32")
    text = write_page(TABLE1, tmp_path)[0].read_text()
    assert "a 100-class stand-in for CIFAR-100" in text and "40.29" not in text


def test_no_results_no_page(tmp_path):
    with pytest.raises(ValueError, match="holds no runs"):
        write_page(TABLE1, tmp_path)


def test_missing_data_shows_first(tmp_path):
    with pytest.raises(DataError):
        run("table1", tmp_path, data_root=str(tmp_path / "none"), data="tiny-imagenet100-32")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"scale": "huge"}, "'small', 'medium', 'paper'"),
        ({"shard": "2/2"}, "i/n"),
        ({"epochs": 0}, "epochs=0, expected 1 or more"),
        ({"seeds": -1}, "seeds=-1"),
        ({"jobs": 0}, "jobs=0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ReproduceConfig(**settings)


def test_settings_that_don_t_fit_the_experiment(tmp_path):
    with pytest.raises(ValueError, match=r"\['XP'\] not among 'BP'"):
        run("table1", tmp_path, rows=("XP",))
    with pytest.raises(ValueError, match=r"mlp: data='cifar10', expected one of mnist, fashion-mnist"):
        run("mlp", tmp_path, data="cifar10")


def test_mlp_rows_are_nokland_s():
    lines = {line.name: line.config for line in MLP_EXPERIMENT.lines(SMALL, "mnist")}
    assert {c.optimizer for c in lines.values()} == {"rmsprop"} and {c.batch_size for c in lines.values()} == {64}
    dropped = lines["DFA, 2×800 + dropout"].model
    assert (dropped.input_dropout, dropped.dropout, dropped.activation) == (0.1, 0.5, "tanh")
    assert lines["DFA, 100×240"].model == MLP(hidden=(240,) * 100, activation="tanh", init="zero")
    assert lines["BP, 100×240"].model.init == "uniform" and lines["BP, 100×240, from zero weights"].model.init == "zero"
    assert {c.loss for c in lines.values()} == {"binary"}


def test_angles_of_several_runs_in_one_file(tmp_path):
    config = TrainConfig(train_size=100, epochs=2, model=MLP(hidden=(8, 8)), rule=METHODS["DFA"], alignment=1)
    fit(config, tmp_path / "partial" / "a", progress=False)
    for cell in (Cell("e", "DFA", "final", config), Cell("e", "BP", "final", config)):
        keep_angles(cell, tmp_path / "partial" / "a")
        keep_angles(cell, tmp_path / "partial" / "a")
    rows = read_angles(tmp_path)
    with open(tmp_path / "partial" / "a" / "angles.csv", newline="") as file:
        own = list(csv.DictReader(file))
    assert {row["parameter"] for row in own} == {"classifier.0.weight", "classifier.2.weight", "classifier.4.weight"}
    assert rows == [{"method": name, "seed": "0", **row} for name in ("DFA", "BP") for row in own]
    keep_angles(cell, tmp_path / "partial" / "diverged")
    assert read_angles(tmp_path) == rows


@pytest.mark.parametrize(
    "values, shown",
    [
        ([1.0, 2.0], "1.50 ± 0.71"),
        ([3.0], "3.00"),
        ([1.0, math.nan], "1.00 (1 diverged)"),
        ([math.nan], "1 diverged"),
        ([], ""),
    ],
)
def test_spread(values, shown):
    assert spread(values) == shown


def test_table_leaves_out_empty_columns():
    assert table(("a", "b", "c"), [("x", "", "1"), ("y", "", "")]) == [
        "| a | c |", "| --- | ---: |", "| x | 1 |", "| y |  |"
    ]  # fmt: skip
