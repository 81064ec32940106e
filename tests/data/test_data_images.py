import pytest
import torch

from torchdfa.data import DataError, Dataset, ImageSet, split, statistics, subset
from torchdfa.data.images import resize


def identities(images):
    """Contents of the images, as a set; random images are all different."""
    return {image.numpy().tobytes() for image in images.images}


def counts(images):
    return torch.bincount(images.labels, minlength=images.num_classes).tolist()


def same(first, second):
    return torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "message"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), ("a",), "float32"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), ("a",), r"\(2, 4, 4\)"),
        (torch.zeros(2, 1, 0, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), ("a",), r"\(2, 1, 0, 4\)"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int32), ("a",), "int32"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), ("a",), r"\(3,\)"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ("a",), r"0\.\.0, found 0\.\.1"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, -1]), ("a",), r"-1\.\.0"),
        (torch.zeros(0, 1, 4, 4, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), (), "at least one class"),
    ],
)
def test_image_set_refuses_what_does_not_fit(images, labels, classes, message):
    with pytest.raises(DataError, match=message):
        ImageSet(images, labels, classes)


def test_image_set_properties_and_take(make_set):
    images = make_set([3, 2], shape=(3, 4, 5))
    assert (len(images), images.num_classes, images.shape) == (5, 2, (3, 4, 5))
    taken = images.take([4, 0, 4])
    assert torch.equal(taken.images, images.images[[4, 0, 4]])
    assert taken.labels.tolist() == [images.labels[i].item() for i in (4, 0, 4)]
    assert len(images.take([])) == 0
    with pytest.raises(IndexError):
        images.take([5])


def test_dataset_needs_equal_classes_and_shapes(make_set):
    with pytest.raises(DataError, match="same classes"):
        Dataset("d", make_set([1, 1]), make_set([1]))
    with pytest.raises(DataError, match=r"\(3, 8, 8\).*\(1, 8, 8\)"):
        Dataset("d", make_set([1]), make_set([1], shape=(1, 8, 8)))


@pytest.mark.parametrize("size", [1, 4, 7, 20, 33, 40])
def test_subset_is_balanced_and_drawn_without_repetition(make_set, size):
    images = make_set([10, 12, 30, 10])
    drawn = subset(images, size, seed=3)
    assert len(drawn) == len(identities(drawn)) == size
    assert identities(drawn) <= identities(images)
    assert max(counts(drawn)) - min(counts(drawn)) <= 1


def test_subset_keeps_labels_with_images(make_set):
    images = make_set([9, 9])
    label_of = {image.numpy().tobytes(): int(label) for image, label in zip(images.images, images.labels, strict=True)}
    drawn = subset(images, 8, seed=0)
    assert [label_of[image.numpy().tobytes()] for image in drawn.images] == drawn.labels.tolist()


def test_subset_depends_on_its_seed_alone(make_set):
    images = make_set([20, 20, 20])
    torch.manual_seed(1)
    first = subset(images, 10, seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = subset(images, 10, seed=5)
    assert same(first, second)
    assert torch.equal(state, torch.get_rng_state())
    assert not same(first, subset(images, 10, seed=6))


def test_subset_draws_which_class_gives_more(make_set):
    images = make_set([5] * 8)
    assert len({tuple(counts(subset(images, 9, seed))) for seed in range(12)}) > 2


@pytest.mark.parametrize("size", [0, -1, 43])
def test_subset_size_out_of_range(make_set, size):
    with pytest.raises(DataError, match=rf"1\.\.42, found {size}"):
        subset(make_set([40, 2]), size, seed=0)


def test_subset_says_which_class_is_too_small(make_set):
    assert counts(subset(make_set([40, 2]), 5, seed=0)) == [3, 2]
    with pytest.raises(DataError, match="'class 1' has 2; 4 images"):
        subset(make_set([40, 2]), 6, seed=0)


@pytest.mark.parametrize(("validation", "size"), [(1, 1), (13, 13), (0.25, 18), (0.1, 7), (69, 69)])
def test_split_is_disjoint_complete_and_stratified(make_set, validation, size):
    images = make_set([10, 20, 30, 10])
    train, held_out = split(images, validation, seed=1)
    assert (len(train), len(held_out)) == (70 - size, size)
    assert not identities(train) & identities(held_out)
    assert identities(train) | identities(held_out) == identities(images)
    for total, found in zip(counts(images), counts(held_out), strict=True):
        assert abs(found - total * size / 70) < 1


def test_split_depends_on_its_seed_alone(make_set):
    images = make_set([20, 20])
    torch.manual_seed(1)
    first = split(images, 10, seed=5)
    torch.manual_seed(2)
    second = split(images, 10, seed=5)
    assert all(map(same, first, second))
    assert not same(first[1], split(images, 10, seed=6)[1])


@pytest.mark.parametrize("validation", [0, 10, 11, -1, 0.0, 1.0, 1.5, 0.01])
def test_split_needs_two_parts(make_set, validation):
    with pytest.raises(DataError, match="validation"):
        split(make_set([5, 5]), validation, seed=0)


def test_statistics_equal_those_of_the_scaled_pixels(make_set, monkeypatch):
    monkeypatch.setattr("torchdfa.data.images.CHUNK", 4)
    images = make_set([5, 6])
    mean, std = statistics(images)
    pixels = images.images.double() / 255
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean, pixels.mean((0, 2, 3)).float())
    torch.testing.assert_close(std, pixels.std((0, 2, 3), correction=0).float())
    with pytest.raises(DataError, match="at least one"):
        statistics(images.take([]))


def test_resize(make_set, monkeypatch):
    monkeypatch.setattr("torchdfa.data.images.CHUNK", 4)
    images = make_set([10]).images
    assert resize(images, 8) is images
    halved = resize(images, 4)
    assert halved.shape == (10, 3, 4, 4) and halved.dtype == torch.uint8
    # Antialiasing keeps the mean, which picking every other pixel would not.
    assert (halved.float().mean((2, 3)) - images.float().mean((2, 3))).abs().max() < 6
    assert torch.equal(resize(torch.full((1, 1, 4, 6), 77, dtype=torch.uint8), 9), torch.full((1, 1, 9, 9), 77))
    with pytest.raises(DataError, match="positive"):
        resize(images, 0)
