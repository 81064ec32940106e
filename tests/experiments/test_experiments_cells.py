import dataclasses
import json
import math
from concurrent.futures import Future
from dataclasses import replace

import pytest

import torchdfa as dfa
from torchdfa.experiments import cells as module
from torchdfa.experiments import method
from torchdfa.experiments.cells import Cell, Outcome, run_cells
from torchdfa.models import MLP, SmallConv
from torchdfa.training import EpochResult, TrainConfig

BASE = TrainConfig(
    train_size=200, epochs=1, batch_size=50, model=MLP(hidden=(16,)), precision="32-true", lr=0.01, validation=0
)


def cell(phase="final", name="BP", **settings):
    return Cell(name, phase, replace(BASE, rule=method(name, 0), **settings))


def row(**values):
    return EpochResult(**({f.name: math.nan for f in dataclasses.fields(EpochResult)} | {"epoch": 1} | values))


@pytest.fixture
def here(monkeypatch):
    """Run cells in this process, and count them."""
    ran = []

    class Pool:
        def __init__(self, *arguments):
            pass

        def submit(self, function, one, folder):
            ran.append(one)
            future = Future()
            future.set_result(function(one, folder))
            return future

        def shutdown(self, **options):
            pass

    monkeypatch.setattr(module, "ProcessPoolExecutor", Pool)
    return ran


CHANGES = [
    {"lr": 0.02}, {"seed": 1}, {"epochs": 2}, {"train_size": None}, {"validation": 10}, {"augment": True},
    {"clip": 1.0}, {"data": "cifar10"}, {"model": MLP(hidden=(17,))}, {"model": SmallConv()}, {"rule": dfa.BDFA()},
    {"rule": dfa.BDFA(seed=1)}, {"rule": {"classifier.*": dfa.Frozen()}}, {"precision": "64-true"},
    {"optimizer": "adam"}, {"weight_decay": 0.0}, {"momentum": 0.5}, {"batch_size": 51}, {"schedule": "step"},
    {"head_lr": 2.0}, {"channels_last": True}, {"alignment": 1},
]  # fmt: skip


def test_key_tells_all_settings_apart_but_the_place_of_the_data():
    assert {f.name for f in dataclasses.fields(TrainConfig)} - {"data_root"} == {name for c in CHANGES for name in c}
    keys = [Cell("BP", "final", replace(BASE, **change)).key for change in [{}, *CHANGES]]
    assert len(set(keys)) == len(keys)
    assert keys[0] == Cell("BP", "final", replace(BASE, data_root="/elsewhere")).key


@pytest.mark.parametrize(
    "phase, history, problem, expected",
    [
        ("search", (row(val_top1=1.0, test_top1=2.0),), "", 1.0),
        ("final", (row(val_top1=1.0, test_top1=2.0),), "", 2.0),
        ("final", (row(test_top1=5.0), row(test_top1=2.0)), "", 2.0),
        ("final", (row(test_top1=2.0),), "it diverged", -math.inf),
        ("search", (), "", -math.inf),
    ],
)
def test_score(phase, history, problem, expected):
    assert Outcome(cell(phase), history, problem).score == expected


def test_finished_cells_are_not_run_again(here, tmp_path):
    first, second = cell(), cell(lr=0.02)
    done = list(run_cells([first], tmp_path, 1))
    assert here == [first] and len(done[0].history) == 1 and done[0].problem == ""
    again = list(run_cells([second, first], tmp_path, 1))
    assert here == [first, second]
    # What is there comes first, and is what was computed.
    assert [o.cell for o in again] == [first, second]
    assert repr(again[0]) == repr(done[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{c.key}.json" for c in (first, second))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"history": 3, "problem": ""}', '{"history": [{"epoch": 1}], "problem": ""}']
)
def test_a_damaged_result_is_run_again(here, tmp_path, content):
    first = cell()
    (done,) = run_cells([first], tmp_path, 1)
    path = tmp_path / f"{first.key}.json"
    path.write_text(content)
    (again,) = run_cells([first], tmp_path, 1)
    assert here == [first, first]
    assert again.score == done.score and len(json.loads(path.read_text())["history"]) == 1


def test_divergence_is_kept_as_a_result(here, tmp_path):
    bad = cell(lr=1e30, schedule="constant")
    for _ in range(2):
        (outcome,) = run_cells([bad], tmp_path, 1)
        assert "diverged" in outcome.problem and outcome.score == -math.inf
    assert here == [bad]


def test_two_processes_run_the_rest_beside_a_crash(tmp_path, capfd):
    crash = Cell("BP", "final", replace(BASE, model=MLP(hidden=(-1,))))
    good = [cell(lr=lr) for lr in (0.01, 0.02, 0.03)]
    outcomes = {o.cell: o for o in run_cells([good[0], crash, *good[1:]], tmp_path, 2)}
    assert set(outcomes) == {crash, *good}
    assert outcomes[crash].problem.startswith("RuntimeError: ") and outcomes[crash].score == -math.inf
    assert all(outcomes[c].problem == "" and outcomes[c].score > 0 for c in good)
    assert "Traceback" in capfd.readouterr().err
    # A crash is no result: it is run again next time.
    assert sorted(p.stem for p in tmp_path.iterdir()) == sorted(c.key for c in good)


def test_methods_of_a_seed_start_alike(here, tmp_path):
    # With one batch the first epoch's loss is that of the initial weights on the first batch.
    names = ("BP", "Conv-only", "CDFA random", "CDFA (7)", "CBDFA (9)", "FA", "BDFA")
    settings = {"batch_size": 200, "model": SmallConv(channels=(4,), head=(8, 8)), "augment": True}
    at_once = [o.history[0].train_loss for o in run_cells([cell(name=n, **settings) for n in names], tmp_path, 1)]
    assert len(set(at_once)) == 1
    other = next(run_cells([cell(seed=1, **settings)], tmp_path, 1)).history[0].train_loss
    assert other != at_once[0]
