"""What all commands' parsers need beside jsonargparse: examples in the help, and settings that must not be null."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import import_module
from types import NoneType
from typing import Any, get_args, get_type_hints


def formatter() -> Any:
    """Return the class of jsonargparse's help, with the examples as they are written."""
    import argparse

    from jsonargparse import DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
        """jsonargparse's help, with the examples as they are written."""

    return Formatter


def demand_set(kind: Any, values: Mapping[str, Any], where: str = "") -> None:
    """Refuse a null where a setting has none, which jsonargparse takes for a setting that is left out.

    Args:
        kind: The data class of the settings.
        values: As parsed, plain; those of rules and networks under ``class_path`` and ``init_args``.
        where: Name of the settings within others, with a dot.

    Raises:
        ValueError: A setting is null; the message names it.
    """
    try:
        hints = get_type_hints(kind)
    except NameError:  # of a user's class, whose annotations are not there at run time
        return
    for field in dataclasses.fields(kind):
        if field.name not in values:
            continue
        value, hint, name = values[field.name], hints[field.name], f"{where}{field.name}"
        if value is None and NoneType not in get_args(hint):
            expected = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            raise ValueError(f"{name} is null, expected {expected}.")
        for key, part in value.items() if isinstance(value, Mapping) and "class_path" not in value else [("", value)]:
            if isinstance(part, Mapping) and "class_path" in part:
                module, _, cls = part["class_path"].rpartition(".")
                found = getattr(import_module(module), cls)
                if isinstance(found, type) and dataclasses.is_dataclass(found):
                    demand_set(found, part.get("init_args") or {}, f"{name}{f'[{key!r}]' if key else ''}.")
        if isinstance(value, Mapping) and isinstance(hint, type) and dataclasses.is_dataclass(hint):
            demand_set(hint, value, f"{name}.")
