import pytest
import torch

from torchdfa.feedback import bits, lfsr

ONES = 2**32 - 1


def shifted(state):
    """Shift once, in Python's integers, as the register is drawn in textbooks."""
    parity = (state >> 31 ^ state >> 21 ^ state >> 1 ^ state) & 1
    return (state << 1 | parity) & ONES


def shifts(state, steps):
    for _ in range(steps):
        state = shifted(state)
    return state


@pytest.mark.parametrize("leap", [1, 5, 16, 32, 33])
def test_states_are_those_of_a_register_that_shifts_bit_by_bit(leap):
    seed = 0xDEADBEEF
    found = lfsr.states(torch.tensor(seed), 11, leap).tolist()
    assert found == [shifts(seed, leap * t) for t in range(11)]


def test_the_period_is_full():
    """The matrix of 2³² - 1 shifts is the identity, and that of no proper divisor is: the polynomial is primitive."""
    identity = tuple(1 << j for j in range(32))
    assert lfsr.leap_columns(ONES) == identity
    for prime in (3, 5, 17, 257, 65537):
        assert lfsr.leap_columns(ONES // prime) != identity


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (10, 37), (16, 8), (17, 5), (40, 9)])
def test_draw_reads_whole_states_a_feature(rows, columns):
    key = torch.tensor(bits.key_of(3, "layer"))
    signs = bits.unpack(lfsr.draw(key, rows, columns), columns, torch.float32)
    state = key.item() & ONES
    for h in range(columns):
        for first in range(0, rows, 16):
            part = signs[first : first + 16, h]
            assert part.tolist() == [1.0 if state >> (31 - k) & 1 else -1.0 for k in range(len(part))]
            state = shifts(state, 16)


def test_a_key_of_low_zeros_still_moves():
    assert lfsr.seed_of(torch.tensor(5 << 32)).item() == 1
    assert lfsr.draw(torch.tensor(5 << 32), 8, 64).unique().numel() > 10


@pytest.mark.parametrize("leap", [1, 2, 4, 8])
def test_a_smaller_leap_reads_the_same_signs(leap):
    seed = torch.tensor(99)
    wide = lfsr.signs(seed, 16, 12)
    assert torch.equal(lfsr.signs(seed, 16, 12, leap), wide)


def test_draw_never_changes():
    """Feedback of old checkpoints, and of chips, is made anew from these."""
    drawn = lfsr.draw(torch.tensor(bits.key_of(7, "classifier.0")), 2, 40)
    assert drawn.tolist() == [[22, 47, 42, 194, 233], [129, 87, 161, 119, 71]]


def test_draw_is_balanced_and_uncorrelated():
    signs = bits.unpack(lfsr.draw(torch.tensor(bits.key_of(0, "x")), 200, 1000), 1000, torch.float64)
    assert signs.mean().abs() < 4 / 200_000**0.5
    correlation = signs @ signs.T / 1000 - torch.eye(200)
    assert correlation.abs().max() < 6 / 1000**0.5
