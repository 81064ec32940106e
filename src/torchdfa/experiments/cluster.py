"""Runs on a cluster, by submitit: each cell is a job of Slurm's, or of a process here to try it out."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Literal

import torch

from torchdfa.data.sources import require
from torchdfa.experiments.results import Cell
from torchdfa.experiments.runner import Workers, run_one

Engine = Literal["local", "slurm", "submitit-local"]
_POLL_SECONDS = 1.0


class ClusterWorkers(Workers):
    """Hands cells to a cluster; to be used as a context, in place of Workers.

    The experiment's folder must be seen by all machines; a cell's lock and checkpoint lie in it, as ever, so that a job
    that was killed or requeued goes on where it was left.

    Args:
        jobs: How many jobs may wait or run at a time.
        accelerator: auto, cpu, cuda or mps.
        cluster: Of submitit: "slurm", or "local" for processes on this machine.
        options: Of a job, as submitit's ``update_parameters`` takes them: timeout_min, slurm_partition, cpus_per_task …
    """

    def __init__(self, jobs: int, accelerator: str, cluster: str, options: Mapping[str, Any]):
        super().__init__(jobs, accelerator)
        self._cluster, self._options = cluster, dict(options)
        self._waiting: dict[Future[str], Any] = {}
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._watcher: threading.Thread | None = None

    def submit(self, cell: Cell, folder: Path) -> Future[str]:
        """Make a job of a cell; the result says what went wrong, if anything did."""
        submitit = _submitit()
        # What submitit writes: the job's output, and cell and result as pickles, which only this user's jobs read.
        executor = submitit.AutoExecutor(folder=folder / "jobs" / "%j", cluster=self._cluster)
        options = {"timeout_min": 24 * 60, "cpus_per_task": 1, "name": f"torchdfa-{cell.key}", **self._options}
        executor.update_parameters(**options)
        job = executor.submit(run_one, cell, folder.absolute(), self.accelerator)
        future: Future[str] = Future()
        with self._lock:
            self._waiting[future] = job
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        return future

    def _watch(self) -> None:
        """Hand over the results of jobs as they end."""
        while not self._ended.is_set():
            with self._lock:
                under_way = list(self._waiting.items())
            for future, job in under_way:
                if not job.done():
                    continue
                with self._lock:
                    self._waiting.pop(future, None)  # stop() may have cleared it meanwhile
                try:
                    future.set_result(job.result())
                except Exception as error:
                    # The job ended without a result: killed, out of time or memory. It is tried again, as a worker is.
                    broken = BrokenProcessPool(f"job {job.job_id} ended without a result, see {job.paths.stderr}")
                    broken.__cause__ = error
                    future.set_exception(broken)
            self._ended.wait(_POLL_SECONDS)

    def stop(self) -> None:
        """Cancel the jobs that are left; what they have done is in their checkpoints."""
        self._ended.set()
        with self._lock:
            for job in self._waiting.values():
                job.cancel()
            self._waiting.clear()
        if self._watcher is not None:
            self._watcher.join()


def _submitit() -> Any:
    return require("submitit", "cluster", "to run experiments on a cluster")


def make_workers(jobs: int | None, accelerator: str, engine: Engine, options: Mapping[str, Any]) -> Workers:
    """Return who runs an experiment's cells.

    Args:
        jobs: Cells at a time; None: one a core here, or one where there is a GPU; 100 on a cluster.
        accelerator: auto, cpu, cuda or mps.
        engine: "local": processes of a pool on this machine. "slurm": jobs on a cluster, by submitit. "submitit-local":
            the same jobs as processes on this machine.
        options: Of a job.

    Raises:
        ImportError: submitit is not installed.
    """
    if engine == "local":
        return Workers(jobs or (1 if torch.cuda.is_available() else torch.get_num_threads()), accelerator)
    _submitit()
    return ClusterWorkers(jobs or 100, accelerator, engine.removeprefix("submitit-"), options)
