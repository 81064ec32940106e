"""Files that somebody else made: every parser over damaged, random and malicious input."""

import os
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FUZZ = Path(__file__).parents[1] / "fuzz"
sys.path.insert(0, str(FUZZ))
pytest.importorskip("PIL")
pytest.importorskip("yaml")
pytest.importorskip("cv2")

from targets import TARGETS, run  # noqa: E402

# Inputs a parser; the long form has a hundred times as many.
COUNT = 10_000 if os.environ.get("TORCHDFA_FUZZ") else 100
FAST = [name for name, target in TARGETS.items() if not target.slow]
every = pytest.mark.parametrize("name", TARGETS)


@every
def test_good_input_is_read(name):
    """The seeds are what the fuzzers start from: if none of them were read, they would try error paths alone."""
    for seed in TARGETS[name].seeds():
        run(name, seed)


@st.composite
def damaged(draw, seeds):
    """A good input with bytes changed, cut out, repeated or put in, or cut off."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(["change", "cut", "put", "end", "repeat"]))
        piece = draw(st.binary(min_size=1, max_size=9) | st.sampled_from(SPECIAL))
        if how == "change":
            data[at : at + len(piece)] = piece
        elif how == "cut":
            del data[at : at + draw(st.integers(1, 200))]
        elif how == "put":
            data[at:at] = piece
        elif how == "end":
            del data[at:]
        else:
            data[at:at] = data[at : at + 50] * draw(st.integers(1, 40))
    return bytes(data)


SPECIAL = [b"\xff" * 8, b"\0" * 8, b"-1", b"1e999", b"nan", b"9" * 400, b"[" * 300, b"\x7f\xff\xff\xff", "²".encode()]


@every
def test_damaged_input_is_read_or_refused(name):
    seeds = TARGETS[name].seeds()

    @settings(
        max_examples=COUNT // 20 if TARGETS[name].slow else COUNT,
        deadline=None,
        database=None,
        derandomize=COUNT == 100,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(seeds) | st.binary(max_size=300) | st.text(max_size=100).map(lambda t: t.encode(errors="replace")))
    def check(data):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow and torch, on what they can't make sense of
            run(name, data)

    check()


@pytest.mark.parametrize("path", sorted(FUZZ.glob("corpus/*/*")), ids=lambda p: f"{p.parent.name}-{p.name[:20]}")
def test_what_once_was_a_crash(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(path.parent.name, path.read_bytes())
