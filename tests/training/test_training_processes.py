"""Real processes: killed, interrupted, two at once."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from torchdfa.cli import main

NETWORK = ["--model", "MLP", "--model.hidden", "[64, 64]", "--model.dropout", "0.3", "--precision", "32-true"]
# 288 steps an epoch.
LONG = [
    *NETWORK,
    "--rule",
    "DFA",
    "--lr",
    "0.01",
    "--augment",
    "true",
    "--batch-size",
    "5",
    "--epochs",
    "2",
    "--tensorboard",
    "false",
]
PER_EPOCH = 288


@pytest.fixture
def start(tmp_path):
    """Start the command line in a process of its own, which does not outlive the test."""
    started = []

    def begin(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "torchdfa", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(["train", *LONG, "--out", str(out)]) == 0
    return out / "model.safetensors"


def steps_done(out):
    return max((int(p.stem.split("-")[1]) for p in out.glob("checkpoint-*.ckpt")), default=0)


def wait_for(process, out, steps):
    end = time.monotonic() + 60
    while steps_done(out) < steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "no checkpoint within a minute"
        time.sleep(0.005)


def test_a_killed_run_goes_on_bit_for_bit(start, uninterrupted, tmp_path):
    out = tmp_path / "run"
    process = start("train", *LONG, "--checkpoint-steps", "3", "--out", str(out))
    wait_for(process, out, PER_EPOCH + 20)
    process.kill()
    assert process.wait() != 0
    assert PER_EPOCH < steps_done(out) < 2 * PER_EPOCH and not (out / "model.safetensors").exists()
    assert main(["train", "--resume", str(out), "--tensorboard", "false"]) == 0
    assert (out / "model.safetensors").read_bytes() == uninterrupted.read_bytes()
    assert len((out / "metrics.csv").read_text().splitlines()) == 1 + 2


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to a process")
def test_an_interrupted_run_says_how_to_go_on(start, uninterrupted, tmp_path, capsys):
    out = tmp_path / "run"
    process = start("train", *LONG, "--checkpoint-steps", "7", "--out", "run")
    wait_for(process, out, 14)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Go on with: torchdfa train --resume run" in errors and "Traceback" not in errors
    step = int(errors.partition("stopped after epoch 0, step ")[2].partition(".")[0])
    assert steps_done(out) == step
    assert main(["train", "--resume", str(out), "--tensorboard", "false"]) == 0
    assert (out / "model.safetensors").read_bytes() == uninterrupted.read_bytes()
    assert "epoch 2/2" in capsys.readouterr().out


def test_two_processes_learn_what_one_does(start, tmp_path, capsys):
    # 287 + 100 images: batches of 100, the last of 87, which two processes can't share evenly.
    options = [
        *NETWORK,
        "--model.dropout",
        "0",
        "--rule",
        "BDFA",
        "--train-size",
        "387",
        "--epochs",
        "3",
        "--augment",
        "true",
    ]
    options += ["--validation", "100", "--clip", "5", "--accelerator", "cpu"]
    process = start("train", *options, "--devices", "2", "--out", "two")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert main(["train", *options, "--out", str(tmp_path / "one")]) == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)
    # Only the first process writes and speaks.
    assert output.count("epoch 3/3") == output.count("written to") == 1
    assert (
        len(list((tmp_path / "two").glob("events.*"))) == 1 and (tmp_path / "two" / "checkpoint-00000009.ckpt").exists()
    )
    tables = [
        [line.split(",")[:9] for line in (tmp_path / n / "metrics.csv").read_text().splitlines()[1:]]
        for n in ("one", "two")
    ]
    for first, second in zip(*tables, strict=True):
        assert [float(v) for v in second] == pytest.approx([float(v) for v in first], rel=1e-4, nan_ok=True)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["train_size"] == 387


def test_two_processes_refuse_a_folder_without_waiting_for_each_other(start, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    process = start("train", *NETWORK, "--devices", "2", "--accelerator", "cpu", "--out", "run")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "holds a run already" in errors and "Traceback" not in errors
