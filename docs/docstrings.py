"""Docstrings as Markdown: an extension of Griffe, which reads them for the API reference."""

from __future__ import annotations

import re

from griffe import Extension, Object

# Functions that have the name of their module: to Griffe, which runs nothing, that name is the module's.
_FUNCTIONS = (
    "alignment",
    "convert",
    "costs",
    "summary",
    "experiments.compare",
    "experiments.reproduce",
    "hardware.step",
)
SHADOWED = {f"torchdfa.{name}" for name in _FUNCTIONS}
_ROLE = re.compile(r":\w+:`~?([\w.]+)`")
_DOUBLE = re.compile(r"``(.+?)``")
_EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1(?!\s*$).+)*", re.MULTILINE)


class Markdown(Extension):
    """Turns roles into links, double backticks into single ones, and sessions of the interpreter into blocks."""

    def on_object(self, *, obj: Object, **kwargs: object) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """Return a docstring's text with its reStructuredText turned into Markdown."""
    text = _ROLE.sub(_link, text)
    text = _DOUBLE.sub(r"`\1`", text)
    return _EXAMPLE.sub(lambda m: f"{m[1]}```pycon\n{m[0]}\n{m[1]}```", text)


def _link(role: re.Match[str]) -> str:
    name = role[1]
    target = name if name.startswith("torchdfa") else f"torchdfa.{name}"
    if target in SHADOWED:
        target = f"{target}.{target.rpartition('.')[2]}"
    return f'<autoref identifier="{target}" optional><code>{name.removeprefix("torchdfa.")}</code></autoref>'
