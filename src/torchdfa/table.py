"""Rows of text as an aligned table."""

from __future__ import annotations

from collections.abc import Sequence


def align(lines: Sequence[Sequence[str]], left: int) -> str:
    """Return lines of cells as text: the first ``left`` columns flush left, the others flush right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
