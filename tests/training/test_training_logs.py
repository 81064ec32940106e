import csv
import dataclasses
import math
import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import torchdfa as dfa
from torchdfa.training import EpochResult, Interrupted, fit
from torchdfa.training.logs import Events, bar, write_history


def scalars(folder):
    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def row(epoch, **values):
    plain = {f.name: math.nan for f in dataclasses.fields(EpochResult)}
    return EpochResult(**(plain | {"epoch": epoch} | values))


def test_metrics_round_trip(tmp_path):
    write_history(tmp_path, [row(1, lr=0.1, test_top1=200 / 3), row(2, lr=1e-9)])
    with open(tmp_path / "metrics.csv") as file:
        first, second = csv.DictReader(file)
    assert list(first) == [f.name for f in dataclasses.fields(EpochResult)]
    assert (first["epoch"], first["lr"], first["test_top1"], first["val_top1"]) == ("1", "0.1", "66.666667", "nan")
    assert float(second["lr"]) == 1e-9
    write_history(tmp_path, [])
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1


def test_events_hold_the_scalars_once_also_after_a_resume(quick, digits, tmp_path):
    config = quick(epochs=3, rule=dfa.DFA(), alignment=1, validation=100)
    options = {"tensorboard": True, "progress": False, "dataset": digits}
    with pytest.raises(Interrupted):
        fit(config, tmp_path, on_epoch=lambda r: r.epoch == 2 and signal.raise_signal(signal.SIGINT), **options)
    # As if the last epoch's checkpoint had not been reached: epoch 2 is done again.
    for path in sorted(tmp_path.glob("checkpoint-*.ckpt"))[1:]:
        path.unlink()
    if not list(tmp_path.glob("checkpoint-*.ckpt")):
        pytest.fail("no checkpoint of the first epoch")
    history = fit(config, tmp_path, resume=True, **options).history
    found = scalars(tmp_path)
    with open(tmp_path / "metrics.csv") as file:
        assert [int(r["epoch"]) for r in csv.DictReader(file)] == [1, 2, 3]
    for tag, name in {"train/loss": "train_loss", "val/top1": "val_top1", "lr": "lr"}.items():
        assert [step for step, _ in found[tag]] == [1, 2, 3]
        assert [v for _, v in found[tag]] == pytest.approx([getattr(r, name) for r in history], rel=1e-5)
    assert [step for step, _ in found["test/top1"]] == [3]
    assert [step for step, _ in found["angle/classifier.0.weight"]] == [1, 2, 3]


def test_no_folder_no_events(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    events = Events(None, 0)
    events.add(row(1), [])
    events.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shown", [True, False])
def test_bar_without_a_terminal_prints_lines_only(capsys, shown):
    with bar(shown, 10, 0) as progress:
        progress.advance(0.5, 50.0, 100.0)
        progress.line("epoch 1 " + "x" * 200)
    out, err = capsys.readouterr()
    assert out == "" and err == ("epoch 1 " + "x" * 200 + "\n" if shown else "")
