"""Batches of normalised images, reproducible from any point of any epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchdfa.data.images import ImageSet

# Batch index under which an epoch's order is drawn; batches count from 0.
_ORDER = -1


class Batches:
    """Batches of an in-memory image set, normalised and, if asked for, augmented.

    A batch is a pure function of the seed, the epoch and the batch's index: neither global random state nor earlier
    batches play a part, so that training can resume in the middle of an epoch with the very same batches.

    Args:
        images: Set to go through; it is copied to ``device`` once, as uint8.
        batch_size: Images a batch, over all ranks together.
        mean: Mean of each channel of pixels in [0, 1], shape (C,).
        std: Standard deviation of each channel of pixels in [0, 1], shape (C,), positive.
        shuffle: Whether every epoch has its own random order; otherwise it is the order of the set.
        augment: Whether to flip each image left to right with probability one half and crop it at a random place
            after padding it with black. The padding is 4 pixels for images 32 high, ``max(1, H // 8)`` in general.
            A flipped digit or letter is no longer the same sign: leave this off for such data.
        seed: Seed of order and augmentation.
        drop_last: Whether to leave out a last batch that is not full.
        device: Device of the batches.
        dtype: Floating-point type of the images in a batch.
        channels_last: Whether a batch of images has the memory format ``torch.channels_last``.
        rank: Index of this process among ``world_size``.
        world_size: Number of processes that share each batch. Rank r takes the images ``r::world_size`` of it, so that
            all ranks together see what one process would. A last batch with fewer images than processes leaves some
            ranks an empty one; ``drop_last`` avoids that.

    Raises:
        ValueError: If an argument is out of range or does not fit the images, or if an epoch would have no batch.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        *,
        mean: Tensor,
        std: Tensor,
        shuffle: bool,
        augment: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        channels, height, _ = images.shape
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..{world_size - 1}, found {rank} of world_size {world_size}")
        if batch_size < world_size:
            raise ValueError(f"batch_size must be at least world_size, {world_size}, found {batch_size}")
        if len(images) < (batch_size if drop_last else 1):
            raise ValueError(f"{len(images)} images make no batch of {batch_size} (drop_last={drop_last})")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point type, found {dtype}")
        if mean.shape != (channels,) or std.shape != (channels,):
            found = f"{tuple(mean.shape)} and {tuple(std.shape)}"
            raise ValueError(f"mean and std must have shape ({channels},), found {found}")
        if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
            raise ValueError(f"mean and std must be finite and std positive, found {mean.tolist()} and {std.tolist()}")
        self.batch_size = batch_size
        self._size = len(images)
        self._batches = self._size // batch_size if drop_last else -(-self._size // batch_size)
        self._shuffle = shuffle
        self._padding = max(1, height // 8) if augment else 0
        self._seed = seed
        self._dtype = dtype
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._rank = rank
        self._world_size = world_size
        self._images = images.images.to(device)
        self._labels = images.labels.to(device)
        # (pixel / 255 - mean) / std as one product and one sum.
        scale = 1 / (255 * std.double())
        self._scale = scale.float().view(-1, 1, 1).to(device)
        self._shift = (-mean.double() / std.double()).float().view(-1, 1, 1).to(device)

    def __len__(self) -> int:
        """Return the number of batches in an epoch, the same for every rank."""
        return self._batches

    def count(self, index: int) -> int:
        """Return the number of images in a batch, over all ranks together."""
        return min(self.batch_size, self._size - index * self.batch_size)

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through an epoch, from batch ``start`` on.

        Args:
            number: Index of the epoch, which decides order and augmentation.
            start: Index of the first batch to give, to resume in the middle.

        Returns:
            Iterator over pairs: images of shape (B, C, H, W), normalised, of the chosen dtype; and labels of shape
            (B,), int64. B is the size of this rank's part of the batch.

        Raises:
            ValueError: If ``start`` lies outside the epoch.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"start must lie in 0..{len(self)}, found {start}")
        order = self._order(number)
        return (self._batch(number, index, order) for index in range(start, len(self)))

    def _order(self, number: int) -> Tensor:
        if not self._shuffle:
            return torch.arange(self._size, device=self._labels.device)
        order = torch.randperm(self._size, generator=generator(self._seed, number, _ORDER))
        return order.to(self._labels.device)

    def _batch(self, number: int, index: int, order: Tensor) -> tuple[Tensor, Tensor]:
        everyone = order[index * self.batch_size : (index + 1) * self.batch_size]
        indices = everyone[self._rank :: self._world_size]
        images = self._images.index_select(0, indices)
        if self._padding:
            choices = draw_augmentation(len(everyone), self._padding, generator(self._seed, number, index))
            images = augment(images, self._padding, *(c[self._rank :: self._world_size] for c in choices))
        # Reordering the bytes costs a quarter of reordering the floats.
        images = images.contiguous(memory_format=self._memory_format)
        images = images.float().mul_(self._scale).add_(self._shift).to(self._dtype)
        return images, self._labels.index_select(0, indices)


def generator(*parts: int) -> torch.Generator:
    """Return a source of randomness that depends on the numbers alone."""
    # A hash keeps apart what a sum of seed, epoch and index would mix up.
    digest = hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def draw_augmentation(count: int, padding: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw how to augment images.

    Args:
        count: Number N of images.
        padding: Pixels of padding on every side.
        generator: Source of randomness, on the CPU.

    Returns:
        Top row and left column of the crops in the padded images, each of shape (N,), int64, 0 to ``2 * padding``;
        and whether to flip, of shape (N,), bool.
    """
    top, left = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    return top, left, torch.randint(0, 2, (count,), generator=generator).bool()


def augment(images: Tensor, padding: int, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Pad images with zeros, crop each at its place to its former size, then flip some left to right.

    Args:
        images: Pixels of shape (N, C, H, W), uint8.
        padding: Pixels of padding on every side.
        top: Top row of each crop in the padded image, shape (N,), int64.
        left: Left column of each crop in the padded image, shape (N,), int64.
        flip: Whether to flip each image, shape (N,), bool.

    Returns:
        Pixels of shape (N, C, H, W), uint8.
    """
    *_, height, width = images.shape
    top, left, flip = (choice.to(images.device) for choice in (top, left, flip))
    # A view of all (2 * padding + 1)^2 crops of every image, of which one each is copied.
    crops = pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    images = crops[torch.arange(len(images), device=images.device), :, top, left]
    return torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)
