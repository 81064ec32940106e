"""What the cores are fed with: synthetic streams, and those recorded from a real training run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import torchdfa
from torchdfa.data.arrays import read_arrays
from torchdfa.data.errors import DataError
from torchdfa.feedback.binary import SeededFeedback
from torchdfa.feedback.lfsr import seed_of
from torchdfa.hardware.designs import Parameters
from torchdfa.hardware.model.fixed import Format, Integers, quantize, rescale
from torchdfa.hardware.vectors import Operands, demand_cycles, generated
from torchdfa.settings import demand, positive, whole

LAYER = "classifier.4"  # the last of the recorded head, fed by a cut


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """The short training run that streams are recorded from: a head of Linear layers by BDFA, bits from the LFSR.

    Args:
        data: A data set of the library's, by name.
        hidden: Widths of the two hidden layers, each at least 1.
        epochs: Passes over the data, at least 1.
        train_size: Images, at least 1; by default all.
        lr: Learning rate, above 0.
        batch_size: N, at least 1.
        seed: Of weights, order and feedback.
        data_root: Where data sets lie.

    Raises:
        ValueError: A number is out of range.
    """

    data: str = "digits"
    hidden: tuple[int, int] = (256, 256)
    epochs: int = 3
    train_size: int | None = None
    lr: float = 0.05
    batch_size: int = 32
    seed: int = 0
    data_root: str | None = None

    def __post_init__(self) -> None:
        demand(
            self,
            hidden=(min(self.hidden) >= 1, "widths of at least 1"),
            epochs=whole(self.epochs),
            train_size=(self.train_size is None or self.train_size >= 1, "at least 1"),
            lr=positive(self.lr),
            batch_size=whole(self.batch_size),
        )


@dataclass(frozen=True)
class Recording:
    """Tensors of one step in the middle of a training run, as 16-bit integers.

    Attributes:
        output_error: (N, K).
        hidden_error: At the sums of the last hidden layer, (N, H).
        weight: Of the last layer, (K, H).
        hidden_weight: Of the layer below, (H, H).
        activation: Input of the last layer, (N, H), behind ReLU.
        key: Of the last layer's feedback.
        accuracy: On the training images at the end of the run, percent.
    """

    output_error: Integers
    hidden_error: Integers
    weight: Integers
    hidden_weight: Integers
    activation: Integers
    key: int
    accuracy: float

    def save(self, path: Path) -> None:
        """Write it as ``.npz``."""
        np.savez_compressed(path, **self.__dict__)

    @staticmethod
    def load(path: Path) -> Recording:
        """Read it."""
        arrays: dict[str, Any] = dict(read_arrays(path))
        try:
            return Recording(**{**arrays, "key": int(arrays["key"]), "accuracy": float(arrays["accuracy"])})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is no recording ({error}); remove it.") from error


def record(config: RecordConfig) -> Recording:
    """Train, and record the step in the middle of the last epoch.

    Raises:
        ValueError: There are fewer images than a batch has.
    """
    from torchdfa.data import load, subset

    split = load(config.data, config.data_root).train
    images = split if config.train_size is None else subset(split, config.train_size, config.seed)
    x = torch.as_tensor(images.images).flatten(1).float()
    steps = len(x) // config.batch_size
    if not steps:
        raise ValueError(
            f"record: {len(x)} images make no batch of {config.batch_size}; choose a smaller batch_size or a larger "
            "train_size."
        )
    x, y = (x - x.mean()) / x.std(), torch.as_tensor(images.labels).long()
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        wide, high = config.hidden
        head = [torch.nn.Linear(x.shape[1], wide), torch.nn.ReLU(), torch.nn.Linear(wide, high), torch.nn.ReLU()]
        model = torch.nn.Sequential()
        model.add_module("classifier", torch.nn.Sequential(*head, torch.nn.Linear(high, int(y.max()) + 1)))
    torchdfa.convert(model, torchdfa.BDFA(storage="seeded", generator="lfsr", seed=config.seed))
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9)
    found: dict[str, torch.Tensor] = {}
    last, below = model.get_submodule(LAYER), model.get_submodule("classifier.2")
    assert isinstance(last, torch.nn.Linear) and isinstance(below, torch.nn.Linear)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(layer: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        kept.append((inputs[0].detach(), output))

    for epoch in range(config.epochs):
        order = torch.randperm(len(x), generator=generator)
        for step in range(steps):
            batch = order[step * config.batch_size : (step + 1) * config.batch_size]
            kept.clear()
            handles = []
            recorded_now = (epoch, step) == (config.epochs - 1, steps // 2)
            if recorded_now:
                handles.append(below.register_forward_hook(keep))
                handles.append(last.register_forward_hook(keep))
            logits = model(x[batch])
            for handle in handles:
                handle.remove()
            for _, out in kept:
                out.retain_grad()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, y[batch]).backward()
            if recorded_now:
                (_, sums), (activation, outputs) = kept
                assert sums.grad is not None and outputs.grad is not None
                found = {
                    "output_error": outputs.grad,
                    "hidden_error": sums.grad,
                    "weight": last.weight.detach().clone(),
                    "hidden_weight": below.weight.detach().clone(),
                    "activation": activation,
                }
            optimizer.step()
    with torch.no_grad():
        accuracy = (model(x).argmax(1) == y).float().mean().item() * 100
    feedback = last.feedback
    assert isinstance(feedback, SeededFeedback)
    integers = {name: quantize(value.double().numpy(), Format()).values for name, value in found.items()}
    return Recording(**integers, key=int(feedback.key), accuracy=accuracy)


def uniform(p: Parameters, cycles: int, streams: int, rng: np.random.Generator) -> Operands:
    """Every bit random: the most that the cores can toggle."""
    return _synthetic("uniform", p, cycles, streams, rng, lambda shape: rng.integers(-(2**15), 2**15, shape))


def laplace(p: Parameters, cycles: int, streams: int, rng: np.random.Generator) -> Operands:
    """Errors and weights of a Laplace distribution, whose 16 bits hold 24 of its scales."""
    return _synthetic(
        "laplace",
        p,
        cycles,
        streams,
        rng,
        lambda shape: np.clip(np.rint(rng.laplace(0, 2**15 / 24, shape)), -(2**15), 2**15 - 1).astype(np.int64),
    )


def corners(p: Parameters, cycles: int, streams: int, rng: np.random.Generator, *, generator: bool = False) -> Operands:
    """Only the extremes, zero and ±1, in sums of the longest length: what overflows where a width is wrong.

    The first sum, ``p.blocks`` cycles before the others, is the highest that there is; in every other stream the
    lowest. Then come ``cycles`` cycles, some of them idle.

    Args:
        p: Sizes of the cores.
        cycles: Beyond those of the first sum.
        streams: S.
        rng: Of random operands.
        generator: The signs are the generator's, whose first sums are then as far out as errors alone can bring them.

    Raises:
        ValueError: There are fewer than two cycles, or no stream.
    """
    demand_cycles(cycles, streams)
    one = 2 ** (16 - p.width)  # of an error that is narrower than 16 bits
    ends = np.array(list(dict.fromkeys((-(2**15), 2**15 - 1, 0, 1, -1, one, -one))))
    operands = _synthetic("corners", p, p.blocks + cycles, streams, rng, lambda shape: rng.choice(ends, shape))
    upward = np.arange(streams)[:, None] % 2 == 0
    # The lowest error negated is the highest term, and beside the lowest weight the highest product.
    positive = generated(operands.seeds, p.blocks, p.terms) if generator else ~upward
    extreme = np.where(positive == upward, 2 ** (p.width - 1) - 1, -(2 ** (p.width - 1)))
    operands.positive[: p.blocks] = positive
    operands.errors[: p.blocks] = extreme[..., None, :]
    operands.weights[: p.blocks] = np.where(upward, -(2**15), 2**15 - 1)
    valid = (np.arange(p.blocks + cycles) < p.blocks) | (rng.random(p.blocks + cycles) < 0.75)
    return replace(operands, block=p.blocks, valid=valid)


def recorded(
    recording: Recording, p: Parameters, cycles: int, streams: int, which: Literal["output", "hidden", "hidden-held"]
) -> Operands:
    """Make operands of recorded tensors. Each stream starts at another sample of the batch.

    ``"output"``: the output's K errors go to the layer below, held while its features pass; K may leave terms idle.
    ``"hidden"``: the errors of a hidden layer, block after block, a feature at a time: errors and feedback change each
    cycle. ``"hidden-held"``: the same with a block of errors held while features pass.

    Raises:
        ValueError: There are fewer than two cycles, or no stream.
    """
    demand_cycles(cycles, streams)
    error, weight = (
        (recording.output_error, recording.weight)
        if which == "output"
        else (recording.hidden_error, recording.hidden_weight)
    )
    n, k = error.shape
    features = weight.shape[1]
    blocks = -(-k // p.terms)
    padding = blocks * p.terms - k
    error = np.pad(rescale(error, 16 - p.width, p.width), ((0, 0), (0, padding))).reshape(n, blocks, p.terms)
    weight = np.pad(weight, ((0, padding), (0, 0))).reshape(blocks, p.terms, features)
    generator = np.random.default_rng(recording.key & 0xFFFF)
    signs = generator.random(weight.shape) < 0.5
    seeds = np.array([_seed(recording.key, s) for s in range(streams)])
    steps = np.arange(cycles)
    if which == "hidden":
        block, feature = steps % blocks, steps // blocks % features
    else:
        block, feature = steps // features % blocks, steps % features
    samples = (np.arange(streams)[:, None] * p.lanes + np.arange(p.lanes)) % n
    # Streams beyond the batch go on with other features.
    shifted = (feature[:, None] + (np.arange(streams) * p.lanes // n) * cycles) % features
    return Operands(
        f"recorded-{which}",
        error[samples[None], block[:, None, None]],
        weight[block[:, None], :, shifted],
        signs[block[:, None], :, shifted],
        seeds,
        block=blocks if which == "hidden" and blocks <= p.blocks else 1,
        used=float(np.minimum(k - block * p.terms, p.terms).mean()),  # the last block may be partly idle
    )


def _seed(key: int, stream: int) -> int:
    return int(seed_of(torch.tensor(key))) if stream == 0 else 1 + (key * (stream + 1)) % (2**32 - 1)


def _synthetic(
    name: str,
    p: Parameters,
    cycles: int,
    streams: int,
    rng: np.random.Generator,
    draw: Callable[[tuple[int, ...]], Integers],
) -> Operands:
    demand_cycles(cycles, streams)
    errors = rescale(draw((cycles, streams, p.lanes, p.terms)), 16 - p.width, p.width)
    weights = draw((cycles, streams, p.terms))
    return Operands(
        name,
        errors,
        weights,
        rng.random((cycles, streams, p.terms)) < 0.5,
        rng.integers(1, 2**32, streams),
    )


def maps(recording: Recording | None, cycles: int, streams: int, rng: np.random.Generator) -> Integers:
    """Return feature maps (T, S) for the codec: recorded activations, else as sparse as behind a ReLU.

    Raises:
        ValueError: There are fewer than two cycles, or no stream.
    """
    demand_cycles(cycles, streams)
    if recording is not None:
        return np.resize(recording.activation, (streams, cycles)).T.copy()
    sparse = np.where(rng.random((cycles, streams)) < 0.7, 0, rng.integers(1, 2**15, (cycles, streams)))
    sparse[cycles // 4 : 3 * cycles // 4, 0] = 0  # longer than a run
    return sparse
