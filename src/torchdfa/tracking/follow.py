"""Following one object through a source of frames, with all that is written and shown on the way."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from torchdfa.data.errors import DataError
from torchdfa.terminal import on_terminal
from torchdfa.tracking.boxes import check_box
from torchdfa.tracking.display import Window, draw_box, pick_box
from torchdfa.tracking.frames import FrameError
from torchdfa.tracking.video import Frame, Source, VideoWriter

Box = tuple[float, float, float, float]


class Follows(Protocol):
    """What follows an object: :class:`torchdfa.tracking.Tracker`, or one of OpenCV's."""

    def init(self, frame: Any, box: Sequence[float]) -> None:
        """Learn the target."""
        ...

    def update(self, frame: Any) -> tuple[Box, float]:
        """Find it in the next frame."""
        ...


@dataclass
class Track:
    """What came of following an object.

    Attributes:
        boxes: One a frame.
        scores: One a frame; infinite in the first one, not a number in one that could not be read.
        seconds: That the tracker took for each frame.
        problems: Frames that could not be used, and why.
        stopped: Whether it was ended before the source was.
    """

    boxes: list[Box]
    scores: list[float]
    seconds: list[float]
    problems: list[str]
    stopped: bool = False

    @property
    def rate(self) -> float:
        """Frames a second after the first one: over the median time of a frame would hide the updates, so the mean."""
        return 1 / statistics.fmean(self.seconds[1:]) if len(self.seconds) > 1 else math.nan

    @property
    def held(self) -> float:
        """Share of the frames after the first, of those that could be read, in which the target was found."""
        scores = [score for score in self.scores[1:] if not math.isnan(score)]
        return statistics.fmean(score > 0 for score in scores) if scores else math.nan


def parse_box(text: str) -> Box:
    """Read a box from ``x,y,w,h``.

    Raises:
        ValueError: It is none.
    """
    try:
        x, y, w, h = (float(part) for part in text.replace(" ", "").split(","))
    except ValueError:
        raise ValueError(f"--box {text}: expected four numbers x,y,w,h, as in --box 159,82,56,65.") from None
    return (x, y, w, h)


def follow(
    source: Source,
    tracker: Follows,
    box: Box | None = None,
    *,
    out: Path | None = None,
    name: str | None = None,
    overwrite: bool = False,
    video: bool = True,
    show: bool = False,
    limit: int | None = None,
    progress: bool = True,
) -> Track:
    """Follow an object from the first frame of a source to its last.

    Every frame's line is on disk before the next frame is read; Ctrl-C ends it like the source's end would.

    Args:
        source: The frames.
        tracker: What follows the object.
        box: The target in the first frame, counted from 0, cut at the frame's borders; None: that of OTB's
            annotation if there is one, else picked in a window.
        out: Folder for NAME.mp4, NAME.txt (x,y,w,h a line, counted from 1), NAME_scores.txt and NAME_times.txt.
        name: NAME; by default the source's.
        overwrite: Whether files that are there may be replaced.
        video: Whether NAME.mp4 is written.
        show: Whether a window shows each frame.
        limit: Frames after which it ends.
        progress: Whether a progress bar is shown on a terminal.

    Raises:
        DataError: The first frame can't be read, or results are there already.
        BoxError: The box has no size, or lies outside the frame.
        NoDisplayError: A window is needed and there is no display.
    """
    track = Track([], [], [], [])
    paths = None if out is None else _free_paths(out, name or source.name, overwrite, source.file)
    box = box or source.annotated()
    with ExitStack() as stack:
        frames = source.frames()
        first = next(frames, None)
        if first is None:
            raise DataError(f"{source.name}: found no frame.")
        if isinstance(first, DataError):
            raise first
        box = box or pick_box(first)
        # As the tracker cuts it: what is written and drawn is what is followed.
        x, y, w, h = check_box(box, first.shape[1], first.shape[0]).tolist()
        box = (x, y, w, h)
        window = Window(source.name) if show else None
        if window is not None:
            stack.callback(window.close)
        started = time.perf_counter()
        tracker.init(first, box)
        taken = time.perf_counter() - started
        writer = None if paths is None else stack.enter_context(_files(paths, source, video))
        bar = stack.enter_context(progress_bar(progress, min(source.count or sys.maxsize, limit or sys.maxsize)))
        try:
            _note(track, first, box, math.inf, taken, writer, window)
            bar("first frame", 1)
            shown = first
            for frame in frames:
                if limit is not None and len(track.boxes) >= limit:
                    break
                score = math.nan
                started = time.perf_counter()
                if not isinstance(frame, DataError):
                    try:
                        box, score = tracker.update(frame)
                    except FrameError as error:
                        frame = DataError(f"{source.name}: frame {len(track.boxes) + 1}: {error}")
                taken = time.perf_counter() - started
                if isinstance(frame, DataError):
                    track.problems.append(str(frame))
                else:
                    shown = frame
                # In place of a picture that can't be read, the one before: line n is of the video's picture n.
                if not _note(track, shown, box, score, taken, writer, window):
                    track.stopped = True
                    break
                bar(f"score {score:5.1f}, {track.rate:.1f} frames/s", 1)
        except KeyboardInterrupt:
            track.stopped = True
    return track


def _note(
    track: Track,
    frame: Frame,
    box: Box,
    score: float,
    taken: float,
    files: _Files | None,
    window: Window | None,
) -> bool:
    """Keep a frame's result in memory, on disk and on the screen; return False if the window was closed."""
    track.boxes.append(box)
    track.scores.append(score)
    track.seconds.append(taken)
    if files is not None:
        files.line(box, score, taken)
    if window is None and (files is None or files.video is None):
        return True
    shown = "" if math.isinf(score) else "not read  " if math.isnan(score) else f"score {score:.1f}  "
    speed = "" if len(track.seconds) < 2 else f"{track.rate:.1f} frames/s"
    picture = draw_box(frame, box, score, f"{len(track.boxes)}  {shown}{speed}")
    if files is not None and files.video is not None:
        files.video.write(picture)
    return window is None or window.show(picture)


class _Files:
    def __init__(self, boxes: TextIO, scores: TextIO, times: TextIO, video: VideoWriter | None):
        self._boxes, self._scores, self._times, self.video = boxes, scores, times, video

    def line(self, box: Box, score: float, taken: float) -> None:
        x, y, w, h = box
        print(f"{x + 1:.3f},{y + 1:.3f},{w:.3f},{h:.3f}", file=self._boxes, flush=True)
        print(f"{score:.4f}", file=self._scores, flush=True)
        print(f"{taken:.6f}", file=self._times, flush=True)


def _free_paths(out: Path, name: str, overwrite: bool, video: Path | None) -> list[Path]:
    paths = [out / f"{name}{suffix}" for suffix in (".txt", "_scores.txt", "_times.txt", ".mp4")]
    if video is not None and any(p.exists() and p.samefile(video) for p in paths):
        raise DataError(f"{video} is the video itself, which its results would replace. Give another --out or --name.")
    there = [str(p) for p in paths if p.exists()]
    if there and not overwrite:
        raise DataError(
            f"{there[0]} is there already. Give another --out or --name, or --overwrite true to replace it."
        )
    return paths


@contextmanager
def _files(paths: list[Path], source: Source, video: bool) -> Iterator[_Files]:
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        boxes, scores, times = (stack.enter_context(open(p, "w", encoding="utf-8")) for p in paths[:3])
        paths[3].unlink(missing_ok=True)
        writer = VideoWriter(paths[3], source.rate) if video else None
        if writer is not None:
            stack.callback(writer.close)
        yield _Files(boxes, scores, times, writer)


@contextmanager
def progress_bar(shown: bool, total: int) -> Iterator[Any]:
    """Show a progress bar on a terminal while the context lasts; call it with a text and the frames that were done."""
    if not shown:
        yield lambda text, frames: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with on_terminal(*columns) as progress:
        task = progress.add_task("learning the target", total=None if total == sys.maxsize else total)
        yield lambda text, frames: progress.update(task, advance=frames, description=text)
