import zlib

import numpy as np
import pytest
from PIL import Image

from torchdfa.data import DataError, load


def write_image(path, size=(6, 5), value=None, mode="RGB"):
    """Write an image of ``size`` (width, height) and return its pixels (H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    generator = np.random.default_rng(zlib.crc32("/".join(path.parts[-3:]).encode()))
    pixels = generator.integers(0, 256, shape, dtype=np.uint8) if value is None else np.full(shape, value, np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def tree(tmp_path):
    """Write a small image folder; return its path and its pixels by relative path."""
    names = ["train/cat/1.png", "train/cat/sub/2.png", "train/ant/1.png", "test/ant/1.png", "test/cat/1.bmp"]
    return tmp_path, {name: write_image(tmp_path / name) for name in names}


@pytest.mark.parametrize("prefix", ["folder:", ""])
def test_reads_an_image_folder(tree, prefix):
    path, pixels = tree
    dataset = load(f"{prefix}{path}")
    assert dataset.train.classes == ("ant", "cat")
    assert dataset.train.labels.tolist() == [0, 1, 1] and dataset.test.labels.tolist() == [0, 1]
    assert dataset.train.shape == (3, 5, 6)
    for images, names in (
        (dataset.train, ["train/ant/1.png", "train/cat/1.png", "train/cat/sub/2.png"]),
        (dataset.test, ["test/ant/1.png", "test/cat/1.bmp"]),
    ):
        for image, name in zip(images.images, names, strict=True):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels[name])


def test_val_stands_in_for_test(tree):
    path, _ = tree
    (path / "test").rename(path / "val")
    assert len(load(f"folder:{path}").test) == 2


def test_grey_images_become_colour_and_other_files_are_passed_over(tree):
    path, _ = tree
    write_image(path / "train/ant/2.PNG", value=9, mode="L")
    (path / "train/ant/notes.txt").write_text("no image")
    (path / "train/ant/.hidden.png").write_text("no image")
    (path / "train/.checkpoints").mkdir()
    train = load(f"folder:{path}").train
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert (train.images[1] == 9).all()


def test_sizes_must_agree_unless_resized(tree):
    path, _ = tree
    odd = path / "test/cat/2.png"
    write_image(odd, size=(9, 4), value=50)
    with pytest.raises(DataError, match=r"image of 9 x 4 pixels \(width x height\), expected 6 x 5") as caught:
        load(f"folder:{path}")
    assert str(odd) in str(caught.value) and "image_size" in str(caught.value)
    dataset = load(f"folder:{path}", image_size=7)
    assert dataset.train.shape == dataset.test.shape == (3, 7, 7)
    assert (dataset.test.images[2] == 50).all()


@pytest.mark.parametrize("keep", [0, 10, 45, -40])
def test_damaged_image_is_refused(tree, keep):
    path, _ = tree
    image = path / "train/cat/1.png"
    image.write_bytes(image.read_bytes()[:keep])
    with pytest.raises(DataError, match="cannot be decoded") as caught:
        load(f"folder:{path}")
    assert str(image) in str(caught.value)


def test_empty_class_folder_is_refused(tree):
    path, _ = tree
    (path / "train/bee").mkdir()
    (path / "test/bee").mkdir()
    with pytest.raises(DataError, match="bee: found no images"):
        load(f"folder:{path}")


def test_classes_of_both_parts_must_agree(tree):
    path, _ = tree
    write_image(path / "test/bee/1.png")
    with pytest.raises(DataError, match="only one of the two has bee"):
        load(f"folder:{path}")


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(DataError, match="train: found no such folder"):
        load(f"folder:{tmp_path}")
    with pytest.raises(DataError, match="train: found no such folder"):
        load(f"folder:{tmp_path / 'nowhere'}")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="test: found no such folder"):
        load(f"folder:{tmp_path}")
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="train: found no folders"):
        load(f"folder:{tmp_path}")
