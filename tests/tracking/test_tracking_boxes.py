import math

import pytest
import torch

from torchdfa.tracking import BoxError
from torchdfa.tracking.boxes import check_box, inside, overlaps
from torchdfa.tracking.samples import Spread, draw, draw_overlapping

SIZE = (320, 240)
BOX = torch.tensor([100.0, 80.0, 40.0, 20.0])


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(1)


def test_overlap_of_shifted_boxes():
    boxes = torch.tensor([[0.0, 0, 4, 4], [2.0, 0, 4, 4], [4.0, 0, 4, 4], [1.0, 1, 2, 2]])
    found = overlaps(boxes, torch.tensor([0.0, 0, 4, 4]))
    torch.testing.assert_close(found, torch.tensor([1, 8 / 24, 0, 4 / 16]))


@pytest.mark.parametrize("box, expected", [
    ((10, 20, 30, 40), (10, 20, 30, 40)),
    ((-5, -5, 30, 40), (0, 0, 25, 35)),
    ((300, 200, 100, 100), (300, 200, 20, 40)),
])  # fmt: skip
def test_a_box_is_cut_at_the_frame(box, expected):
    assert check_box(box, *SIZE).tolist() == list(expected)


@pytest.mark.parametrize("box, words", [
    ((10, 20, 0, 5), "has no size"),
    ((10, 20, 5, -5), "has no size"),
    ((400, 20, 30, 30), "outside the frame, which is 320 wide and 240 high"),
    ((-40, 20, 30, 30), "outside the frame"),
    ((319, 20, 30, 30), "outside the frame"),
    ((10, 20, 2, 30), "too small to follow"),
    ((10, 20, math.nan, 30), "four numbers"),
    ((10, 20, 30), "four numbers"),
    ("abcd", "four numbers"),
    (7, "four numbers"),
])  # fmt: skip
def test_boxes_that_are_none_are_refused(box, words):
    with pytest.raises(BoxError, match=words):
        check_box(box, *SIZE)


def test_inside_moves_centres_and_keeps_sizes():
    found = inside(torch.tensor([[-50.0, 10, 20, 20], [310.0, 230, 40, 40], [5.0, 5, 1, 500]]), *SIZE)
    centre = found[:, :2] + found[:, 2:] / 2
    assert found[:, 2:].tolist() == [[20, 20], [40, 40], [3, 240]]
    assert centre.tolist() == [[0, 20], [320, 240], [5.5, 240]]


def test_gaussian_draws_have_the_published_spread(generator):
    boxes = draw(BOX, 20000, Spread(kind="gaussian", shift=0.6, scale=1.05), SIZE, generator)
    shift = (boxes[:, :2] + boxes[:, 2:] / 2 - BOX[:2] - BOX[2:] / 2) / (0.6 * 30)
    # N(0, 0.5²) cut at ±1: 4.55 % of it at the ends, deviation 0.479.
    assert shift.abs().max() <= 1 + 1e-5
    assert (shift.abs() > 0.9999).float().mean().item() == pytest.approx(0.0455, abs=0.005)
    assert shift.std().item() == pytest.approx(0.479, abs=0.01)
    growth = (boxes[:, 2] / BOX[2]).log() / math.log(1.05)
    assert growth.abs().max() <= 1 + 1e-4 and growth.std().item() == pytest.approx(0.479, abs=0.01)
    torch.testing.assert_close(boxes[:, 2] / boxes[:, 3], torch.full((20000,), 2.0))


def test_uniform_and_whole_draws(generator):
    near = draw(BOX, 5000, Spread(kind="uniform", shift=1.0, scale=1.6, aspect=1.1), SIZE, generator)
    shift = (near[:, :2] + near[:, 2:] / 2 - BOX[:2] - BOX[2:] / 2) / 30
    assert 0.97 < shift.max() <= 1 + 1e-5 and shift.std().item() == pytest.approx(3**-0.5, abs=0.02)
    shape = near[:, 2] / near[:, 3] / 2
    assert 1.15 < shape.max() <= 1.21 + 1e-4
    whole = draw(BOX, 5000, Spread(kind="whole", scale=1.6), SIZE, generator)
    centre = whole[:, :2] + whole[:, 2:] / 2
    assert centre.min() < 5 and centre[:, 0].max() > 315 and centre[:, 1].max() > 235


@pytest.mark.parametrize("shift, above, below", [(0.3, 0.7, 1.0), (1.0, 0.0, 0.3)])
def test_overlapping_draws_keep_their_bounds(generator, shift, above, below):
    spread = Spread(kind="uniform", shift=shift, scale=1.3)
    boxes = draw_overlapping(BOX, 50, spread, SIZE, generator, above=above, below=below)
    overlap = overlaps(boxes, BOX)
    assert len(boxes) == 50 and overlap.min() >= above and overlap.max() <= below


def test_too_rare_draws_end(generator):
    boxes = draw_overlapping(BOX, 50, Spread(kind="uniform", shift=0.0), SIZE, generator, below=0.3)
    assert boxes.shape == (0, 4)


def test_draws_repeat_with_the_seed():
    draws = [draw(BOX, 5, Spread(kind="gaussian", shift=1), SIZE, torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
