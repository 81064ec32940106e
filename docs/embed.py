"""Put the tables of records into the pages of this folder: ``python docs/embed.py`` after a record has changed.

A page holds ``<!-- table: records/NAME/PAGE.md -->``, and between that and ``<!-- end -->`` the first table of that
record's page. A test asks that pages are what this script makes of them.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def first_table(page: str) -> str:
    """Return the first table of a page in Markdown.

    Raises:
        ValueError: The page has none.
    """
    found = re.search(r"^(\|.*\|\n)+", page, re.MULTILINE)
    if found is None:
        raise ValueError("the page has no table.")
    return found.group()


def embedded(text: str) -> str:
    """Return a page with the tables that it asks for."""
    return _BLOCK.sub(lambda m: m[1] + first_table((ROOT / m[2]).read_text(encoding="utf-8")) + m[3], text)


if __name__ == "__main__":
    for path in sorted((*Path(__file__).parent.glob("*.md"), ROOT / "README.md")):
        before = path.read_text(encoding="utf-8")
        after = embedded(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"updated {path.name}")
