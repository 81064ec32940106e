import errno
import math
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from filelock import FileLock

import torchdfa
from torchdfa.experiments import CellError, method
from torchdfa.experiments import runner as module
from torchdfa.experiments.cluster import make_workers
from torchdfa.experiments.results import Cell, Results, rows_of, score
from torchdfa.experiments.runner import Workers, run_cells
from torchdfa.models import MLP, SmallConv
from torchdfa.training import Interrupted, TrainConfig, fit

BASE = TrainConfig(
    train_size=200, epochs=1, batch_size=50, model=MLP(hidden=(16,)), precision="32-true", lr=0.01, validation=0
)
CRASH = {"model": MLP(hidden=(2**40,))}  # more than there is memory
DIVERGE = {"lr": 1e30, "schedule": "constant"}
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows ends a process by any signal


@dataclass(frozen=True, kw_only=True)
class Logged(MLP):
    """A network that writes a line into a file whenever it is built: once a run, and once a resumed run."""

    log: str

    def build(self, shape, classes):
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()}\n")
        return super().build(shape, classes)


@dataclass(frozen=True, kw_only=True)
class Deadly(Logged):
    """A network that kills the process that builds it."""

    def build(self, shape, classes):
        super().build(shape, classes)
        os.kill(os.getpid(), KILL)


def cell(phase="final", name="BP", **settings):
    return Cell("e", name, phase, replace(BASE, rule=method(name, 0), **settings))


def plain(rows):
    """Return rows less their timings, comparable though NaN is in them."""
    return [repr(replace(row, step_seconds=0.0)) for row in rows]


def wait_until(holds, seconds=60.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not so within {seconds} s"
        time.sleep(0.02)


class Here:
    """In place of Workers: runs cells in this process and notes them; ``before`` is called before each."""

    def __init__(self, jobs=1):
        self.jobs, self.ran, self.before = jobs, [], lambda one: None

    def submit(self, one, folder):
        future = Future()
        self.ran.append(one)
        try:
            self.before(one)
            future.set_result(module._run(one, folder, "cpu"))
        except BrokenProcessPool as error:
            future.set_exception(error)
        return future


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    return Here()


@pytest.fixture(scope="module")
def workers():
    """Two real processes, which all tests share: a start takes seconds."""
    with Workers(2) as shared:
        list(shared._started().map(time.sleep, (1, 1)))  # a pool starts a process when it first has no idle one
        yield shared


def test_workers_share_the_threads_that_torch_uses_here(monkeypatch, workers):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert [Workers(jobs).threads for jobs in (1, 2, 5, 6)] == [5, 2, 1, 1]
    assert make_workers(None, "cpu", "local", {}).jobs == (1 if torch.cuda.is_available() else 5)
    monkeypatch.undo()
    assert workers._started().submit(torch.get_num_threads).result() == workers.threads


def logged(tmp_path, name="log", **settings):
    """Return a cell and a function that tells in which processes its network was built."""
    log = tmp_path / f"{name}.log"
    one = cell(model=Logged(hidden=(16,), log=str(log)), **settings)
    return one, lambda: [int(line) for line in log.read_text().split()] if log.exists() else []


def interrupt(one, folder, epochs=1):
    """Leave a run as one that was killed after some epochs."""

    def stop(result):
        if result.epoch > epochs:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(one.config, folder / "partial" / one.key, progress=False, accelerator="cpu", on_epoch=stop)


def test_finished_cells_are_not_run_again(here, tmp_path):
    first, second = cell(epochs=2), cell(lr=0.02)
    ((done, rows),) = run_cells([first], tmp_path, here)
    assert here.ran == [first] == [done] and [(r.epoch, r.problem) for r in rows] == [(1, ""), (2, "")]
    assert (rows[0].experiment, rows[0].train_size, rows[0].key) == ("e", 200, first.key)
    again = list(run_cells([second, first], tmp_path, here))
    assert here.ran == [first, second]
    # What is there comes first, and is what was computed.
    assert [one for one, _ in again] == [first, second]
    assert repr(again[0][1]) == repr(rows)
    assert set(Results(tmp_path / "results.csv").read()) == {first.key, second.key}
    assert not any((tmp_path / "partial" / c.key).exists() for c in (first, second))
    assert not (tmp_path / "failures.log").exists()


def test_what_a_finished_cell_left_is_removed(here, tmp_path):
    one, other = cell(), cell(lr=0.02)
    list(run_cells([one, other], tmp_path, here))
    for c in (one, other):  # as where its process is killed between its rows and the end
        (tmp_path / "partial" / c.key).mkdir()
    with FileLock(tmp_path / "partial" / f"{other.key}.lock"):
        list(run_cells([one, other], tmp_path, here))
    assert [(tmp_path / "partial" / c.key).exists() for c in (one, other)] == [False, True]


def test_equal_cells_are_run_once(here, tmp_path):
    assert len(list(run_cells([cell(), cell()], tmp_path, here))) == len(here.ran) == 1


def test_all_training_images_are_counted(here, tmp_path):
    ((_, rows),) = run_cells([cell(train_size=None, batch_size=500)], tmp_path, here)
    assert rows[0].train_size == 1437


@pytest.mark.parametrize("fast, expected", [(True, "bf16-mixed"), (False, "32-true")])
def test_what_a_run_was_computed_in_is_kept(here, tmp_path, monkeypatch, fast, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ((_, rows),) = run_cells([cell(model=SmallConv(), precision="auto")], tmp_path, here)
    assert {row.precision for row in rows} == {expected}


def test_divergence_is_kept_as_a_result(here, tmp_path):
    bad = cell(epochs=2, **DIVERGE)
    for _ in range(2):
        ((_, rows),) = run_cells([bad], tmp_path, here)
        assert [(r.epoch, r.epochs) for r in rows] == [(0, 2)]
        assert "training has diverged" in rows[-1].problem and score(rows) == -math.inf
    assert here.ran == [bad]
    assert not (tmp_path / "failures.log").exists() and not (tmp_path / "partial" / bad.key).exists()


@pytest.mark.parametrize("interrupted", [False, True])
def test_epochs_before_divergence_are_kept(here, tmp_path, monkeypatch, interrupted):
    from torchdfa.training import run as run_module

    one = cell(epochs=4)
    whole = fit(one.config, progress=False, accelerator="cpu").history
    if interrupted:
        interrupt(one, tmp_path)
    step = run_module.Run._step
    late = {"loss": math.nan}

    def diverge(self, x, y, size):
        loss, correct = step(self, x, y, size)
        return (late["loss"] if self.place.epoch == 2 else loss), correct

    monkeypatch.setattr(run_module.Run, "_step", diverge)
    ((_, rows),) = run_cells([one], tmp_path, here)
    assert all("in epoch 3" in r.problem for r in rows) and score(rows) == -math.inf
    assert plain(rows) == plain(Results(tmp_path / "results.csv").read()[one.key])
    assert [(r.epoch, f"{r.test_top1:.6g}") for r in rows] == [(h.epoch, f"{h.test_top1:.6g}") for h in whole[:2]]


def test_a_run_that_cannot_begin_is_a_crash_not_a_result(here, tmp_path):
    frozen = cell(head_lr=0.0)
    with pytest.raises(CellError, match="TrainingError: no parameter learns"):
        list(run_cells([frozen], tmp_path, here))
    assert Results(tmp_path / "results.csv").read() == {}


def test_what_all_crashed_of_is_said_once(here, tmp_path):
    crashes = [cell(lr=lr, **CRASH) for lr in (0.1, 0.2, 0.3, 0.4)]
    expected = r"^4 runs crashed \(BP, rate 0\.1; BP, rate 0\.2; 2 more: RuntimeError: [^;]*\)\. See"
    with pytest.raises(CellError, match=expected):
        list(run_cells(crashes, tmp_path, here))


def test_a_crash_is_told_after_the_others_are_done_and_tried_again(here, tmp_path, monkeypatch):
    crash, good = cell(lr=0.5, **CRASH), [cell(), cell(lr=0.02)]
    done = []
    with pytest.raises(CellError, match=r"^1 runs crashed \(BP, rate 0\.5: RuntimeError: .*failures\.log\.$"):
        done.extend(one for one, _ in run_cells([crash, *good], tmp_path, here))
    assert done == good and here.ran == [crash, *good]
    log = (tmp_path / "failures.log").read_text()
    assert log.count("Traceback (most recent call last)") == 1 and repr(crash) in log and "RuntimeError: " in log
    # A crash is no result, and leaves nothing that would make the next attempt crash.
    assert set(Results(tmp_path / "results.csv").read()) == {c.key for c in good}
    assert not (tmp_path / "partial" / crash.key).exists()
    with pytest.raises(CellError):
        list(run_cells([crash, *good], tmp_path, here))
    assert here.ran == [crash, *good, crash] and (tmp_path / "failures.log").read_text().count("Traceback") == 2

    def fit_again(config, *arguments, **options):
        return fit(replace(config, model=MLP(hidden=(16,))), *arguments, **options)

    monkeypatch.setattr(module, "fit", fit_again)
    assert [one for one, _ in run_cells([crash, *good], tmp_path, here)] == [*good, crash]


def test_an_unreadable_partial_run_is_a_crash_once(here, tmp_path):
    one = cell(epochs=2)
    interrupt(one, tmp_path)
    (checkpoint,) = (tmp_path / "partial" / one.key).glob("*.ckpt")
    checkpoint.write_bytes(b"damaged")
    with pytest.raises(CellError, match="CheckpointError"):
        list(run_cells([one], tmp_path, here))
    assert len(list(run_cells([one], tmp_path, here))) == 1


def test_a_wrong_results_file_is_refused_before_anything_runs(here, tmp_path):
    (tmp_path / "results.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"results\.csv has the columns"):
        list(run_cells([cell()], tmp_path, here))
    assert here.ran == []


@pytest.mark.parametrize("epochs", [1, 2])
def test_an_interrupted_cell_goes_on(here, tmp_path, monkeypatch, epochs):
    one = cell(epochs=4, model=MLP(hidden=(16,), dropout=0.3), augment=True, validation=20, data_root="/here", lr=0.05)
    ((_, whole),) = run_cells([one], tmp_path / "whole", here)
    folder = tmp_path / "parts"
    interrupt(one, folder, epochs)
    seen = []
    monkeypatch.setattr(module, "fit", lambda *a, **k: fit(*a, **k, on_epoch=lambda r: seen.append(r.epoch)))
    # The place of the data does not matter.
    ((_, rows),) = run_cells([replace(one, config=replace(one.config, data_root="/there"))], folder, here)
    assert seen == list(range(epochs + 1, 5))
    assert plain(rows) == plain(whole) and len(rows) == 4
    assert not (folder / "partial" / one.key).exists()


def test_a_run_killed_before_its_first_epoch_starts_anew(here, tmp_path):
    one = cell(epochs=2)
    ((_, whole),) = run_cells([one], tmp_path / "whole", here)
    interrupt(one, tmp_path, epochs=0)
    assert [p.name for p in (tmp_path / "partial" / one.key).glob("*.ckpt")] == []
    ((_, rows),) = run_cells([one], tmp_path, here)
    assert plain(rows) == plain(whole)


@pytest.mark.parametrize("finishes", [True, False])
def test_a_cell_of_another_process_is_left_to_it(here, tmp_path, finishes):
    (tmp_path / "partial").mkdir()
    taken, own = cell(), cell(lr=0.02)
    lock = FileLock(tmp_path / "partial" / f"{taken.key}.lock")
    lock.acquire()
    made_up = replace(rows_of(taken, [], "", 200)[0], epoch=1, test_top1=12.5)

    def third_time(one):
        if here.ran.count(taken) == 3:
            if finishes:
                Results(tmp_path / "results.csv").add([made_up])
            lock.release()

    here.before = third_time
    done = dict(run_cells([taken, own], tmp_path, here))
    assert list(done) == [own, taken] and here.ran == [taken, own, taken, taken]
    # Rows of the other process are taken; where it ended without any, the cell is run here.
    assert (done[taken][0].test_top1 == 12.5) == finishes


def test_what_crashed_here_and_another_process_managed_is_no_failure(here, tmp_path):
    crash, last = cell(**CRASH), cell()

    def other(one):
        if one == last:
            Results(tmp_path / "results.csv").add([replace(rows_of(crash, [], "", 200)[0], epoch=1)])

    here.before = other
    assert [one for one, _ in run_cells([crash, last], tmp_path, here)] == [crash, last]


def test_methods_of_a_seed_start_alike(here, tmp_path):
    # With one batch the first epoch's loss is that of the initial weights on the first batch.
    names = ("BP", "Conv-only", "CDFA random", "CDFA (7)", "CBDFA (9)", "FA", "BDFA")
    settings = {"batch_size": 200, "model": SmallConv(channels=(4,), head=(8, 8)), "augment": True}
    at_once = [r[0].train_loss for _, r in run_cells([cell(name=n, **settings) for n in names], tmp_path, here)]
    assert len(at_once) == len(names) and len(set(at_once)) == 1
    ((_, other),) = run_cells([cell(seed=1, **settings)], tmp_path, here)
    assert other[0].train_loss != at_once[0]


def test_deaths_are_counted_and_the_last_attempt_is_made_alone(tmp_path, monkeypatch):
    """A pool of three that breaks, as the real one does, when it has the deadly cell."""
    deadly, *good = cells = [cell(lr=lr) for lr in (0.01, 0.02, 0.03)]
    begun = []

    class Pool(Here):
        def submit(self, one, folder):
            begun.append(one)
            return self.futures.setdefault(one, Future())

        futures: dict = {}  # noqa: RUF012

    pool, wait = Pool(3), module.wait

    def break_or_run(running, **options):
        under_way = dict(pool.futures)
        for one, future in under_way.items():
            if deadly in under_way:
                future.set_exception(BrokenProcessPool())
            else:
                future.set_result(module._run(one, tmp_path, "cpu"))
        pool.futures.clear()
        return wait(running, **options)

    monkeypatch.setattr(module, "wait", break_or_run)
    done = []
    with pytest.raises(CellError, match=r"^1 runs crashed \(BP, rate 0\.01: its process died 3 times\)"):
        done.extend(one for one, _ in run_cells(cells, tmp_path, pool))
    assert begun == [*cells, *cells, deadly, *good] and done == good


def test_two_processes_run_the_rest_beside_a_crash(workers, tmp_path):
    crash, bad, good = cell(**CRASH), cell(**DIVERGE), [cell(lr=lr) for lr in (0.01, 0.02, 0.03)]
    done = {}
    with pytest.raises(CellError, match="1 runs crashed"):
        done.update(run_cells([good[0], crash, bad, *good[1:]], tmp_path, workers))
    assert set(done) == {bad, *good} and "diverged" in done[bad][0].problem
    assert all(rows[-1].problem == "" and score(rows) > 0 for c, rows in done.items() if c != bad)
    assert "Traceback" in (tmp_path / "failures.log").read_text()


OTHER = """
import sys
from pathlib import Path
from test_experiments_runner import *
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with Workers(1) as workers:
        for settings in eval(sys.argv[2]):
            done = list(run_cells([logged(folder, **s)[0] for s in settings], folder, workers))
            print(len(done), flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """Start another process that runs cells with one worker; it does not outlive the test."""
    started = []

    def begin(settings):
        # A worker reads its parent's main module anew.
        (tmp_path / "other.py").write_text(OTHER)
        # This checkout, whichever one is installed.
        path = [str(Path(__file__).parent), str(Path(torchdfa.__file__).parents[1])]
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "other.py"), str(tmp_path), repr(settings)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def steps_done(one, folder):
    found = (folder / "partial" / one.key).glob("checkpoint-*.ckpt")
    return max((int(path.stem.partition("-")[2]) for path in found), default=0)


def test_two_processes_on_one_folder_and_none_after_a_kill(workers, start, tmp_path):
    """Both run each cell once in total; then one of them, killed in the middle of a cell, leaves no worker."""
    # About a third of a second each, so that both have a share.
    settings = [{"name": f"{i}", "seed": i, "epochs": 40} for i in range(8)]
    more = {"name": "more", "epochs": 400, "batch_size": 5}
    other = start([settings, [more]])
    cells, built = zip(*(logged(tmp_path, **s) for s in settings), strict=True)
    list(run_cells([cell()], tmp_path / "warm", workers))
    wait_until(lambda: built[0]() or other.poll() is not None)
    done = dict(run_cells(cells, tmp_path, workers))
    assert other.stdout.readline() == "8\n"
    assert set(done) == set(cells) and all(len(rows) == 40 for rows in done.values())
    assert [len(pids()) for pids in built] == [1] * 8
    assert len({pid for pids in built for pid in pids()}) >= 2
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + 8 * 40

    one, pids = logged(tmp_path, **more)
    wait_until(lambda: steps_done(one, tmp_path) or other.poll() is not None)
    family = psutil.Process(other.pid).children(recursive=True)
    assert pids()[0] in [p.pid for p in family]
    other.kill()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == [] and one.key not in Results(tmp_path / "results.csv").read()


def test_a_killed_worker_is_replaced(workers, tmp_path, monkeypatch):
    """Two workers are in the middle of a cell; one is killed, the other is then ended by the pool with a signal."""
    cells, built = zip(*(logged(tmp_path, f"{i}", seed=i, epochs=100, batch_size=10) for i in range(2)), strict=True)
    whole = {c: fit(c.config, progress=False, accelerator="cpu").history for c in cells}
    wait, killed = module.wait, []

    def kill_once(running, **options):
        if not killed:
            wait_until(lambda: all(len(pids()) == 2 for pids in built))
            wait_until(lambda: all(steps_done(c, tmp_path) for c in cells))
            killed.append(built[0]()[-1])
            os.kill(killed[0], KILL)
        return wait(running, **options)

    monkeypatch.setattr(module, "wait", kill_once)
    done = dict(run_cells(cells, tmp_path, workers))
    for one in cells:
        assert [f"{r.test_top1:.6g}" for r in done[one]] == [f"{h.test_top1:.6g}" for h in whole[one]]
        assert not (tmp_path / "partial" / one.key).exists()
    assert [len(pids()) for pids in built] == [3, 3] and not psutil.pid_exists(killed[0])
    assert not (tmp_path / "failures.log").exists()


def test_a_signal_to_a_worker_ends_it_alone(monkeypatch, tmp_path):
    def interrupted(one, folder, accelerator):
        raise Interrupted("stopped")

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(module, "_run", interrupted)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit, match="1"):
        module._work(cell(), tmp_path, "cpu")


def test_workers_of_which_one_died_between_cells_are_replaced(monkeypatch, tmp_path):
    pools = []

    class Pool:
        def __init__(self, *arguments):
            pools.append(self)
            self.submitted, self.ended = [], False

        def submit(self, *arguments):
            if len(pools) == 1 and self.submitted:
                raise BrokenProcessPool
            self.submitted.append(arguments)
            return Future()

        def shutdown(self, **options):
            self.ended = True

    monkeypatch.setattr(module, "ProcessPoolExecutor", Pool)
    with Workers(2) as workers:
        for _ in range(3):
            workers.submit(cell(), tmp_path)
        assert [(len(p.submitted), p.ended) for p in pools] == [(1, True), (2, False)]
    assert pools[1].ended


def test_a_deadly_cell_ends_as_an_error(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_DEATHS", 1)
    log = tmp_path / "log"
    deadly, good = cell(model=Deadly(hidden=(16,), log=str(log)), lr=0.5), cell()
    done = []
    with pytest.raises(CellError, match=r"^1 runs crashed \(BP, rate 0\.5: its process died 2 times\)"):
        done.extend(one for one, _ in run_cells([deadly, good], tmp_path, workers))
    assert done == [good] and len(log.read_text().split()) == 2


def test_a_full_disk_keeps_what_a_cell_has_done(here, tmp_path, monkeypatch):
    """The disk is full when the second epoch's checkpoint is written; then there is room again."""
    from torchdfa.training import loop

    one = cell(epochs=3)
    ((_, whole),) = run_cells([one], tmp_path / "whole", here)
    save, written = loop.save_checkpoint, []

    def fill(folder, number, *rest):
        if written:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        written.append(save(folder, number, *rest))

    monkeypatch.setattr(loop, "save_checkpoint", fill)
    with pytest.raises(CellError, match="No space left"):
        list(run_cells([one], tmp_path, here))
    assert written[0].exists() and "No space left" in (tmp_path / "failures.log").read_text()
    monkeypatch.setattr(loop, "save_checkpoint", save)
    seen = []
    monkeypatch.setattr(module, "fit", lambda *a, **k: fit(*a, **k, on_epoch=lambda r: seen.append(r.epoch)))
    ((_, rows),) = run_cells([one], tmp_path, here)
    assert seen == [2, 3] and plain(rows) == plain(whole)
    assert not (tmp_path / "partial" / one.key).exists()


def test_a_job_that_ends_while_the_rest_are_cancelled(tmp_path, monkeypatch):
    from torchdfa.experiments import cluster

    asked, cancelled = threading.Event(), threading.Event()

    class Job:
        def done(self):
            asked.set()
            return cancelled.wait(30)

        def cancel(self):
            cancelled.set()

        def result(self):
            return ""

    class Executor:
        def __init__(self, folder, cluster):
            pass

        def update_parameters(self, **options):
            pass

        def submit(self, *arguments):
            return Job()

    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=Executor))
    crew = cluster.ClusterWorkers(1, "cpu", "local", {})
    future = crew.submit(cell(), tmp_path)
    assert asked.wait(30)
    crew.stop()
    assert future.result(timeout=0) == "" and not crew._watcher.is_alive()


def test_a_missing_submitit_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    expected = r'submitit is needed to run experiments on a cluster: pip install "torchdfa\[cluster\]"'
    with pytest.raises(ImportError, match=expected):
        make_workers(1, "cpu", "slurm", {})


@pytest.mark.parametrize("dies", [False, True])
def test_cells_as_jobs_of_a_cluster(tmp_path, monkeypatch, dies):
    """submitit's own local cluster: processes, with its pickles and its folders."""
    pytest.importorskip("submitit")
    from torchdfa.experiments import cluster

    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(module, "_DEATHS", 0)
    with make_workers(2, "cpu", "submitit-local", {"timeout_min": 5}) as crew:
        if dies:
            one = cell(model=Deadly(hidden=(16,), log=str(tmp_path / "log")))
            with pytest.raises(CellError, match="its process died 1 times"):
                list(run_cells([one], tmp_path, crew))
            return
        cells = [cell(), cell(lr=0.02)]
        done = dict(run_cells(cells, tmp_path, crew))
    assert set(done) == set(cells) == {c for c in cells if c.key in Results(tmp_path / "results.csv").read()}
    for one in cells:
        assert [f"{r.test_top1:.6g}" for r in done[one]] == [
            f"{h.test_top1:.6g}" for h in fit(one.config, progress=False, accelerator="cpu").history
        ]
    assert list((tmp_path / "jobs").iterdir())
