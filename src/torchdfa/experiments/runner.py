"""Run the cells of an experiment: each one once, on all cores, whatever is interrupted, killed or run twice."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from torchdfa.data import Corpus, Dataset, load_any
from torchdfa.experiments.layers import keep_angles
from torchdfa.experiments.results import Cell, Results, Row, rows_of
from torchdfa.training import DivergedError, EpochResult, Interrupted, fit, to_dict
from torchdfa.training.checkpoint import load_checkpoint
from torchdfa.training.material import precision_of

_POLL_SECONDS = 1.0
_DEATHS = 2
# What a worker says of a cell that another process works on.
_ELSEWHERE = "elsewhere"


class CellError(RuntimeError):
    """A cell could not be run; the message says which and why."""


class Workers:
    """Processes that run cells, each with its share of the threads that torch uses here; to be used as a context.

    Args:
        jobs: How many.
        accelerator: auto, cpu, cuda or mps.
    """

    def __init__(self, jobs: int, accelerator: str = "cpu"):
        self.jobs, self.accelerator = jobs, accelerator
        # torch heeds OMP_NUM_THREADS and the cores that this process may use. Threads beyond them wait for one another
        # in turn, and a run takes many times as long.
        self.threads = max(1, torch.get_num_threads() // jobs)
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, cell: Cell, folder: Path) -> Future[str]:
        """Have a worker run a cell; the result says what went wrong, if anything did."""
        try:
            return self._started().submit(_work, cell, folder, self.accelerator)
        except BrokenProcessPool:
            # A worker died (killed, out of memory), which ended the others too: all are replaced.
            self.stop()
            return self._started().submit(_work, cell, folder, self.accelerator)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Workers are started afresh: a forked copy of a process with torch's threads may hang.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.jobs, context, _start_worker, (self.threads,))
        return self._pool

    def stop(self) -> None:
        """End the workers, once they are done with what they have begun; new ones start when needed."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def run_cells(cells: Sequence[Cell], folder: Path, workers: Workers) -> Iterator[tuple[Cell, list[Row]]]:
    """Run cells and yield the rows of each as it is done, those of finished cells first.

    Rows go into ``folder/results.csv``. A cell that another process works on is left to it, and its rows are waited
    for. One that was interrupted goes on from its last epoch. One that crashes is written to ``folder/failures.log``
    and does not end the others; it is tried again the next time.

    Args:
        cells: To run.
        folder: Of the experiment.
        workers: Who runs them.

    Raises:
        CellError: After all others are done: some cells crashed.
    """
    results = Results(folder / "results.csv")
    waiting = {cell.key: cell for cell in cells}
    running: dict[Future[str], str] = {}
    deaths: dict[str, int] = {}
    failed: dict[str, str] = {}
    while True:
        finished = results.read()
        for key in [k for k in waiting if k in finished]:
            failed.pop(key, None)  # another process has managed it
            _clear(folder, key)
            yield waiting.pop(key), finished[key]
        idle = [k for k in waiting if k not in failed and k not in running.values()]
        if not idle and not running:
            break
        # A worker's death ends all that were running, and does not tell whose fault it was: a cell's last attempt is
        # made when no other is running.
        many = [k for k in idle if deaths.get(k, 0) < _DEATHS]
        alone = idle[:1] if not many and not running else []
        # No more than there are workers: then a cell that is left to another process is asked for again last.
        for key in many[: workers.jobs - len(running)] or alone:
            running[workers.submit(waiting[key], folder)] = key
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            key = running.pop(future)
            try:
                problem = future.result()
            except BrokenProcessPool:
                deaths[key] = deaths.get(key, 0) + 1
                problem = f"its process died {deaths[key]} times" if deaths[key] > _DEATHS else ""
            if problem == _ELSEWHERE:
                waiting[key] = waiting.pop(key)
                time.sleep(_POLL_SECONDS)
            elif problem:
                failed[key] = problem
    if failed:
        whose: dict[str, list[str]] = {}
        for key, problem in failed.items():
            whose.setdefault(problem, []).append(f"{waiting[key].method}, rate {waiting[key].config.lr:g}")
        what = [f"{_few(names)}: {problem}" for problem, names in whose.items()]
        raise CellError(f"{len(failed)} runs crashed ({'; '.join(what)}). See {folder / 'failures.log'}.")


def _few(names: Sequence[str]) -> str:
    """Return some of the names: a cause that all runs share is said once."""
    return "; ".join(names) if len(names) <= 3 else f"{names[0]}; {names[1]}; {len(names) - 2} more"


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    # A line a run on the precision in use would drown the progress bar.
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the process that started it is gone, however that ended: nobody waits for its result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@lru_cache(maxsize=1)
def dataset(name: str, root: str | None) -> Dataset | Corpus:
    """Load a data set once a process."""
    return load_any(name, root)


def run_one(cell: Cell, folder: Path, accelerator: str) -> str:
    """Run one cell in a job of its own."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1))
    return _run(cell, folder, accelerator)


def _work(cell: Cell, folder: Path, accelerator: str) -> str:
    """Run one cell, as a worker."""
    try:
        return _run(cell, folder, accelerator)
    except Interrupted:
        # A signal ends this worker; its checkpoint is written. Passed on, this would stop the parent as Ctrl-C does.
        os._exit(1)


def _run(cell: Cell, folder: Path, accelerator: str) -> str:
    """Run one cell and keep its rows; return what went wrong, if anything did."""
    results = Results(folder / "results.csv")
    partial = folder / "partial" / cell.key
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{partial}.lock", timeout=0):
            if cell.key in results.read():
                return ""
            partial.mkdir(exist_ok=True)  # at once: locks are tidied away only where no run has a folder
            problem = ""
            try:
                rows = _rows(cell, partial, accelerator)
                if cell.angles:
                    keep_angles(cell, partial)
                results.add(rows)
            except Exception as error:
                # One broken cell is recorded and must not end the others.
                problem = f"{type(error).__name__}: {error}"
                # A full disk is not the cell's fault: its checkpoint is whole, and it goes on from there.
                keep = isinstance(error, OSError)
                with suppress(OSError):
                    _log(folder, cell)
                if keep:
                    return problem
            shutil.rmtree(partial, ignore_errors=True)
            return problem
    except Timeout:
        return _ELSEWHERE


def _clear(folder: Path, key: str) -> None:
    """Remove what a finished cell has left, whose process was killed before it did."""
    partial = folder / "partial" / key
    if partial.is_dir():
        with suppress(Timeout), FileLock(f"{partial}.lock", timeout=0):
            shutil.rmtree(partial, ignore_errors=True)


def _log(folder: Path, cell: Cell) -> None:
    with FileLock(folder / ".failures.lock"), open(folder / "failures.log", "a", encoding="utf-8") as log:
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {cell}\n{traceback.format_exc()}\n")


def _rows(cell: Cell, partial: Path, accelerator: str) -> list[Row]:
    """Train as a cell says, from where it was left if it was, and return its rows."""
    config, problem = cell.config, ""
    data = dataset(config.data, config.data_root)
    resume = (partial / "config.json").exists()
    try:
        options = {"resume": resume, "keep": 1, "progress": False, "dataset": data, "accelerator": accelerator}
        history = fit(config, partial, **options).history
    except DivergedError as error:
        # It is a result, with the epochs before it.
        state = load_checkpoint(partial, to_dict(config))
        problem, history = str(error), [EpochResult(**epoch) for epoch in state["history"]] if state else []
    return rows_of(cell, history, problem, config.train_size or len(data.train), precision_of(config, data))
