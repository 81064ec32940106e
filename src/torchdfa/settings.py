"""Checking settings: one message for all of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from typing import Any

Check = tuple[bool, str]


def demand(settings: object, **expected: Check) -> None:
    """Check a data class of settings.

    Args:
        settings: The data class.
        expected: By field: whether its value is good, and what is expected.

    Raises:
        ValueError: A value is not good; the message says which, and what is expected.
    """
    for name, (good, what) in expected.items():
        if not good:
            raise wrong(settings, name, getattr(settings, name), what)


def wrong(owner: object, name: str, found: Any, expected: str) -> ValueError:
    """Return the error of a setting that is not good."""
    return ValueError(f"{type(owner).__name__}: {name}={found!r}, expected {expected}.")


def one_of(value: Any, known: Iterable[Any]) -> Check:
    """Check a setting that is chosen from some."""
    known = tuple(known)
    return value in known, f"one of {', '.join(map(repr, known))}"


def some_of(values: Collection[Any], known: Iterable[Any]) -> Check:
    """Check a setting of one or more names among some."""
    known = tuple(known)
    unknown = ", ".join(repr(v) for v in values if v not in known)
    what = f"one or more of {', '.join(map(repr, known))}" + (f", not {unknown}" if unknown else "")
    return bool(values) and not unknown, what


def whole(value: Any, least: int | None = 1) -> Check:
    """Check a whole number; ``least=None``: any."""
    good = isinstance(value, Integral) and not isinstance(value, bool) and (least is None or int(value) >= least)
    return good, "a whole number" if least is None else f"a whole number of {least} or more"


def positive(value: Any) -> Check:
    """Check a finite number above 0."""
    return _is_number(value) and 0 < value < math.inf, "a positive number"


def share(value: Any) -> Check:
    """Check a share that is not all, as of units that are dropped."""
    return _is_number(value) and 0 <= value < 1, "from 0 to below 1"


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
