"""What a run writes and shows as it goes: a CSV, TensorBoard events, a progress bar."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchdfa.files import write_rows
from torchdfa.terminal import on_terminal


@dataclass(frozen=True)
class EpochResult:
    """One epoch of a run; accuracies in percent, NaN where not measured.

    Attributes:
        epoch: Counted from 1.
        lr: Learning rate of the trunk at the epoch's last step.
        train_loss: Mean over the epoch, in training mode.
        train_top1: Likewise.
        val_loss: On the held-out images.
        val_top1: Likewise.
        test_loss: On the test images: every epoch without held-out images, else after the last one only.
        test_top1: Likewise.
        test_top5: Likewise; NaN for fewer than six classes.
        images_per_second: In training, evaluation left out; of a text, tokens.
        step_seconds: Median wall time of a training step.
        trunk_angle: Angle between the trunk's gradient and the true one, in degrees, where angles are logged.
        trunk_ratio: Length of the trunk's gradient over that of the true one, likewise.
    """

    epoch: int
    lr: float
    train_loss: float
    train_top1: float
    val_loss: float
    val_top1: float
    test_loss: float
    test_top1: float
    test_top5: float
    images_per_second: float
    step_seconds: float
    trunk_angle: float = math.nan
    trunk_ratio: float = math.nan


def write_history(folder: Path, history: Sequence[EpochResult]) -> None:
    """Write ``metrics.csv`` of a run, one row an epoch."""
    write_rows(folder / "metrics.csv", EpochResult, history, digits=8)


@dataclass(frozen=True)
class Angle:
    """The angle between a rule's gradient and the true one, for one parameter after one epoch, in degrees."""

    epoch: int
    parameter: str
    degrees: float


def write_angles(folder: Path, angles: Sequence[Angle]) -> None:
    """Write ``angles.csv`` of a run."""
    write_rows(folder / "angles.csv", Angle, angles, digits=8)


class Events:
    """TensorBoard events of a run; of no effect without a folder."""

    def __init__(self, folder: Path | None, resumed_after: int):
        self._writer = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            # Events past the checkpoint that is resumed from belong to steps that are done again.
            self._writer = SummaryWriter(str(folder), purge_step=resumed_after + 1)

    def add(self, result: EpochResult, angles: Sequence[Angle]) -> None:
        """Write one epoch."""
        if self._writer is None:
            return
        values = {k: v for k, v in dataclasses.asdict(result).items() if k != "epoch" and v == v}
        for name, value in [
            *values.items(),
            *((f"angle/{a.parameter}", a.degrees) for a in angles if a.degrees == a.degrees),
        ]:
            self._writer.add_scalar(name.replace("_", "/", 1), value, result.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()


class Bar:
    """A progress bar over all steps of a run, and a line an epoch; only lines where the output is no terminal."""

    def __init__(self, progress: Any, total: int, done: int, unit: str):
        self._progress, self._unit = progress, unit
        self._task = None
        if progress is not None:
            self._task = progress.add_task("train", total=total, completed=done, loss="", top1="", speed="")

    def advance(self, loss: float, top1: float, speed: float) -> None:
        """Count one step."""
        if self._progress is not None:
            self._progress.update(
                self._task,
                advance=1,
                loss=f"loss {loss:.3f}",
                top1=f"top-1 {top1:5.1f} %",
                speed=f"{speed:,.0f} {self._unit}/s",
            )

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        if self._progress is not None:
            self._progress.console.print(text, highlight=False, soft_wrap=True)


@contextmanager
def bar(shown: bool, total: int, done: int, unit: str = "images") -> Iterator[Bar]:
    """Show a progress bar while the context lasts."""
    if not shown:
        yield Bar(None, total, done, unit)
        return
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

    columns = [BarColumn(), TextColumn("{task.percentage:3.0f} %")]
    columns += [TextColumn("{task.fields[" + name + "]}") for name in ("loss", "top1", "speed")]
    with on_terminal(*columns, TimeRemainingColumn()) as progress:
        yield Bar(progress, total, done, unit)
