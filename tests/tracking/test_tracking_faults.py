"""A comparison of trackers that is killed at random moments has the same boxes as one that is not."""

import pytest
from scenes import SMALL

from faults import can_fork, kill_often
from torchdfa.tracking import TrackerConfig, bench
from torchdfa.tracking.bench import Bench, BenchConfig

pytestmark = [can_fork, pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")]


def test_killed_at_random_moments(otb, trunk, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "load_trunk", lambda *_: trunk)
    config = BenchConfig(methods=("BP 64", "BDFA 64"), seeds=1, tracker=TrackerConfig(**SMALL), data_root=str(otb))

    def boxes(i):
        folder = tmp_path / "runs" / str(i)
        paths = [p for p in folder.rglob("*.txt") if not p.name.endswith("_times.txt")]
        return {str(p.relative_to(folder)): p.read_text() for p in paths}

    def check(i):
        assert len(boxes(0)) == 4 and boxes(i) == boxes(0)
        assert len(Bench(config, tmp_path / "runs" / str(i)).runs()) == 4

    kill_often(lambda i: lambda: Bench(config, tmp_path / "runs" / str(i)).run(), check)
