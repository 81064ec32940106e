"""In-memory sets of labelled images, and the ways to choose from and measure them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from torchdfa.data.errors import DataError

# Images handled at once where a whole set would need a large temporary copy.
CHUNK = 4096


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images of one size, held in memory.

    Attributes:
        images: Pixels of shape (N, C, H, W), uint8, 0 to 255.
        labels: Class indices of shape (N,), int64, each in ``range(len(classes))``.
        classes: Name of every class, in the order of the indices.

    Raises:
        DataError: If a shape, a dtype or a label does not fit this description.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or 0 in self.images.shape[1:]:
            raise DataError(f"images must be uint8 of shape (N, C, H, W), found {_describe(self.images)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(f"labels must be int64 of shape ({len(self.images)},), found {_describe(self.labels)}")
        if not self.classes:
            raise DataError("classes must name at least one class, found none")
        if len(self.labels):
            low, high = (int(bound) for bound in self.labels.aminmax())
            if low < 0 or high >= len(self.classes):
                raise DataError(f"labels must lie in 0..{len(self.classes) - 1}, found {low}..{high}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, whether or not each of them has an image here."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def take(self, indices: Tensor | Sequence[int]) -> ImageSet:
        """Return the images at ``indices``, in that order.

        Args:
            indices: Positions in this set, shape (M,), integer.

        Raises:
            IndexError: If an index lies outside this set.
        """
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.labels.device)
        return ImageSet(self.images[index], self.labels[index], self.classes)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named pair of training and test images with the same classes and image shape.

    Attributes:
        name: Name under which the data was loaded.
        train: Images to train on.
        test: Images to test on.

    Raises:
        DataError: If the two sets differ in their classes or image shape.
    """

    name: str
    train: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        if self.train.classes != self.test.classes:
            raise DataError(f"{self.name}: training and test images must have the same classes")
        if self.train.shape != self.test.shape:
            raise DataError(
                f"{self.name}: found training images of shape (C, H, W) = {self.train.shape} and test images of "
                f"{self.test.shape}, expected equal shapes"
            )


def subset(images: ImageSet, size: int, seed: int) -> ImageSet:
    """Draw a class-balanced random subset: the counts of any two classes differ by at most one.

    The draw depends on the arguments alone, never on global random state. Images keep their original order.

    Args:
        images: Set to draw from.
        size: Number of images to draw, 1 to ``len(images)``.
        seed: Seed of the draw.

    Raises:
        DataError: If ``size`` is out of range or a class has too few images.
    """
    if not 1 <= size <= len(images):
        raise DataError(f"a subset's size must lie in 1..{len(images)}, found {size}")
    counts = _class_counts(images)
    each, extra = divmod(size, images.num_classes)
    generator = torch.Generator().manual_seed(seed)
    # Which classes give one image more is drawn as well, so that no class is favoured by its index.
    order = torch.randperm(images.num_classes, generator=generator)
    givers = order[counts[order] > each][:extra]
    if int(counts.min()) < each or len(givers) < extra:
        smallest = int(counts.argmin())
        raise DataError(
            f"a class-balanced subset of {size} images needs {each + (extra > 0)} of nearly every one of "
            f"{images.num_classes} classes; class {images.classes[smallest]!r} has {int(counts[smallest])}; "
            f"{int(counts.min()) * images.num_classes} images or fewer are always possible"
        )
    wanted = torch.full_like(counts, each)
    wanted[givers] += 1
    return images.take(_draw(images, wanted, generator)[0])


def split(images: ImageSet, validation: int | float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split off random validation images, each class in proportion to its size.

    The split depends on the arguments alone, never on global random state. Images keep their original order.

    Args:
        images: Set to split.
        validation: Number of validation images (int), or their fraction of the set (float between 0 and 1).
        seed: Seed of the draw.

    Returns:
        The training and the validation images, which together are the whole set.

    Raises:
        DataError: If either part would be empty.
    """
    size = round(validation * len(images)) if isinstance(validation, float) else validation
    if isinstance(validation, float) and not 0 < validation < 1:
        raise DataError(f"a validation fraction must lie between 0 and 1, found {validation}; pass an int for a count")
    if not 1 <= size < len(images):
        raise DataError(f"validation images must number 1..{len(images) - 1} of {len(images)}, found {size}")
    # Largest-remainder rounding gives exactly `size` images, each class within one of its exact share.
    shares = _class_counts(images) * size
    wanted = shares // len(images)
    remainders = shares % len(images)
    wanted[remainders.argsort(descending=True, stable=True)[: size - int(wanted.sum())]] += 1
    drawn, rest = _draw(images, wanted, torch.Generator().manual_seed(seed))
    return images.take(rest), images.take(drawn)


def statistics(images: ImageSet) -> tuple[Tensor, Tensor]:
    """Measure the mean and standard deviation of every channel, with pixels scaled to [0, 1].

    Returns:
        Mean of shape (C,) and population standard deviation of shape (C,), both float32.

    Raises:
        DataError: If the set has no images.
    """
    if not len(images):
        raise DataError("statistics need at least one image, found none")
    # A pixel has 256 values, so that a histogram gives both moments without a rounding error per pixel.
    histogram = torch.zeros(images.shape[0], 256, dtype=torch.float64)
    for part in images.images.split(CHUNK):
        for channel, counts in enumerate(histogram):
            counts += torch.bincount(part[:, channel].flatten(), minlength=256).cpu()
    values = torch.linspace(0, 1, 256, dtype=torch.float64)
    weights = histogram / histogram.sum(1, keepdim=True)
    mean = weights @ values
    variance = (weights * (values - mean[:, None]) ** 2).sum(1)
    return mean.float(), variance.sqrt().float()


def resize(images: Tensor, image_size: int) -> Tensor:
    """Resize images to squares by antialiased bilinear interpolation.

    Args:
        images: Pixels of shape (N, C, H, W), uint8.
        image_size: Side S of the result, in pixels.

    Returns:
        Pixels of shape (N, C, S, S), uint8.

    Raises:
        DataError: If ``image_size`` is not positive.
    """
    if image_size < 1:
        raise DataError(f"image_size must be a positive number of pixels, found {image_size}")
    size = (image_size, image_size)
    if images.shape[-2:] == size:
        return images
    parts = [interpolate(part, size, mode="bilinear", antialias=True) for part in images.split(CHUNK)]
    return torch.cat(parts).contiguous()


def _class_counts(images: ImageSet) -> Tensor:
    return torch.bincount(images.labels.cpu(), minlength=images.num_classes)


def _draw(images: ImageSet, wanted: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the sorted indices of ``wanted[c]`` random images of every class c, and those of all others."""
    chosen = torch.zeros(len(images), dtype=torch.bool)
    labels = images.labels.cpu()
    for label, number in enumerate(wanted.tolist()):
        members = (labels == label).nonzero().flatten()
        chosen[members[torch.randperm(len(members), generator=generator)[:number]]] = True
    return chosen.nonzero().flatten(), (~chosen).nonzero().flatten()


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
