import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchdfa.feedback import bits


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 70), seed=st.integers(0, 99))
def test_pack_and_unpack_are_inverse(rows, columns, seed):
    positive = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) > 0.5
    packed = bits.pack(positive)
    assert packed.shape == (rows, -(-columns // 8))
    assert packed.dtype == torch.uint8
    signs = bits.unpack(packed, columns, torch.float32)
    assert torch.equal(signs, torch.where(positive, 1.0, -1.0))


def test_layout_is_lowest_bit_first_with_padding_set():
    positive = torch.tensor([[1, 0, 0, 0, 0, 0, 0, 0, 0, 1]]).bool()
    assert bits.pack(positive).tolist() == [[0b00000001, 0b11111110]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_unpack_gives_the_type_asked_for(dtype):
    signs = bits.unpack(torch.tensor([[5]], dtype=torch.uint8), 3, dtype)
    assert signs.dtype == dtype
    assert signs.tolist() == [[1, -1, 1]]


def by_hand(key, rows, columns):
    """Draw in Python's integers: word j of row k is a hash of (key, its number), bytes little-endian."""

    def mix(w):
        w = ((w ^ (w >> 16)) * 0x7FEB352D) % 2**32
        w = ((w ^ (w >> 15)) * 0x846CA68B) % 2**32
        return w ^ (w >> 16)

    words = -(-columns // 32)
    return [
        list(
            b"".join(
                mix(mix((k * words + j) ^ (key % 2**32)) ^ (key >> 32)).to_bytes(4, "little") for j in range(words)
            )
        )[: -(-columns // 8)]
        for k in range(rows)
    ]


@settings(max_examples=50, deadline=None)
@given(key=st.integers(0, 2**63 - 1), rows=st.integers(1, 9), columns=st.integers(1, 70))
def test_draw_is_the_documented_hash(key, rows, columns):
    assert bits.draw(torch.tensor(key), rows, columns).tolist() == by_hand(key, rows, columns)


def test_draw_never_changes():
    """Feedback of old checkpoints is made anew from these."""
    key = bits.key_of(7, "classifier.0")
    assert key == 2375659409761212620
    assert key == int.from_bytes(hashlib.sha256(b"7/classifier.0").digest()[:8], "little") >> 1
    assert bits.draw(torch.tensor(key), 2, 40).tolist() == [[151, 83, 192, 34, 19], [31, 151, 122, 220, 16]]


def test_draw_is_balanced_and_uncorrelated():
    signs = bits.unpack(bits.draw(torch.tensor(bits.key_of(0, "x")), 200, 1000), 1000, torch.float64)
    assert signs.mean().abs() < 4 / 200_000**0.5
    assert signs.mean(0).abs().max() < 5 / 200**0.5
    assert signs.mean(1).abs().max() < 5 / 1000**0.5
    correlation = signs @ signs.T / 1000 - torch.eye(200)
    assert correlation.abs().max() < 6 / 1000**0.5


def test_a_row_does_not_depend_on_the_number_of_rows():
    key = torch.tensor(bits.key_of(3, "a"))
    assert torch.equal(bits.draw(key, 9, 50)[:4], bits.draw(key, 4, 50))


def test_keys_differ_by_seed_and_name_and_fit_int64():
    keys = {bits.key_of(seed, name) for seed in range(50) for name in ("0", "1", "0.1", "")}
    assert len(keys) == 200
    assert all(0 <= key < 2**63 for key in keys)
