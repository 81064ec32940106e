"""Runs that are killed, on full disks and read-only ones, under a clock that goes backwards, two at once."""

import errno
import os
import signal
import subprocess
import time
from dataclasses import replace

import pytest

import torchdfa as dfa
from faults import can_fork, child, kill_often, small_disk
from torchdfa.cli import main
from torchdfa.models import MLP
from torchdfa.training import Interrupted, ProcessError, TrainConfig, fit
from torchdfa.training.checkpoint import list_checkpoints, load_checkpoint
from torchdfa.training.config import to_dict
from torchdfa.training.processes import alone_in

pytestmark = [can_fork, pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")]

CONFIG = TrainConfig(
    train_size=300,
    epochs=4,
    batch_size=20,
    model=MLP(hidden=(64, 64), dropout=0.3),
    rule=dfa.BDFA(),
    precision="32-true",
    lr=0.01,
    augment=True,
    alignment=2,
)


@pytest.fixture
def run(digits):
    def train(out, config=CONFIG, **options):
        resume = (out / "config.json").exists()
        settings = {"dataset": digits, "progress": False, "accelerator": "cpu", "checkpoint_steps": 2}
        return fit(config, out, resume=resume, **(settings | options))

    return train


@pytest.fixture
def whole(run, tmp_path):
    """The folder of a run that nothing happened to."""
    run(tmp_path / "whole")
    return tmp_path / "whole"


def same(out, whole):
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (out / "angles.csv").read_bytes() == (whole / "angles.csv").read_bytes()
    # All but speeds.
    tables = [[line.split(",")[:9] for line in (f / "metrics.csv").read_text().splitlines()] for f in (out, whole)]
    assert tables[0] == tables[1]


def test_killed_at_random_moments(run, whole, tmp_path):
    kill_often(lambda i: lambda: run(tmp_path / str(i)), lambda i: same(tmp_path / str(i), whole))


def test_a_full_disk(run, whole, tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        out, filler = disk / "run", disk / "filler"

        def fill(result):
            if result.epoch == 2:
                with open(filler, "wb", buffering=0) as file, pytest.raises(OSError):
                    while True:
                        file.write(bytes(512))

        with pytest.raises(OSError, match=r"No space left on device.*checkpoint-") as caught:
            run(out, on_epoch=fill)
        assert caught.value.errno == errno.ENOSPC and not list(out.glob(".*.part"))
        state = load_checkpoint(out, to_dict(CONFIG))
        assert state is not None and state["place"]["epoch"] == 1  # the last one that is whole
        filler.unlink()
        run(out)
        same(out, whole)


def test_a_full_disk_on_the_command_line(tmp_path, capsys):
    with small_disk(tmp_path / "disk", "16k") as disk:
        options = ["--model", "MLP", "--epochs", "1", "--tensorboard", "false", "--accelerator", "cpu"]
        assert main(["train", *options, "--out", str(disk / "run")]) == 2
        said = capsys.readouterr().err
    assert "No space left on device" in said and f"torchdfa train --resume {disk / 'run'}" in said
    assert "Traceback" not in said


def test_a_limit_on_the_size_of_files(run, whole, tmp_path):
    """As a full disk, where mounting is not allowed: no file may have more than 20 kB."""
    import resource  # Windows has none

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with pytest.raises(OSError, match="File too large"):
            run(tmp_path / "run")

    assert os.waitpid(child(limited), 0)[1] == 0
    assert list_checkpoints(tmp_path / "run") == [] and not list((tmp_path / "run").glob(".*.part"))
    run(tmp_path / "run")
    same(tmp_path / "run", whole)


def stop_after(epoch):
    def stop(result):
        if result.epoch == epoch:
            raise KeyboardInterrupt

    return stop


def test_a_folder_that_is_read_only(run, whole, tmp_path, capsys):
    with small_disk(tmp_path / "disk", "2m") as disk:
        with pytest.raises(KeyboardInterrupt):
            run(disk / "run", on_epoch=stop_after(2))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(OSError, match="Read-only file system"):
            run(disk / "run")
        options = ["--model", "MLP", "--epochs", "1", "--tensorboard", "false"]
        for out in ("run2", "deep/run3"):
            assert main(["train", *options, "--out", str(disk / out)]) == 2
            said = capsys.readouterr().err
            assert "Read-only file system" in said and str(disk) in said and "Traceback" not in said
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        run(disk / "run")
        same(disk / "run", whole)


def test_a_scheduler_s_signal(run, whole, tmp_path):
    out = tmp_path / "run"

    def train():
        with pytest.raises(Interrupted, match="stopped after epoch"):
            run(out, on_epoch=lambda result: time.sleep(0.2))

    number = child(train)
    while not list_checkpoints(out):
        time.sleep(0.01)
    os.kill(number, signal.SIGTERM)
    assert os.waitpid(number, 0)[1] == 0
    assert not (out / "model.safetensors").exists()
    run(out)
    same(out, whole)


def test_a_clock_that_goes_backwards(run, whole, tmp_path, monkeypatch):
    """Checkpoints are told apart by their numbers, not by their times."""
    now = time.time()
    hours = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: now - 3600 * next(hours))

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", on_epoch=stop_after(2), keep=3)
    paths = list_checkpoints(tmp_path / "run")
    assert len(paths) == 3
    for age, path in enumerate(paths):
        os.utime(path, (now - 3600 * age,) * 2)  # the newest seems the oldest
    assert load_checkpoint(tmp_path / "run", to_dict(CONFIG))["place"]["step"] == 14
    run(tmp_path / "run", keep=3)
    same(tmp_path / "run", whole)


def test_two_runs_on_one_folder_and_what_a_dead_one_leaves(run, whole, tmp_path):
    out = tmp_path / "run"

    def hold():
        with alone_in(out):
            (tmp_path / "held").touch()
            time.sleep(60)

    number = child(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(ProcessError, match="another process trains in"):
        run(out)
    assert not (out / "config.json").exists()
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    assert (out / ".lock").exists()  # left behind, and of no effect
    (out / ".model.safetensors.123.part").write_bytes(b"half")
    run(out)
    same(out, whole)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_cut_off_checkpoint_is_passed_over(run, whole, tmp_path, keep):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", on_epoch=stop_after(3))
    last = list_checkpoints(tmp_path / "run")[-1]
    last.write_bytes(last.read_bytes()[: int(keep * last.stat().st_size)])
    with pytest.warns(UserWarning, match="skipped a damaged checkpoint"):
        run(tmp_path / "run")
    same(tmp_path / "run", whole)


def test_other_settings_are_refused_also_beside_a_lock(run, whole):
    with pytest.raises(ValueError, match="these settings differ"):
        run(whole, replace(CONFIG, lr=0.5))
