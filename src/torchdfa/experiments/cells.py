"""Runs of an experiment, each one a cell that is done once: its result is kept in a file named by its settings."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torchdfa.data import Dataset, load
from torchdfa.training import EpochResult, TrainConfig, TrainingError, fit, to_dict
from torchdfa.training.checkpoint import write_atomically


@dataclass(frozen=True)
class Cell:
    """One run of an experiment.

    Attributes:
        method: Its name in tables.
        phase: "search" for a learning rate, scored on held-out training images; "final", scored on the test images.
        config: All that its result depends on.
    """

    method: str
    phase: str
    config: TrainConfig

    @property
    def key(self) -> str:
        """Name of the cell's result: a hash of its settings, less the place of the data."""
        settings = {k: v for k, v in to_dict(self.config).items() if k != "data_root"}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
        cell: The cell.
        history: Its epochs; of a run that diverged, those before.
        problem: Why it ended early; empty if it did not.
    """

    cell: Cell
    history: tuple[EpochResult, ...]
    problem: str = ""

    @property
    def score(self) -> float:
        """Last accuracy on the held-out images (search) or the test images (final); minus infinity if it diverged."""
        if self.problem or not self.history:
            return -math.inf
        last = self.history[-1]
        return last.val_top1 if self.cell.phase == "search" else last.test_top1


def run_cells(cells: Sequence[Cell], folder: Path, jobs: int) -> Iterator[Outcome]:
    """Run cells in ``jobs`` processes of one thread each; yield outcomes as they come, those of finished cells first.

    Args:
        cells: To run.
        folder: Where results are kept, a file a cell.
        jobs: Processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting: list[Cell] = []
    for cell in cells:
        kept = _read(folder, cell)
        if kept is None:
            waiting.append(cell)
        else:
            yield kept
    if not waiting:
        return
    # Workers are started afresh: a forked copy of a process with torch's threads may hang.
    pool = ProcessPoolExecutor(min(jobs, len(waiting)), multiprocessing.get_context("spawn"), _start_worker)
    try:
        pending: set[Future[Outcome]] = {pool.submit(_run, cell, folder) for cell in waiting}
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the process that started it is gone, however that ended: nobody waits for its result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@lru_cache(maxsize=1)
def _dataset(name: str, root: str | None) -> Dataset:
    return load(name, root)


def _run(cell: Cell, folder: Path) -> Outcome:
    history: list[EpochResult] = []
    problem = ""
    try:
        data = _dataset(cell.config.data, cell.config.data_root)
        fit(cell.config, progress=False, dataset=data, accelerator="cpu", on_epoch=history.append)
    except TrainingError as error:
        problem = str(error)
    except Exception as error:
        # One broken cell is recorded and must not end the others.
        problem = f"{type(error).__name__}: {error}"
        traceback.print_exc()
        return Outcome(cell, tuple(history), problem)
    content = {"config": to_dict(cell.config), "history": [asdict(row) for row in history], "problem": problem}
    text = json.dumps(content, indent=1)
    write_atomically(folder / f"{cell.key}.json", lambda file: file.write(text.encode()))
    return Outcome(cell, tuple(history), problem)


def _read(folder: Path, cell: Cell) -> Outcome | None:
    path = folder / f"{cell.key}.json"
    try:
        content: Mapping[str, Any] = json.loads(path.read_text())
        return Outcome(cell, tuple(EpochResult(**row) for row in content["history"]), content["problem"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        path.unlink(missing_ok=True)  # damaged: run again
        return None
