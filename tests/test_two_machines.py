"""Two machines, which are network namespaces here, under torchrun: one process is killed, the job starts again.

It takes a minute and root: the long form, TORCHDFA_FAULTS=50, runs it.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

import torchdfa
from torchdfa.training.checkpoint import list_checkpoints

pytestmark = [
    pytest.mark.skipif("TORCHDFA_FAULTS" not in os.environ, reason="the long form: TORCHDFA_FAULTS=50"),
    pytest.mark.skipif(not shutil.which("ip") or os.geteuid() != 0, reason="needs root and iproute2"),
]

OPTIONS = ["--model", "MLP", "--model.hidden", "[256, 256]", "--model.dropout", "0.3", "--rule", "DFA", "--lr", "0.01"]
OPTIONS += ["--precision", "32-true", "--epochs", "3", "--batch-size", "100", "--accelerator", "cpu"]
OPTIONS += ["--tensorboard", "false", "--checkpoint-steps", "5", "--train-size", "1000"]


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def machines():
    """Two network namespaces with a cable between them."""
    names = [f"dfa{os.getpid()}{letter}" for letter in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "name", "cable1", "netns", names[1])
        for number, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"cable{number}")
            for link in (f"cable{number}", "lo"):
                ip("-n", name, "link", "set", link, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def start(machines, number, out, log):
    command = ["ip", "netns", "exec", machines[number], sys.executable, "-m", "torch.distributed.run"]
    command += ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "10.77.0.1:29400", "--rdzv-id", "job"]
    command += ["--rdzv-conf", f"is_host={int(number == 0)}"]
    command += ["--local-addr", f"10.77.0.{number + 1}", "--monitor-interval", "0.2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"cable{number}"}
    environment["PYTHONPATH"] = os.path.dirname(os.path.dirname(torchdfa.__file__))
    with open(log, "w") as file:
        return subprocess.Popen(
            [*command, "-m", "torchdfa", "train", *OPTIONS, "--out", str(out)],
            env=environment,
            stdout=file,
            stderr=file,
        )


def bytes_sent(machine, number):
    path = f"/sys/class/net/cable{number}/statistics/tx_bytes"
    return int(subprocess.run(["ip", "netns", "exec", machine, "cat", path], capture_output=True, check=True).stdout)


def worker_of(agent):
    """Return the number of the process that an agent has started, by way of ip."""
    import psutil

    for process in psutil.Process(agent.pid).children(recursive=True):
        if "torchdfa" in process.cmdline() and "torch.distributed.run" not in process.cmdline():
            return process.pid
    raise AssertionError("no worker")


def train(machines, folder, kill_after=None):
    """Train on both machines; kill the second one's process once so many steps are in a checkpoint."""
    folder.mkdir()
    before = bytes_sent(machines[0], 0)
    agents = [start(machines, number, folder / "run", folder / f"{number}.log") for number in range(2)]
    try:
        end, killed = time.monotonic() + 400, None
        while any(agent.poll() is None for agent in agents):
            assert time.monotonic() < end, (folder / "0.log").read_text()[-3000:]
            steps = [int(p.stem.partition("-")[2]) for p in list_checkpoints(folder / "run")]
            if kill_after is not None and killed is None and steps and max(steps) >= kill_after:
                killed = max(steps)
                os.kill(worker_of(agents[1]), signal.SIGKILL)
            time.sleep(0.02)
    finally:
        for agent in agents:
            agent.terminate()
    logs = [(folder / f"{number}.log").read_text() for number in range(2)]
    assert [agent.returncode for agent in agents] == [0, 0], logs
    return logs, bytes_sent(machines[0], 0) - before, killed


def test_a_job_on_two_machines_outlives_a_process(machines, tmp_path):
    _, sent, _ = train(machines, tmp_path / "whole")
    logs, _, killed = train(machines, tmp_path / "killed", kill_after=12)
    assert killed is not None and "exitcode: -9" in logs[1]
    runs = [(tmp_path / name / "run" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert runs[0] == runs[1]
    assert sum(log.count("written to") for log in logs) == 1  # the first process alone speaks
    # Weights and biases of four bytes, in 30 steps; in a ring of two each sends as much.
    gradients = 30 * 4 * (64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10)
    print(f"sent {sent:,} bytes, {sent / gradients:.3f} x the gradients; killed at {killed}")
    assert 0.9 < sent / gradients < 1.5
