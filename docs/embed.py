"""Put the tables of records into the pages of this folder: ``python docs/embed.py`` after a record has changed.

A page holds the line ``<!-- table: records/NAME/PAGE.md -->``; this script puts the first table of that record's page
below it, or with ``PAGE.md#2`` the second, and ``<!-- end -->`` after it. Of ``OUTPUT.txt`` it is the whole text. A
test asks that pages are what this script makes of them.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"(<!-- table: ([^\s#]+)(?:#(\d+))? -->\n)(?:(?:(?!<!-- table: ).)*?<!-- end -->\n?)?", re.DOTALL)


def table(page: str, number: int = 1) -> str:
    """Return a table of a page in Markdown, counted from 1.

    Raises:
        ValueError: The page has no table, or not so many.
    """
    found = re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE)
    if not 0 < number <= len(found):
        there = f"{len(found) or 'no'} table{'s' * (len(found) > 1)}"
        raise ValueError(f"the page has {there}; number {number} was asked for.")
    return found[number - 1]


def embedded(text: str) -> str:
    """Return a page with the tables that it asks for."""

    def block(m: re.Match[str]) -> str:
        text = (ROOT / m[2]).read_text(encoding="utf-8")
        found = f"```text\n{text}```\n" if m[2].endswith(".txt") else table(text, int(m[3] or 1))
        return f"{m[1]}{found}<!-- end -->\n"

    return _BLOCK.sub(block, text)


def pages() -> list[Path]:
    """Return the pages that may ask for tables."""
    return [*sorted(Path(__file__).parent.rglob("*.md")), ROOT / "README.md"]


if __name__ == "__main__":
    for path in pages():
        before = path.read_text(encoding="utf-8")
        after = embedded(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"updated {path.name}")
