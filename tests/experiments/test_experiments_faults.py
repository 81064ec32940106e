"""An experiment that is killed at random moments has the same rows as one that is not."""

from concurrent.futures import Future
from dataclasses import replace

import pytest

from faults import can_fork, kill_often
from torchdfa.experiments import method, runner
from torchdfa.experiments.results import Cell, Results
from torchdfa.experiments.runner import run_cells
from torchdfa.models import MLP
from torchdfa.training import TrainConfig

pytestmark = [can_fork, pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")]

BASE = TrainConfig(
    train_size=200, epochs=3, batch_size=20, model=MLP(hidden=(32,), dropout=0.2), precision="32-true", alignment=1
)
CELLS = [
    Cell("e", name, "final", replace(BASE, rule=method(name, 0), seed=seed), angles=True)
    for name in ("BP", "BDFA")
    for seed in (0, 1)
]


class Here:
    """In place of Workers: runs cells in this process."""

    jobs = 1

    def submit(self, cell, folder):
        future = Future()
        future.set_result(runner._run(cell, folder, "cpu"))
        return future


def rows(folder):
    """Return all rows less their timings, comparable though NaN is in them."""
    runs = Results(folder / "results.csv").read()
    return {key: [repr(replace(row, step_seconds=0.0)) for row in run] for key, run in runs.items()}


def test_killed_at_random_moments(tmp_path):
    runner.dataset("digits", None)  # here, so that not every one of the processes loads it

    def make(i):
        return lambda: list(run_cells(CELLS, tmp_path / str(i), Here()))

    def check(i):
        found = rows(tmp_path / str(i))
        assert set(found) == {cell.key for cell in CELLS} and found == rows(tmp_path / "0")
        angles = [(tmp_path / str(k) / "angles.csv").read_text().splitlines() for k in (0, i)]
        assert sorted(angles[0]) == sorted(angles[1])
        assert not (tmp_path / str(i) / "failures.log").exists()
        assert not [p for p in (tmp_path / str(i) / "partial").iterdir() if p.is_dir()]

    kill_often(make, check)
