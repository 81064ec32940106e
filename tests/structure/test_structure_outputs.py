import pytest
import torch

from cases import FrozenRecord, Point, Record
from torchdfa.structure.outputs import describe, not_a_tensor, pick, put

Y, H, NEW = torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 3), 2.0)


class Plain:
    def __init__(self):
        self.logits, self.hidden = Y, H


CASES = {
    "dict": (lambda: {"logits": Y, "hidden": H}, "logits"),
    "integer keys": (lambda: {0: Y, 1: H}, 0),
    "tuple": (lambda: (H, Y), 1),
    "from the end": (lambda: (H, Y), -1),
    "list": (lambda: [H, Y], 1),
    "namedtuple": (lambda: Point(Y, H), "logits"),
    "namedtuple by position": (lambda: Point(Y, H), 0),
    "data class": (lambda: Record(Y, H), "logits"),
    "frozen data class": (lambda: FrozenRecord(Y, H), "logits"),
    "object": (Plain, "logits"),
}


@pytest.mark.parametrize(("make", "part"), CASES.values(), ids=CASES.keys())
def test_put_replaces_what_pick_finds_and_nothing_else(make, part):
    value = make()
    assert pick(value, part) is Y
    changed = put(value, part, NEW)
    assert type(changed) is type(value)
    assert pick(changed, part) is NEW
    parts = changed if isinstance(changed, (dict, tuple, list)) else vars(changed)
    members = list(parts.values()) if isinstance(parts, dict) else parts
    assert sum(m is H for m in members) == 1
    assert len(members) == 2


@pytest.mark.parametrize(
    ("value", "part", "message"),
    [
        ({"a": Y}, "b", "no part 'b'.*dict with the keys \\['a'\\]"),
        ((Y,), 1, "no part 1.*tuple of 1"),
        ((Y,), "a", "no part 'a'"),
        (Point(Y, H), "z", "fields \\['logits', 'hidden'\\]"),
        (Record(Y, H), 0, "no part 0.*Record"),
        (None, "a", "no part 'a'.*NoneType"),
    ],
)
def test_a_part_that_is_missing_is_named(value, part, message):
    with pytest.raises(ValueError, match=message):
        pick(value, part)


def test_descriptions():
    assert describe([Y, Y]) == "a list of 2"
    assert describe(torch.zeros(())) == "a Tensor of shape ()"
    assert "output=" in str(not_a_tensor({"a": Y}))
