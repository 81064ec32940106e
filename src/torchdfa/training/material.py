"""What a run works on: the network, and the batches of its data, made from the configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from torchdfa.data import Batches, Corpus, DataError, Dataset, ImageSet, TextBatches, split, statistics, subset
from torchdfa.language import LanguageModel
from torchdfa.models import Network
from torchdfa.training.config import TrainConfig
from torchdfa.training.layout import lay_out

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_EVALUATION_BATCH = 500
_EVALUATION_STREAMS = 50


class AnyBatches(Protocol):
    """Batches of images or of a text."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        ...

    def count(self, index: int) -> int:
        """Return the number of targets in a batch, over all processes together."""
        ...

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through the inputs and the targets, shape (M,), of an epoch, from batch ``start`` on."""
        ...


@dataclass(frozen=True)
class Material:
    """What a run works on.

    Attributes:
        network: Plain, on no device yet.
        head: Name of the module that is its head; all else is the trunk.
        classes: K.
        example: An input to convert the network with.
        output: Which part of the network's output the logits are; None for all of it.
        batches: Of the training data.
        scored: Of the data to score, by name: test, val.
        top5: Whether top-5 accuracy is of interest.
    """

    network: nn.Module
    head: str
    classes: int
    example: Tensor
    output: int | None
    batches: AnyBatches
    scored: Mapping[str, AnyBatches]
    top5: bool = True


def prepare(config: TrainConfig, data: Dataset | Corpus, fabric: Fabric, sharded: bool = False) -> Material:
    """Make network and batches of a run, the same in every process.

    Args:
        config: The settings.
        data: Images or a text.
        fabric: Launched already.
        sharded: Whether the strategy divides parameters among the processes.

    Raises:
        torchdfa.data.DataError: The data does not fit the settings.
    """
    if isinstance(data, Corpus):
        return _text(config, data, fabric)
    return _images(config, data, fabric, sharded)


def _images(config: TrainConfig, dataset: Dataset, fabric: Fabric, sharded: bool) -> Material:
    assert isinstance(config.model, Network)
    shape, classes = dataset.train.shape, dataset.train.num_classes
    train, parts = _parts(config, dataset)
    torch.manual_seed(config.seed)
    network = config.model.build(shape, classes)
    channels_last = config.channels_last
    if channels_last == "auto":
        # What is divided among processes must lie contiguously.
        channels_last = _has_convolutions(network) and not sharded
    if channels_last:
        lay_out(network, torch.zeros(1, *shape), fabric.device)
    dtype = torch.float64 if config.precision == "64-true" else torch.float32
    network.to(dtype)
    mean, std = statistics(train)
    common: dict[str, Any] = {"mean": mean, "std": std, "dtype": dtype, "channels_last": channels_last}
    common |= {"device": fabric.device, "rank": fabric.global_rank, "world_size": fabric.world_size}
    drop = _drop(config, train, fabric.world_size)
    return Material(
        network=network,
        head="classifier",
        classes=classes,
        example=torch.zeros(1, *shape, dtype=dtype),
        output=None,
        batches=Batches(
            train, config.batch_size, shuffle=True, augment=config.augment, seed=config.seed, drop_last=drop, **common
        ),
        scored={name: Batches(part, _EVALUATION_BATCH, shuffle=False, **common) for name, part in parts.items()},
    )


def _parts(config: TrainConfig, dataset: Dataset) -> tuple[ImageSet, dict[str, ImageSet]]:
    """Return the images to train on, and those to score, by name."""
    train = dataset.train
    parts = {"test": dataset.test}
    if config.train_size is not None:
        train = subset(train, config.train_size, config.seed)
    if config.validation:
        train, parts["val"] = split(train, config.validation, config.seed)
    return train, parts


def _text(config: TrainConfig, corpus: Corpus, fabric: Fabric) -> Material:
    model = config.model
    assert isinstance(model, LanguageModel)
    if config.vocabulary is not None:
        corpus = corpus.most_frequent(config.vocabulary)
    size = config.train_size or len(corpus.train)
    for what, asked, there in (
        ("train_size", size, len(corpus.train)),
        ("validation", config.validation, len(corpus.validation)),
    ):
        if asked > there:
            raise DataError(f"{what}={asked}, but {corpus.name} has {there} tokens in that part")
    parts = {"test": corpus.test}
    if config.validation:
        parts["val"] = corpus.validation[: config.validation]
    torch.manual_seed(config.seed)
    network = model.build(len(corpus.vocabulary))
    if config.precision == "64-true":
        network.double()
    common: dict[str, Any] = {"device": fabric.device, "rank": fabric.global_rank, "world_size": fabric.world_size}
    try:
        batches = TextBatches(
            corpus.train[:size],
            config.batch_size,
            config.sequence,
            shuffle=not model.stateful,
            seed=config.seed,
            **common,
        )
        scored = {
            name: TextBatches(part, min(_EVALUATION_STREAMS, len(part) - 1), config.sequence, **common)
            for name, part in parts.items()
        }
    except ValueError as error:
        raise DataError(f"{corpus.name}: {error}") from error
    return Material(
        network=network,
        head="head",
        classes=len(corpus.vocabulary),
        example=torch.zeros(1, min(2, config.sequence), dtype=torch.int64),
        output=0 if model.stateful else None,
        batches=batches,
        scored=scored,
        top5=False,
    )


def precision_of(config: TrainConfig, data: Dataset | Corpus) -> Any:
    """Return Fabric's precision; with "auto", bf16 for convolutions where the processor has arithmetic for it."""
    if config.precision != "auto":
        return config.precision
    if isinstance(data, Corpus) or isinstance(config.model, LanguageModel):
        return "32-true"
    with torch.device("meta"):
        convolutions = _has_convolutions(config.model.build(data.train.shape, data.train.num_classes))
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported()
    else:
        fast = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if fast and convolutions else "32-true"


def _has_convolutions(network: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d) for m in network.modules())


def _drop(config: TrainConfig, train: ImageSet, processes: int) -> bool:
    """Tell whether to leave out the last batch: a process's share of one image has no batch statistics."""
    return len(train) > config.batch_size and 0 < len(train) % config.batch_size < 2 * processes
