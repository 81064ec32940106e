"""Hooks of MkDocs: lay the repository's files into the site, and give the explorer its data.

Every file has the path that it has in the repository, so that one relative link holds on a forge and on the site. The
README is the home page; notebooks and sources are pages; records are copied whole.
"""

from __future__ import annotations

import csv
import json
import logging
import math
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

from torchdfa.data import TEXTS as CORPORA

ROOT = Path(__file__).parent.parent
TEXTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "CITATION.cff")
FOLDERS = ("records", "examples", "benchmarks", "notebooks", "docs")
SOURCES = (".py", ".ipynb")
PLACE = "<!-- runs -->"
# What the explorer draws, in this order; what a record has of them is taken.
METRICS = {
    "test_top1": "test top-1, %",
    "val_top1": "held-out top-1, %",
    "test_top5": "test top-5, %",
    "train_top1": "training top-1, %",
    "test_loss": "test loss",
    "val_loss": "held-out loss",
    "train_loss": "training loss",
    "trunk_angle": "trunk: angle to the true gradient, degrees",
    "trunk_ratio": "trunk: length over the true gradient's",
    "step_seconds": "seconds a step",
}
# A run with the same of these and another seed belongs to the same line.
SETTINGS = ("phase", "lr", "head_lr", "weight_decay", "feedback_scale", "options")


class Source(File):
    """A file of code that is shown as a page."""

    def is_documentation_page(self) -> bool:
        """Say yes: MkDocs knows Markdown alone."""
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by all of the repository that is part of the site."""
    documents = {file.src_uri: file for file in files if file.src_dir == config.docs_dir}
    laid = Files([file for file in files if file.src_uri not in documents])
    for path in paths():
        name = path.relative_to(ROOT).as_posix()
        inside = name.removeprefix("docs/")
        if path.suffix in SOURCES:
            file: File = Source(name, str(ROOT), config.site_dir, config.use_directory_urls)
        elif inside != name and inside not in documents:
            continue
        else:
            place = documents[inside].dest_uri if inside != name else None
            file = File(name, str(ROOT), config.site_dir, config.use_directory_urls, dest_uri=place)
        file.inclusion = InclusionLevel.INCLUDED
        laid.append(file)
        if path.suffix == ".ipynb":
            for picture, data in notebook(path)[1].items():
                laid.append(File.generated(config, f"notebooks/{path.stem}/{picture}", content=data))
    return laid


def paths() -> list[Path]:
    """Return the repository's files that are part of the site."""
    found = [ROOT / name for name in TEXTS if (ROOT / name).exists()]
    for folder in FOLDERS:
        found += sorted(p for p in (ROOT / folder).rglob("*") if p.is_file() and not hidden(p))
    return found


def hidden(path: Path) -> bool:
    """Say whether a path is a lock, a cache or the like."""
    return any(part.startswith((".", "__")) for part in path.relative_to(ROOT).parts)


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:
    """Return the Markdown of a notebook or of a source file."""
    path = Path(page.file.abs_src_path or "")
    if path.suffix == ".ipynb":
        return notebook(path)[0]
    if path.suffix == ".py":
        return f"# {path.relative_to(ROOT).as_posix()}\n\n~~~~python\n{path.read_text(encoding='utf-8')}~~~~\n"
    return None


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and its pictures by their names."""
    from nbconvert import MarkdownExporter

    logging.getLogger("traitlets").setLevel(logging.ERROR)
    text, resources = MarkdownExporter().from_filename(str(path))
    pictures = resources["outputs"]
    for name in pictures:
        text = text.replace(f"({name})", f"({path.stem}/{name})")
    return text, pictures


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the runs into the page that asks for them."""
    if PLACE not in html:
        return html
    data = json.dumps({"metrics": METRICS, "records": records(ROOT / "records")}, separators=(",", ":"))
    data = data.replace("</", "<\\/")  # a text in it must not end the script
    return html.replace(PLACE, f'<script type="application/json" id="runs">{data}</script>')


def records(folder: Path) -> list[dict[str, Any]]:
    """Return what the explorer shows: every record whose results.csv has a row a run and epoch.

    A record has its name, data set, what that is counted in, and lines; a line has its method, settings, and for each
    seed the metrics' values by epoch, null where there is none. Data of a seed that diverged end where it did.
    """
    found = []
    for path in sorted(folder.glob("*/results.csv"), reverse=True):
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or not {"method", "dataset", "epoch", "key", *SETTINGS} <= rows[0].keys():
            continue
        for dataset in dict.fromkeys((row["dataset"], row["train_size"]) for row in rows):
            chosen = [row for row in rows if (row["dataset"], row["train_size"]) == dataset]
            metrics = [name for name in METRICS if any(row.get(name) for row in chosen)]
            lines: dict[tuple[str, ...], dict[str, Any]] = {}
            for row in chosen:
                settings = {name: row[name] for name in SETTINGS}
                line = lines.setdefault(
                    (row["method"], *settings.values()), {"method": row["method"], **settings, "seeds": {}}
                )
                seed = line["seeds"].setdefault(row["seed"], {name: [] for name in metrics})
                for name in metrics:
                    seed[name].append(number(row[name]))
            found.append(
                {
                    "name": path.parent.name,
                    "experiment": rows[0]["experiment"],
                    "dataset": dataset[0],
                    "train_size": int(dataset[1]),
                    "unit": "tokens" if dataset[0] in CORPORA else "images",
                    "metrics": metrics,
                    "lines": list(lines.values()),
                }
            )
    return found


def number(text: str) -> float | None:
    """Return a value of the table, None where it is missing or no number that JSON has."""
    value = float(text or "nan")
    return value if math.isfinite(value) else None
