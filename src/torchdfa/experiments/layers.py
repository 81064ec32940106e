"""``angles.csv``: the angle of every layer's gradient over the epochs of several runs."""

from __future__ import annotations

import csv
from pathlib import Path

from filelock import FileLock

from torchdfa.experiments.results import Cell
from torchdfa.files import write_csv

_FIELDS: tuple[str, ...] = ("method", "seed", "epoch", "parameter", "degrees")


def keep_angles(cell: Cell, run: Path) -> None:
    """Add the angles that a run wrote to those of its experiment, in the folder above."""
    if not (run / "angles.csv").is_file():
        return  # the run diverged in its first epoch
    path = run.parent.parent / "angles.csv"
    own = (cell.method, str(cell.config.seed))
    with FileLock(path.with_name(".angles.csv.lock")):
        kept = [row for row in read_angles(path.parent) if (row["method"], row["seed"]) != own]
        with open(run / "angles.csv", newline="", encoding="utf-8") as file:
            found = [dict(zip(_FIELDS, (*own, *row.values()), strict=True)) for row in csv.DictReader(file)]
        write_csv(path, _FIELDS, [*kept, *found])


def read_angles(folder: Path) -> list[dict[str, str]]:
    """Return the rows of an experiment's ``angles.csv``: method, seed, epoch, parameter, degrees.

    Raises:
        ValueError: The file is damaged.
    """
    path = folder / "angles.csv"
    if not path.is_file():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no CSV, or damaged ({error}). Move it away.") from error
    if any(set(row) != set(_FIELDS) or None in row.values() for row in rows):
        raise ValueError(f"{path} has other columns than {list(_FIELDS)} in some row. Move it away.")
    return rows
