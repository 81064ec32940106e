"""What the integers cost: a head trained as the chip does it, beside the same head in floating point."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from torchdfa.hardware.model.head import FloatHead, HeadConfig, IntegerHead, Method
from torchdfa.hardware.rows import Trained
from torchdfa.settings import demand, one_of, positive, some_of, whole

Data = Literal["digits", "cifar10-features"]
# Of the integers: guard bits of a stored weight, and how updates are rounded.
ARITHMETICS = {
    "float64": None,
    "16 bits": (0, "nearest"),
    "16 bits, stochastic": (0, "stochastic"),
    "16 bits, weights 24": (8, "nearest"),
}


@dataclass(frozen=True, kw_only=True)
class AccuracyConfig:
    """The heads that are trained.

    Args:
        data: ``digits``: pixels of handwritten digits. ``cifar10-features``: what a convolutional trunk, trained first
            with a head of its own, makes of CIFAR-10.
        hidden: Widths of the hidden layers, each at least 1.
        epochs: Passes over the data, in batches of 32; at least 1.
        lr: Learning rate of every arithmetic alike, above 0.
        seeds: Of weights and order; at least 1.
        train_size: Images of CIFAR-10, at least 32.
        trunk_epochs: Passes that train the trunk.
        data_root: Where data sets lie.
        methods: Of learning.

    Raises:
        ValueError: The data or a method are unknown, or a number is out of range.
    """

    data: Data = "digits"
    hidden: tuple[int, ...] = (128, 128)
    epochs: int = 10
    lr: float = 0.02
    seeds: int = 3
    train_size: int = 10000
    trunk_epochs: int = 5
    data_root: str | None = None
    methods: tuple[Method, ...] = get_args(Method)

    def __post_init__(self) -> None:
        demand(
            self,
            data=one_of(self.data, get_args(Data)),
            hidden=(min(self.hidden, default=1) >= 1, "widths of at least 1"),
            epochs=whole(self.epochs),
            lr=positive(self.lr),
            seeds=whole(self.seeds),
            train_size=whole(self.train_size, least=32),
            methods=some_of(self.methods, get_args(Method)),
        )

    @property
    def settings(self) -> str:
        """What all heads have in common, in words."""
        hidden = " × ".join(map(str, self.hidden))
        common = f"hidden {hidden}, {self.epochs} epochs, rate {self.lr:g}"
        if self.data == "digits":
            return common
        return f"{common}, {self.train_size:,} images, trunk {self.trunk_epochs} epochs"


@dataclass(frozen=True)
class Examples:
    """Training and test examples, real, rows."""

    x: NDArray[np.float64]
    y: NDArray[np.int64]
    test_x: NDArray[np.float64]
    test_y: NDArray[np.int64]


def examples(config: AccuracyConfig) -> Examples:
    """Load the digits, or train a trunk and pass CIFAR-10 through it."""
    from torchdfa.data import load, statistics, subset

    data = load("digits" if config.data == "digits" else "cifar10", config.data_root)
    if config.data == "digits":
        parts = [(s.images.flatten(1).double().numpy() / 255, s.labels.numpy()) for s in (data.train, data.test)]
    else:
        from torchdfa.models import VGG16
        from torchdfa.training import TrainConfig, fit

        recipe = TrainConfig(
            data="cifar10",
            data_root=config.data_root,
            train_size=config.train_size,
            model=VGG16(width=0.25),
            epochs=config.trunk_epochs,
            clip=None,
        )
        trunk = fit(recipe, dataset=data, progress=False).model.features.float().eval()  # type: ignore[union-attr]
        train = subset(data.train, config.train_size, recipe.seed)
        mean, std = (x.view(-1, 1, 1) for x in statistics(train))
        parts = []
        with torch.no_grad():
            for s in (train, data.test):
                found = [trunk((images / 255 - mean) / std) for images in s.images.split(500)]
                parts.append((torch.cat(found).double().numpy(), s.labels.numpy()))
    scale = np.abs(parts[0][0]).mean() * 2
    (x, y), (test_x, test_y) = parts
    return Examples(x / scale, y, test_x / scale, test_y)


def train_heads(
    config: AccuracyConfig, data: Examples, arithmetics: Sequence[str] = tuple(ARITHMETICS)
) -> Iterator[Trained]:
    """Train the same head, from the same weights and in the same order, in every arithmetic."""
    for method in config.methods:
        for seed in range(config.seeds):
            for name in arithmetics:
                start = time.monotonic()
                head = _train(config, data, method, name, seed)
                test = 100 * float((head.predict(data.test_x) == data.test_y).mean())
                train = 100 * float((head.predict(data.x) == data.y).mean())
                seconds = time.monotonic() - start
                yield Trained(config.data, method, name, config.settings, seed, test, train, seconds)


def _train(
    config: AccuracyConfig, data: Examples, method: Method, arithmetic: str, seed: int
) -> FloatHead | IntegerHead:
    rng = np.random.default_rng(seed)
    widths = [data.x.shape[1], *config.hidden, int(data.y.max()) + 1]
    layers = [(rng.normal(0, (2 / a) ** 0.5, (b, a)), np.zeros(b)) for a, b in pairwise(widths)]
    settings = ARITHMETICS[arithmetic]
    if settings is None:
        head = FloatHead(layers, HeadConfig(method=method, lr=config.lr, seed=seed))
    else:
        guard, rounding = settings
        head = IntegerHead(
            layers, HeadConfig(method=method, lr=config.lr, seed=seed, guard=guard, rounding=rounding)  # type: ignore[arg-type]
        )  # fmt: skip
    for _ in range(config.epochs):
        order = rng.permutation(len(data.x))
        for first in range(0, len(order) - 31, 32):
            batch = order[first : first + 32]
            head.step(data.x[batch], data.y[batch])
    return head
