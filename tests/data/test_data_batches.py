import random

import numpy as np
import pytest
import torch

from torchdfa.data import Batches, ImageSet
from torchdfa.data.batches import augment, draw_augmentation

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])


def make(images, batch_size=7, **options):
    channels = images.shape[0]
    return Batches(images, batch_size, **({"mean": MEAN[:channels], "std": STD[:channels], "shuffle": True} | options))


def equal(first, second):
    """Whether two lists of batches are the same, bit for bit."""
    return len(first) == len(second) and all(
        torch.equal(x, v) and torch.equal(y, w) for (x, y), (v, w) in zip(first, second, strict=True)
    )


def pixels(x):
    """Undo the normalisation."""
    return (x.float() * STD.view(-1, 1, 1) + MEAN.view(-1, 1, 1)).mul(255).round().to(torch.uint8)


def test_normalises_every_image_once_in_order(make_set):
    images = make_set([10, 10])
    batches = list(make(images, shuffle=False).epoch(0))
    assert [len(y) for _, y in batches] == [7, 7, 6]
    x = torch.cat([x for x, _ in batches])
    expected = (images.images.float() / 255 - MEAN.view(-1, 1, 1)) / STD.view(-1, 1, 1)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, expected)
    assert torch.equal(torch.cat([y for _, y in batches]), images.labels)


def test_shuffled_epochs_hold_every_image_once_in_other_orders(make_set):
    images = make_set([10, 10])
    expected = sorted(
        (image.numpy().tobytes(), int(label)) for image, label in zip(images.images, images.labels, strict=True)
    )
    orders = set()
    for seed, number in ((0, 0), (0, 1), (1, 0)):
        pairs = [
            (image.numpy().tobytes(), int(label))
            for x, y in make(images, seed=seed).epoch(number)
            for image, label in zip(pixels(x), y, strict=True)
        ]
        assert sorted(pairs) == expected
        orders.add(tuple(pairs))
    assert len(orders) == 3


@pytest.mark.parametrize("start", [0, 1, 2, 3])
@pytest.mark.parametrize("augmented", [False, True])
def test_resumes_in_the_middle_of_an_epoch(make_set, start, augmented):
    images = make_set([10, 10])
    whole = list(make(images, augment=augmented).epoch(4))
    # Another object, another global random state and no earlier batches.
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(99)
    resumed = list(make(images, augment=augmented).epoch(4, start))
    assert len(whole) == 3
    assert equal(resumed, whole[start:])


def test_batches_do_not_touch_or_follow_global_random_state(make_set):
    batches = make(make_set([10, 10]), augment=True)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = list(batches.epoch(0))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    # Two epochs gone through at the same time do not disturb one another.
    both = list(zip(batches.epoch(0), batches.epoch(1), strict=True))
    assert equal([pair[0] for pair in both], first)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_together_see_the_batches_of_one_process(make_set, world_size, drop_last):
    images = make_set([10, 10])
    options = {"augment": True, "drop_last": drop_last}
    whole = list(make(images, **options).epoch(2))
    ranks = [list(make(images, rank=r, world_size=world_size, **options).epoch(2)) for r in range(world_size)]
    assert {len(rank) for rank in ranks} == {len(whole)}
    for index, (x, y) in enumerate(whole):
        for r in range(world_size):
            assert equal([ranks[r][index]], [(x[r::world_size], y[r::world_size])])


def test_a_last_batch_smaller_than_the_world(make_set):
    images = make_set([4, 4])
    parts = [list(make(images, rank=r, world_size=2, augment=True).epoch(0))[-1] for r in range(2)]
    assert [x.shape for x, _ in parts] == [(1, 3, 8, 8), (0, 3, 8, 8)]


@pytest.mark.parametrize(("drop_last", "length"), [(False, 3), (True, 2)])
def test_length(make_set, drop_last, length):
    batches = make(make_set([10, 10]), drop_last=drop_last)
    assert len(batches) == len(list(batches.epoch(0))) == length
    assert len(make(make_set([7, 7]), drop_last=drop_last)) == 2


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_memory_format_and_dtype(make_set, augmented, channels):
    images = make_set([10], shape=(channels, 8, 6))
    plain = list(make(images, augment=augmented).epoch(0))
    last = list(make(images, augment=augmented, channels_last=True).epoch(0))
    half = list(make(images, augment=augmented, dtype=torch.bfloat16).epoch(0))
    assert equal(plain, last)
    for (x, _), (z, _), (h, _) in zip(plain, last, half, strict=True):
        assert x.is_contiguous() and z.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(h, x.bfloat16())


def naive(image, padding, top, left, flip):
    """Pad, crop and flip one image, pixel by pixel."""
    _, height, width = image.shape
    result = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            source_row = row + top - padding
            source_column = (width - 1 - column if flip else column) + left - padding
            if 0 <= source_row < height and 0 <= source_column < width:
                result[:, row, column] = image[:, source_row, source_column]
    return result


@pytest.mark.parametrize(("shape", "padding"), [((3, 8, 8), 1), ((1, 16, 9), 2)])
def test_augmentation_equals_a_naive_reference(make_set, shape, padding):
    images = make_set([12], shape=shape).images
    choices = draw_augmentation(12, padding, torch.Generator().manual_seed(0))
    augmented = augment(images, padding, *choices)
    assert augmented.dtype == torch.uint8
    for image, result, top, left, flip in zip(images, augmented, *(c.tolist() for c in choices), strict=True):
        assert torch.equal(result, naive(image, padding, top, left, flip))


@pytest.mark.parametrize(("height", "padding"), [(32, 4), (64, 8), (8, 1), (4, 1)])
def test_augmented_batches_are_crops_of_the_padded_images(make_set, height, padding):
    images = make_set([6], shape=(3, height, height))
    augmented = pixels(torch.cat([x for x, _ in make(images, shuffle=False, augment=True).epoch(0)]))
    offsets = range(2 * padding + 1)
    for image, result in zip(images.images, augmented, strict=True):
        candidates = (
            torch.equal(result, augment(image[None], padding, *(torch.tensor([c]) for c in (top, left, flip)))[0])
            for top in offsets
            for left in offsets
            for flip in (False, True)
        )
        assert any(candidates)


@pytest.mark.parametrize(("height", "padding"), [(32, 4), (40, 5), (8, 1), (4, 1)])
def test_padding_follows_the_height_and_is_black(height, padding):
    white = ImageSet(torch.full((80, 3, height, height), 255, dtype=torch.uint8), torch.zeros(80).long(), ("white",))
    x = pixels(torch.cat([x for x, _ in make(white, augment=True).epoch(0)]))
    assert x.unique().tolist() == [0, 255]
    assert [int((x == 0).all(dim).sum(-1).max()) for dim in ((1, 2), (1, 3))] == [padding, padding]


def test_augmentation_takes_every_choice_about_equally_often():
    top, left, flip = draw_augmentation(9000, 4, torch.Generator().manual_seed(0))
    for choice in (top, left):
        assert choice.min() == 0 and choice.max() == 8
        assert (torch.bincount(choice) - 1000).abs().max() < 150
    assert abs(flip.float().mean() - 0.5) < 0.03
    assert abs(torch.corrcoef(torch.stack([top.float(), left.float(), flip.float()])) - torch.eye(3)).max() < 0.05


def test_augmentation_differs_between_epochs_and_batches(make_set):
    one = make_set([1], shape=(3, 32, 32))
    images = one.take([0] * 8)
    batches = make(images, batch_size=4, augment=True)
    results = [x for number in range(3) for x, _ in batches.epoch(number)]
    assert len({x.numpy().tobytes() for x in results}) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 1, "world_size": 2}, "at least world_size, 2, found 1"),
        ({"rank": 1}, "rank must lie in"),
        ({"rank": -1}, "rank must lie in"),
        ({"batch_size": 21, "drop_last": True}, "20 images make no batch of 21"),
        ({"mean": torch.zeros(1)}, r"shape \(3,\)"),
        ({"std": torch.tensor(1.0)}, r"shape \(3,\)"),
        ({"std": torch.tensor([1.0, 0.0, 1.0])}, "std positive"),
        ({"mean": torch.tensor([1.0, float("nan"), 1.0])}, "finite"),
        ({"dtype": torch.int64}, "floating-point"),
    ],
)
def test_arguments_are_checked(make_set, options, message):
    with pytest.raises(ValueError, match=message):
        make(make_set([10, 10]), **options)


@pytest.mark.parametrize("start", [-1, 4])
def test_start_is_checked_at_the_call(make_set, start):
    with pytest.raises(ValueError, match=rf"0\.\.3, found {start}"):
        make(make_set([10, 10])).epoch(0, start)


def test_no_batches_of_nothing(make_set):
    with pytest.raises(ValueError, match="0 images"):
        make(make_set([1]).take([]))
