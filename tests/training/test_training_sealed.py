"""Sealed files: what goes in comes out, and nothing else is ever read."""

import hashlib
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchdfa.training.sealed import SealError, read_sealed, seal, unseal

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.just("tensor") | st.just("dict"), inner)
    ),
    max_leaves=20,
)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64, torch.bool)


@given(PLAIN)
@settings(max_examples=100, deadline=None)
def test_plain_content_comes_back(content):
    found = unseal(seal({"content": content}))["content"]
    assert found == content and repr(found) == repr(content)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 3, 4, 5)])
def test_tensors_come_back_in_their_layout(dtype, shape):
    value = torch.randint(0, 2, shape).to(dtype)
    values = {"plain": value, "tied": value, "part": value.flatten()[:1], "cut": value[..., None].expand(*shape, 3)}
    if value.ndim == 4:
        values["last"] = value.to(memory_format=torch.channels_last)
    if value.ndim == 2:
        values["turned"] = value.T
    found = unseal(seal(values))
    assert found.keys() == values.keys()
    for name, one in values.items():
        assert found[name].dtype == dtype and torch.equal(found[name], one), name
        if name in ("last", "turned"):
            assert found[name].stride() == one.stride()


def test_nan_and_infinities_come_back():
    found = unseal(seal({"x": [math.nan, math.inf, -math.inf, -0.0, 5e-324]}))["x"]
    assert repr(found) == "[nan, inf, -inf, -0.0, 5e-324]"


def test_what_it_cannot_hold_is_said():
    with pytest.raises(TypeError, match="can't hold a set"):
        seal({"x": {1}})


def test_every_flipped_bit_and_every_cut_is_noticed():
    data = seal({"w": torch.arange(6.0), "place": {"step": 3}, 7: None})
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        for broken in (bytes(flipped), data[:position], data + data[:1] * (position + 1)):
            with pytest.raises(SealError):
                unseal(broken)
    assert unseal(data)["place"] == {"step": 3}


def sealed_by_hand(header, content=b""):
    header = json.dumps(header).encode()
    body = len(header).to_bytes(8, "little") + header + content
    return b"torchdfa sealed 1 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def tensor(shape, end, dtype="F32"):
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


@pytest.mark.parametrize(
    "header",
    [
        tensor([1 << 40], 1 << 42),  # four tebibytes that are not there
        tensor([1 << 40], 4),
        tensor([1 << 32, 1 << 32, 1 << 32], 4),
        tensor([-1], 4),
        tensor([1], 4, "F1000"),
        {"__metadata__": {"content": "[" * 100_000}},
        {"__metadata__": {"content": json.dumps({"tensor": "none", "order": []})}},
        {"__metadata__": {"content": json.dumps({"tensor": 3, "order": 3})}},
        {"__metadata__": {"content": json.dumps({"set": []})}},
        {"__metadata__": {"content": json.dumps({"list": 1})}},
        {"__metadata__": {"content": json.dumps({"dict": [[{"list": []}, 1]]})}},
        {"__metadata__": {"content": json.dumps({})}},
        {"__metadata__": {"content": ""}},
        {"__metadata__": {}},
        {},
        [],
    ],
)
def test_a_right_checksum_over_nonsense_is_refused(header):
    """Whoever can make files can make checksums: what is in the file is checked, too, before memory is taken for it."""
    with pytest.raises(SealError, match="its content is none"):
        unseal(sealed_by_hand(header, b"\0" * 4))


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    body = (1 << 60).to_bytes(8, "little") + b"{}"
    (tmp_path / "x").write_bytes(b"torchdfa sealed 1 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    with pytest.raises(SealError, match="its content is none"):
        read_sealed(tmp_path / "x")
