"""Checking settings: one message for all of them."""

from __future__ import annotations


def demand(settings: object, **expected: tuple[bool, str]) -> None:
    """Check a data class of settings.

    Args:
        settings: The data class.
        expected: By field: whether its value is good, and what is expected.

    Raises:
        ValueError: A value is not good; the message says which, and what is expected.
    """
    for name, (good, what) in expected.items():
        if not good:
            raise ValueError(f"{type(settings).__name__}: {name}={getattr(settings, name)!r}, expected {what}.")
