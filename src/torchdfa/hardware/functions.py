"""Boolean functions as Liberty writes them: rewritten, or evaluated."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torchdfa.hardware.cells import LibertyError


def render(function: str, name: Callable[[str], str], negate: Callable[[str], str]) -> str:
    """Rewrite a Liberty function with ``& | ^`` and brackets, its pins, 0 and 1 by ``name``, negations by ``negate``.

    Raises:
        LibertyError: It is no function.
    """
    tokens = re.findall(r"[A-Za-z_][\w\[\]]*|[01]|[()!'&*|+^]", function)
    place = 0

    def peek() -> str:
        return tokens[place] if place < len(tokens) else ""

    def take() -> str:
        nonlocal place
        place += 1
        return tokens[place - 1]

    def atom() -> str:
        token = take() if peek() else ""
        if token == "(":
            value = either()
            if not peek() or take() != ")":
                raise LibertyError(f"function {function!r}: a bracket is not closed.")
        elif token == "!":
            return negate(atom())
        elif re.match(r"[\w]", token):
            value = name(token)
        else:
            raise LibertyError(f"function {function!r}: {token!r} where a pin was expected.")
        while peek() == "'":
            take()
            value = negate(value)
        return value

    def exclusive() -> str:
        value = atom()
        while peek() == "^":
            take()
            value = f"({value} ^ {atom()})"
        return value

    def both() -> str:
        value = exclusive()
        while peek() in ("&", "*") or re.match(r"[\w(!]", peek()):
            if peek() in ("&", "*"):
                take()
            value = f"({value} & {exclusive()})"
        return value

    def either() -> str:
        value = both()
        while peek() in ("|", "+"):
            take()
            value = f"({value} | {both()})"
        return value

    if "".join(tokens) != "".join(function.split()):
        raise LibertyError(f"function {function[:200]!r} has characters that no function has.")
    try:
        value = either()
    except RecursionError:
        raise LibertyError(f"function {function[:200]!r}…: too many brackets in one another.") from None
    if peek():
        raise LibertyError(f"function {function[:200]!r}: {peek()!r} is left over.")
    return value


def truth(function: str, values: Mapping[str, int]) -> int:
    """Return a function's value, 0 or 1, where its pins have these.

    Raises:
        LibertyError: It is no function, or of other pins.
    """

    def value(name: str) -> str:
        if name not in known:
            raise LibertyError(f"function {function!r} is of {name!r}, expected only {', '.join(values)}.")
        return str(known[name])

    known = {**values, "0": 0, "1": 1}
    return int(eval(render(function, value, lambda x: f"(1 ^ {x})")))


def names_in(function: str) -> set[str]:
    """Return the names of the pins in a function.

    Raises:
        LibertyError: It is no function.
    """
    found: set[str] = set()
    render(function, lambda name: found.add(name) or name, str)
    return found - {"0", "1"}
