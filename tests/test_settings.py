import math
from dataclasses import dataclass

import numpy as np
import pytest

from torchdfa.settings import demand, one_of, positive, share, some_of, whole


@dataclass
class Settings:
    kind: str = "a"
    count: int = 1


def test_a_wrong_value_is_named_with_its_owner_and_what_was_expected():
    demand(Settings(), kind=one_of("a", "ab"), count=whole(1))
    with pytest.raises(ValueError, match=r"^Settings: kind='c', expected one of 'a', 'b'\.$"):
        demand(Settings(kind="c"), kind=one_of("c", "ab"), count=whole(0))
    with pytest.raises(ValueError, match=r"^Settings: count=0, expected a whole number of 1 or more\.$"):
        demand(Settings(count=0), kind=one_of("a", "ab"), count=whole(0))


@pytest.mark.parametrize(
    "check, good, bad",
    [
        (whole, [1, np.int64(3), 2**70], [0, -1, True, 1.0, "1", None]),
        (lambda n: whole(n, least=None), [-1, 0], [False, 0.5]),
        (positive, [1, 1e-9, np.float32(2)], [0, -1.0, math.inf, math.nan, True, "1", None]),
        (share, [0, 0.5], [1, -0.1, math.nan, "0.5", None]),
        (lambda names: some_of(names, "abc"), ["a", "ca", ["b"]], ["", "ad", [None]]),
    ],
    ids=["whole", "any-whole", "positive", "share", "some-of"],
)
def test_checks(check, good, bad):
    assert [value for value in good if not check(value)[0]] == []
    assert [value for value in bad if check(value)[0]] == []


def test_unknown_names_are_told_apart():
    assert some_of(("a", "d", "e"), "abc")[1] == "one or more of 'a', 'b', 'c', not 'd', 'e'"
