import csv
import dataclasses
import math
import subprocess
import sys
from dataclasses import replace

import pytest

import torchdfa as dfa
from torchdfa.experiments import method
from torchdfa.experiments.results import Cell, Results, Row, changed, rows_of, score
from torchdfa.models import MLP, VGG16, SmallConv
from torchdfa.training import EpochResult, TrainConfig

BASE = TrainConfig(
    train_size=200, epochs=1, batch_size=50, model=MLP(hidden=(16,)), precision="32-true", lr=0.01, validation=0,
    clip=None,
)  # fmt: skip


def row(**values):
    """Make a row of a run of one epoch."""
    plain = {f.name: {"int": 1, "float": math.nan, "str": ""}[str(f.type)] for f in dataclasses.fields(Row)}
    return Row(**(plain | {"key": "0" * 16, "method": "BP", "phase": "final"} | values))


def run(number, epochs=1, **values):
    """Make the rows of a whole run, named by its number."""
    return [row(key=f"{number:016x}", epoch=i + 1, epochs=epochs, **values) for i in range(epochs)]


def epoch(**values):
    return EpochResult(**({f.name: math.nan for f in dataclasses.fields(EpochResult)} | {"epoch": 1} | values))


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "results.csv")


CHANGES = [
    {"lr": 0.02}, {"seed": 1}, {"epochs": 2}, {"train_size": None}, {"validation": 10}, {"augment": True},
    {"clip": 1.0}, {"data": "cifar10"}, {"model": MLP(hidden=(17,))}, {"model": SmallConv()}, {"rule": dfa.BDFA()},
    {"rule": dfa.BDFA(seed=1)}, {"rule": {"classifier.*": dfa.Frozen()}}, {"precision": "64-true"},
    {"loss": "binary"}, {"refresh": 1}, {"mirror_rate": 0.2}, {"optimizer": "adam"},
    {"weight_decay": 0.0}, {"momentum": 0.5}, {"batch_size": 51}, {"schedule": "step"},
    {"head_lr": 2.0}, {"channels_last": True}, {"alignment": 1}, {"score_every": 2}, {"vocabulary": 9}, {"sequence": 8},
]  # fmt: skip


def test_key_tells_all_settings_apart_but_the_place_of_the_data():
    assert {f.name for f in dataclasses.fields(TrainConfig)} - {"data_root"} == {name for c in CHANGES for name in c}
    keys = [Cell("e", "BP", "final", replace(BASE, **change)).key for change in [{}, *CHANGES]]
    assert len(set(keys)) == len(keys)
    assert keys[0] == Cell("e", "BP", "final", replace(BASE, data_root="/elsewhere")).key


@pytest.mark.parametrize(
    "rows, expected",
    [
        ([row(phase="search", val_top1=1.0, test_top1=2.0)], 1.0),
        ([row(phase="final", val_top1=1.0, test_top1=2.0)], 2.0),
        ([row(test_top1=5.0), row(test_top1=2.0)], 2.0),
        ([row(test_top1=2.0, problem="it diverged")], -math.inf),
        ([row(phase="search", epoch=0, problem="it diverged")], -math.inf),
    ],
)
def test_score(rows, expected):
    assert score(rows) == expected


def test_every_column_comes_back(results):
    full = Row(
        experiment='of "two", parts', scale="small", dataset="digits", train_size=200, method="CBDFA (9) ±",
        init="product",
        options="head=(8, 8); center=True", lr=0.0125, head_lr=0.5, weight_decay=5e-4, feedback_scale="0.3",
        phase="search", seed=7, epoch=1, epochs=2, train_loss=2.30259, train_top1=12.5, val_top1=33.3333,
        test_top1=0.0, test_top5=100.0, step_seconds=1.5e-05, trunk_angle=89.5, trunk_ratio=1.25, problem="",
        key="0123456789abcdef", val_loss=2.25, test_loss=2.5, precision="bf16-mixed",
    )  # fmt: skip
    unmeasured = {f.name: math.nan for f in dataclasses.fields(Row) if f.type == "float"}
    rows = [full, replace(full, epoch=2, **unmeasured)]
    assert results.read() == {}
    results.add(rows)
    (found,) = results.read().values()
    assert repr(found) == repr(rows)
    with open(results.path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == [f.name for f in dataclasses.fields(Row)]
    assert all((lines[1][name], lines[0][name] != "") == ("", True) for name in unmeasured)


def test_a_run_is_kept_once(results):
    results.add(run(1, 2, test_top1=50.0))
    results.add(run(2))
    before = results.path.read_bytes()
    results.add(run(1, 2, test_top1=60.0))
    assert results.path.read_bytes() == before
    assert [len(rows) for rows in results.read().values()] == [2, 1]


@pytest.mark.parametrize("last", [run(3), [row(key=f"{3:016x}", epoch=0, epochs=5, problem='it "diverged", ×3')]])
def test_a_cut_off_file_lacks_only_the_last_run(results, last):
    for rows in (run(1), run(2, 2), last):
        results.add(rows)
    whole, kept = results.path.read_bytes(), results.read()
    begin = whole[:-1].rfind(b"\n") + 1
    del kept[last[0].key]
    for end in range(begin, len(whole)):
        results.path.write_bytes(whole[:end])
        assert repr(results.read()) == repr(kept)
    # It can be added to the torn file.
    results.path.write_bytes(whole[:-5])
    results.add(last)
    assert results.path.read_bytes() == whole


def test_a_run_with_missing_epochs_is_absent(results):
    for number in (1, 2, 3):
        results.add(run(number, 3))
    lines = results.path.read_text().splitlines(keepends=True)
    results.path.write_text("".join(lines[:5] + lines[6:]))  # without the second run's second epoch
    assert list(results.read()) == [f"{number:016x}" for number in (1, 3)]
    results.add(run(2, 3))
    assert sorted(len(rows) for rows in results.read().values()) == [3, 3, 3]


def test_files_of_two_machines_can_be_joined(results, tmp_path):
    other = Results(tmp_path / "other.csv")
    results.add(run(1))
    other.add(run(2, 2))
    results.path.write_text(results.path.read_text() + other.path.read_text())
    assert list(results.read()) == [f"{number:016x}" for number in (1, 2)]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "experiment,scale"])
def test_other_columns_are_refused(results, text):
    results.path.write_text(text)
    with pytest.raises(ValueError, match=r"results\.csv has the columns .*Move it away"):
        results.read()
    with pytest.raises(ValueError, match=r"results\.csv has the columns"):
        results.add(run(1))
    assert results.path.read_text() == text


def test_processes_that_add_at_once_lose_nothing(results):
    code = (
        "import sys; from pathlib import Path; from test_experiments_results import *\n"
        "for i in range(25): Results(Path(sys.argv[1])).add(run(100 * int(sys.argv[2]) + i, 2))"
    )
    arguments = [sys.executable, "-c", code, str(results.path)]
    with subprocess.Popen([*arguments, "1"], cwd=__file__.rpartition("/")[0]) as other:
        while not results.path.exists() and other.poll() is None:
            pass
        for i in range(25):
            results.add(run(200 + i, 2))
    assert other.returncode == 0
    assert set(results.read()) == {f"{100 * n + i:016x}" for n in (1, 2) for i in range(25)}
    assert len(results.path.read_text().splitlines()) == 1 + 2 * 50


def test_sort(results):
    order = [
        ("CDFA", "search", 0.01, 0), ("CDFA", "search", 0.1, 0), ("CDFA", "final", 0.01, 0), ("CDFA", "final", 0.01, 1),
        ("CDFA", "final", 0.01, 10), ("BP", "search", 0.01, 0), ("BP", "final", 0.005, 0), ("A", "search", 0.01, 0),
    ]  # fmt: skip
    for number, (name, phase, lr, seed) in reversed(list(enumerate(order))):
        results.add(run(number, 2, method=name, phase=phase, lr=lr, seed=seed))
    results.sort(["CDFA", "BP"])
    found = [r for rows in results.read().values() for r in rows]
    assert [(r.method, r.phase, r.lr, r.seed) for r in found[::2]] == order
    assert [r.epoch for r in found] == [1, 2] * len(order)
    before = results.path.read_bytes()
    results.sort(["CDFA", "BP"])
    assert results.path.read_bytes() == before


def test_rows_of_a_run():
    config = replace(BASE, epochs=2, seed=3, head_lr=0.5, validation=20, data="cifar10")
    cell = Cell("table1", "BP", "search", config, "small")
    history = [
        epoch(train_loss=2.0, train_top1=10.0, val_top1=11.0, step_seconds=0.25),
        epoch(
            epoch=2, train_loss=1.0, train_top1=20.0, val_top1=21.0, test_top1=22.0, test_top5=23.0, step_seconds=0.5,
            trunk_angle=45.0, trunk_ratio=2.0,
        ),
    ]  # fmt: skip
    first, second = rows_of(cell, history, "", 200, "32-true")
    assert repr(second) == repr(Row(
        experiment="table1", scale="small", dataset="cifar10", train_size=200, method="BP", init="",
        options="MLP(hidden=[16]); BP; batch_size=50; precision=32-true",
        lr=0.01, head_lr=0.5, weight_decay=5e-4, feedback_scale="", phase="search", seed=3,
        epoch=2, epochs=2, train_loss=1.0, train_top1=20.0, val_top1=21.0, test_top1=22.0, test_top5=23.0,
        step_seconds=0.5, trunk_angle=45.0, trunk_ratio=2.0, problem="", key=cell.key, precision="32-true",
    ))  # fmt: skip
    assert (first.epoch, first.val_top1, first.step_seconds) == (1, 11.0, 0.25) and math.isnan(first.test_top1)


def test_rows_of_a_run_that_diverged(results):
    cell = Cell("e", "BP", "final", replace(BASE, epochs=5))
    (only,) = rows_of(cell, [], "the loss is nan", 200)
    assert (only.epoch, only.epochs, only.problem, only.key) == (0, 5, "the loss is nan", cell.key)
    assert all(math.isnan(getattr(only, name)) for name in ("train_loss", "train_top1", "test_top1", "step_seconds"))
    results.add([only])
    assert repr(results.read()) == repr({cell.key: [only]})
    later = rows_of(cell, [epoch(), epoch(epoch=2)], "the loss is nan", 200)
    assert [(r.epoch, r.problem) for r in later] == [(1, "the loss is nan"), (2, "the loss is nan")]


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"model": SmallConv()}, ("", "SmallConv; BP", "")),
        (
            {
                "model": VGG16(head_norm=True),
                "rule": dfa.CBDFA(init="product", center=True, scale=0.3, seed=4),
                "augment": True,
                "refresh": 2,
            },
            ("product", "VGG16(head_norm=True); CBDFA(center=True); augment=True; refresh=2", "0.3"),
        ),
        ({"model": SmallConv(), "rule": dfa.DFA(scale="unit")}, ("random", "SmallConv; DFA", "unit")),
        ({"model": SmallConv(), "rule": dfa.BDFA()}, ("random", "SmallConv; BDFA", "matched")),
        ({"model": SmallConv(channels=(4,)), "rule": method("CBDFA seeded", 1)},
         ("random", "SmallConv(channels=[4]); CBDFA(storage=seeded)", "matched")),
        ({"model": SmallConv(), "rule": method("CBDFA (9) chain", 1)},
         ("product", "SmallConv; CBDFA(trunk=chain)", "matched")),
        ({"model": SmallConv(), "rule": {"features.*": dfa.BP(), "classifier.*": dfa.FA(init="product")}},
         ("product", "SmallConv; features.*: BP; classifier.*: FA", "matched")),
        ({"model": MLP(hidden=(240,) * 100)}, ("", "MLP(hidden=[240] * 100); BP", "")),
        ({"model": SmallConv(), "loss": "binary", "alignment": 2, "validation": 5, "momentum": 0.5},
         ("", "SmallConv; BP; loss=binary; momentum=0.5", "")),
    ],
)  # fmt: skip
def test_columns_of_the_settings(settings, expected):
    (found,) = rows_of(Cell("e", "m", "final", TrainConfig(clip=None, **settings)), [epoch()], "", 200)
    assert (found.init, found.options, found.feedback_scale) == expected


def test_a_key_hangs_on_what_is_not_the_default():
    assert changed(TrainConfig(lr=0.5, rule={"a": dfa.BDFA(seed=3)}, clip=None)) == {
        "model": {"class": "SmallConv"}, "rule": {"a": {"class": "BDFA", "seed": 3}}, "lr": 0.5
    }  # fmt: skip
    # Fixed for good: records are continued by it.
    assert Cell("e", "m", "final", TrainConfig(clip=None)).key == "3f894a0b4a67f09b"


def test_a_default_that_has_changed_is_told_as_any_other_value():
    """Runs were recorded when there was no clip by default."""
    assert changed(TrainConfig())["clip"] == 10.0 == TrainConfig().clip
    (found,) = rows_of(Cell("e", "m", "final", TrainConfig()), [epoch()], "", 200)
    assert found.options.endswith("; clip=10.0")


def test_adopted_rows_are_the_cell_s(results):
    cell = Cell("table2", "BP, augmented", "final", BASE, "small")
    results.adopt(cell, run(1, epochs=2, method="BP", experiment="table1", test_top1=50.0))
    results.adopt(cell, run(1, epochs=2, method="other"))
    (rows,) = results.read().values()
    assert [(r.experiment, r.scale, r.method, r.test_top1) for r in rows] == [
        ("table2", "small", "BP, augmented", 50.0)
    ] * 2
