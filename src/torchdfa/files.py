"""Writing files: whole or not at all."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Any], object]) -> None:
    """Call ``write(file)`` on a new binary file that takes the place of ``path`` only when it is complete on disk.

    Raises:
        OSError: It can't be written (a full disk, a folder that is read-only); the error names ``path``, and what was
            there is still there.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(scratch, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        if error.errno is None:  # of a library, which has said all it has to say in words
            raise
        # An error of write() itself names no file.
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, as :func:`write_atomically` does."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_csv(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV under these headings, as :func:`write_atomically` does."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_rows(path: Path, kind: Any, rows: Iterable[Any], *, digits: int = 6, nan: str = "nan") -> None:
    """Write instances of a data class as CSV, a column a field, as :func:`write_atomically` does.

    Args:
        path: Of the file.
        kind: The data class, which names the columns also where there are no rows.
        rows: Its instances.
        digits: Significant digits of floating-point numbers.
        nan: What stands for NaN.
    """

    def shown(value: Any) -> Any:
        if isinstance(value, float):
            return nan if math.isnan(value) else f"{value:.{digits}g}"
        return value

    names = [f.name for f in dataclasses.fields(kind)]
    write_csv(path, names, ({name: shown(getattr(row, name)) for name in names} for row in rows))
