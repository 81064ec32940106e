"""Progress of an experiment on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torchdfa.experiments.results import Cell
from torchdfa.terminal import on_terminal


class Watch:
    """Progress of an experiment on the terminal; of no effect without one."""

    def __init__(self, progress: Any, planned: int):
        self._progress = progress
        self._task = None if progress is None else progress.add_task("", total=planned, what="")

    def expect(self, more: int) -> None:
        """Add runs to those that are planned."""
        if self._progress is not None:
            total = self._progress.tasks[0].total
            self._progress.update(self._task, total=total + more)

    def count(self, cell: Cell) -> None:
        """Count a finished run."""
        if self._progress is not None:
            what = f"{cell.method}, rate {cell.config.lr:g}, seed {cell.config.seed}"
            self._progress.update(self._task, advance=1, what=what)

    def say(self, text: str) -> None:
        """Show what is going on."""
        if self._progress is not None:
            self._progress.update(self._task, what=text)


@contextmanager
def watch(shown: bool, planned: int) -> Iterator[Watch]:
    """Show a progress bar with the time left while the context lasts."""
    if not shown:
        yield Watch(None, planned)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("runs,"), TimeElapsedColumn(), TextColumn("gone,"))
    columns += (TimeRemainingColumn(), TextColumn("left"), TextColumn("{task.fields[what]}"))
    with on_terminal(*columns) as progress:
        yield Watch(progress, planned)
