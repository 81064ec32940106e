"""Sequences in OTB's format: a folder with img/ and groundtruth_rect.txt, one box a line, counted from 1."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from torchdfa.data.errors import DataError
from torchdfa.data.sources import missing
from torchdfa.files import write_text

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_FIRST_PIXEL = np.array([1, 1, 0, 0])
# Frames of OTB's sequences that are evaluated, counted from 1, where that isn't all of them.
_FRAMES = {"David": (300, 770), "Football1": (1, 74), "Freeman3": (1, 460), "Freeman4": (1, 283), "Diving": (1, 215)}
# The attributes that OTB annotates, in attrs.txt or the like beside the boxes.
ATTRIBUTES = ("IV", "SV", "OCC", "DEF", "MB", "FM", "IPR", "OPR", "OV", "BC", "LR")


@dataclass(frozen=True)
class Sequence:
    """One target in one video.

    Attributes:
        name: ``Jogging.1`` for the first of several targets.
        video: Name of the folder, which targets of the same video share.
        frames: Its images, in order.
        truth: Annotated boxes x, y, w, h, one a frame, shape (T, 4); the image's left upper corner is 0, 0.
        attributes: OTB's names of what makes it hard; empty where that is not annotated.
    """

    name: str
    video: str
    frames: tuple[Path, ...]
    truth: NDArray[np.float64]
    attributes: tuple[str, ...] = ()


def list_images(folder: Path) -> list[Path]:
    """Return a folder's images in the order of the numbers in their names."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith(".")]
    # Every other part is the digits between two others.
    return sorted(found, key=lambda p: [int(t) if i % 2 else t for i, t in enumerate(re.split(r"(\d+)", p.name))])


def load_sequences(root: str | Path, names: Items[str] | None = None) -> list[Sequence]:
    """Find the sequences of a folder.

    Args:
        root: Folder of OTB's format, or one that has it as its folder ``OTB``.
        names: Of videos or of targets; None: all.

    Raises:
        DataError: There is none, one of ``names`` is not there, or a file is damaged; the message says which.
    """
    root = Path(root)
    folders = _folders(root) or _folders(root / "OTB")
    if not folders:
        raise missing(
            "Tracking sequences", [root, root / "OTB"], "folders with img/ and groundtruth_rect.txt (OTB)",
            "They are published with Wu, Lim & Yang, Object Tracking Benchmark, 2015.",
        )  # fmt: skip
    wanted = None if names is None else set(names)
    found: list[Sequence] = []
    for folder in folders:
        for name, path in _annotations(folder).items():
            if wanted is None or wanted & {name, folder.name}:
                found.append(_load(folder, path, name))
    if wanted is not None and (unknown := wanted - {s.name for s in found} - {s.video for s in found}):
        there = ", ".join(folder.name for folder in folders)
        raise DataError(f"no sequence {', '.join(sorted(unknown))} in {root}; there are {there}.")
    return found


def targets_of(folder: Path) -> list[Sequence]:
    """Return the annotated targets of one video's folder; none where nothing is annotated.

    Raises:
        DataError: A file is damaged; the message says which.
    """
    folder = folder.resolve()
    return [_load(folder, path, name) for name, path in _annotations(folder).items()]


def image_folder(folder: Path) -> Path:
    """Return where the images of a video's folder lie: its folder ``img``, or itself where it has none."""
    return folder / "img" if (folder / "img").is_dir() else folder


def halves(sequences: Items[Sequence]) -> tuple[list[Sequence], list[Sequence]]:
    """Split sequences in two by their videos' names: every other one to tune on, the rest to report."""
    videos = sorted({s.video for s in sequences})
    tune = set(videos[::2])
    return [s for s in sequences if s.video in tune], [s for s in sequences if s.video not in tune]


def read_boxes(path: Path) -> NDArray[np.float64]:
    """Read boxes counted from 1, one a line, separated by commas, tabs or spaces; return them from 0, (T, 4).

    Raises:
        DataError: The file can't be read, or a line is no box.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    boxes = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            boxes.append([float(part) for part in re.split(r"[,;\s]+", line.strip())])
        except ValueError:
            boxes.append([])
        if len(boxes[-1]) != 4 or not all(map(math.isfinite, boxes[-1])):
            raise DataError(f"{path}, line {number}: found {line.strip()[:80]!r}, expected four numbers: x,y,w,h.")
    return np.array(boxes, dtype=float).reshape(-1, 4) - _FIRST_PIXEL


def write_boxes(path: Path, boxes: Items[Items[float]] | NDArray[np.float64]) -> None:
    """Write boxes as :func:`read_boxes` reads them, to the thousandth of a pixel."""
    table = np.array(boxes, dtype=float).reshape(-1, 4) + _FIRST_PIXEL
    write_text(path, "".join(",".join(f"{n:.3f}" for n in row) + "\n" for row in table))


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    if (root / "img").is_dir():
        return [root] if any(root.glob("groundtruth_rect*.txt")) else []
    return sorted(f for f in root.iterdir() if (f / "img").is_dir() and any(f.glob("groundtruth_rect*.txt")))


def _annotations(folder: Path) -> dict[str, Path]:
    """Return the annotation of each target in a video's folder, by the target's name."""
    found = sorted(folder.glob("groundtruth_rect*.txt"))
    found = [path for path in found if path.stat().st_size] or found
    names = (
        path.name.removeprefix("groundtruth_rect").removesuffix(".txt") if len(found) > 1 else "" for path in found
    )
    return {folder.name + name: path for name, path in zip(names, found, strict=True)}


def _load(folder: Path, annotation: Path, name: str) -> Sequence:
    place = image_folder(folder)
    images = list_images(place)
    truth = read_boxes(annotation)
    first, last = _FRAMES.get(folder.name, (1, len(images)))
    # The annotation covers the evaluated frames alone; copies that hold no others are left as they are.
    if len(images) != len(truth):
        images = images[first - 1 : last]
    if len(images) != len(truth):
        raise DataError(f"{annotation}: found {len(truth)} boxes for {len(images)} frames of {place}.")
    if len(truth) and not (truth[0, 2:] > 0).all():
        found = ",".join(f"{n:g}" for n in truth[0] + _FIRST_PIXEL)
        raise DataError(f"{annotation}: the first box of {name}, {found}, has no size: w and h must be above 0.")
    return Sequence(name, folder.name, tuple(images), truth, _attributes(folder))


def _attributes(folder: Path) -> tuple[str, ...]:
    for file in ("attrs.txt", "attributes.txt"):
        path = folder / file
        if path.is_file():
            found = set(re.split(r"[,\s]+", path.read_text(encoding="utf-8", errors="replace").strip().upper()))
            return tuple(a for a in ATTRIBUTES if a in found)
    return ()
