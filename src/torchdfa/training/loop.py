"""One training loop for every rule, on Lightning Fabric: CPU, CUDA or MPS, one process or several."""

from __future__ import annotations

import json
import math
import signal
import statistics as stats
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchdfa
from torchdfa.alignment import alignment
from torchdfa.data import Batches, Dataset, ImageSet, load, split, statistics, subset
from torchdfa.training.checkpoint import (
    CheckpointError,
    demand_same,
    load_checkpoint,
    save_checkpoint,
    save_weights,
    write_atomically,
)
from torchdfa.training.config import TrainConfig, to_dict
from torchdfa.training.layout import lay_out
from torchdfa.training.logs import Angle, EpochResult, Events, bar, write_angles, write_history
from torchdfa.training.schedule import SCHEDULES

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_EVALUATION_BATCH = 500


class TrainingError(RuntimeError):
    """Training can't go on; the message says why."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped from outside; what was done is in the last checkpoint."""


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        model: The trained network, on its device.
        history: One entry an epoch.
        angles: As often as the configuration asks for them.
    """

    model: nn.Module
    history: list[EpochResult]
    angles: list[Angle]


@dataclass
class _Place:
    """How far a run has come, and the sums of the epoch under way."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: list[float] = field(default_factory=list)


def fit(
    config: TrainConfig,
    out: Path | None = None,
    *,
    resume: bool = False,
    keep: int = 2,
    checkpoint_steps: int | None = None,
    tensorboard: bool = False,
    progress: bool = True,
    accelerator: str = "auto",
    devices: int | str = 1,
    dataset: Dataset | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
) -> Result:
    """Train a network as ``config`` says.

    The same configuration gives the same weights on the same machine, also when the run was interrupted and resumed.

    Args:
        config: The settings.
        out: Folder for ``config.json``, ``metrics.csv``, ``angles.csv``, checkpoints and the final
            ``model.safetensors``; None writes nothing.
        resume: Go on from the newest checkpoint in ``out``.
        keep: Checkpoints that stay.
        checkpoint_steps: Write a checkpoint after every so many steps of an epoch, besides the one at its end.
        tensorboard: Write TensorBoard events into ``out``.
        progress: Show a progress bar (on a terminal) and a line an epoch.
        accelerator: Of Fabric: "auto", "cpu", "cuda", "mps".
        devices: Of Fabric: processes on this machine.
        dataset: The data, if it is loaded already.
        on_epoch: Called after every epoch, on the first process.

    Raises:
        TrainingError: The loss is no longer finite; or ``out`` holds another run and ``resume`` is not set.
        CheckpointError: The checkpoint is of another run, or can't be read.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was written.
        torchdfa.data.DataError: The data is not there or does not fit the settings.
    """
    from lightning_fabric import Fabric  # takes seconds: not before it is needed

    if (checkpoint_steps is not None and checkpoint_steps < 1) or keep < 1:
        raise ValueError(f"checkpoint_steps={checkpoint_steps} and keep={keep} must be 1 or more.")
    if resume and out is None:
        raise ValueError("resume=True needs the folder of the run, out=...")
    dataset = dataset if dataset is not None else load(config.data, config.data_root)
    shape, classes = dataset.train.shape, dataset.train.num_classes
    plain_config = to_dict(config)
    if out is not None:
        # Before other processes start, so that none of them is left waiting for this one.
        _demand_fits(out, plain_config, resume)
    fabric = Fabric(accelerator=accelerator, devices=devices, precision=_precision(config, shape, classes))  # type: ignore[arg-type]
    fabric.launch()
    first = fabric.is_global_zero
    if out is not None and first:
        _prepare(out, plain_config)
    fabric.barrier()

    train, parts = _parts(config, dataset)
    torch.manual_seed(config.seed)
    network = config.model.build(shape, classes)
    channels_last = _has_convolutions(network) if config.channels_last == "auto" else config.channels_last
    if channels_last:
        lay_out(network, torch.zeros(1, *shape), fabric.device)
    if config.precision == "64-true":
        network.double()
    torchdfa.convert(network, config.rule, example=torch.zeros(1, *shape, dtype=_dtype(config)))
    model, optimizer = fabric.setup(network, _optimizer(config, network))
    mean, std = statistics(train)
    ranks = {"rank": fabric.global_rank, "world_size": fabric.world_size}
    options: dict[str, Any] = {
        "mean": mean,
        "std": std,
        "device": fabric.device,
        "channels_last": channels_last,
        **ranks,
    }
    options["dtype"] = _dtype(config)
    batches = Batches(
        train,
        config.batch_size,
        shuffle=True,
        augment=config.augment,
        seed=config.seed,
        drop_last=_drop(config, train, fabric.world_size),
        **options,
    )
    scored = {name: Batches(part, _EVALUATION_BATCH, shuffle=False, **options) for name, part in parts.items()}

    torch.manual_seed(config.seed)
    place, history, angles = _Place(), [], []
    state = load_checkpoint(out, plain_config) if resume and out is not None else None
    if state is not None:
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        place = _Place(**state["place"])
        history = [EpochResult(**row) for row in state["history"]]
        angles = [Angle(**row) for row in state["angles"]]
        _set_random_state(state["random"])

    def save() -> None:
        if out is not None and first:
            state = {
                "model": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "place": asdict(place),
                "history": [asdict(row) for row in history],
                "angles": [asdict(row) for row in angles],
                "random": _random_state(),
            }
            save_checkpoint(out, place.epoch * len(batches) + place.step, state, plain_config, keep)

    events = Events(out if tensorboard and first else None, len(history))
    total = config.epochs * len(batches)
    with _stopping() as stop, bar(progress and first, total, place.epoch * len(batches) + place.step) as shown:
        while place.epoch < config.epochs:
            model.train()
            begin = time.perf_counter()
            for x, y in batches.epoch(place.epoch, place.step):
                for group in optimizer.param_groups:
                    group["lr"] = group["factor"] * _lr(config, place, len(batches))
                size = min(config.batch_size, len(train) - place.step * config.batch_size)
                loss, correct = _step(fabric, model, optimizer, x, y, size, config.clip)
                # Processes must agree on whether to go on, or one waits for the other's gradients without end.
                mean, stopping = _sums([loss / size, stop.is_set()], fabric.device)
                if not math.isfinite(mean):
                    raise TrainingError(_diverged(config, place, mean, _lr(config, place, len(batches))))
                place.loss += loss
                place.correct += correct
                place.seen += len(y)
                place.step += 1
                place.seconds.append(time.perf_counter() - begin)
                shown.advance(mean, 100 * place.correct / place.seen, len(y) / place.seconds[-1])
                if stopping:
                    save()
                    raise Interrupted(f"stopped after epoch {place.epoch}, step {place.step}")
                if checkpoint_steps and place.step % checkpoint_steps == 0 and place.step < len(batches):
                    save()
                begin = time.perf_counter()
            result = _finish_epoch(config, model, scored, classes, place, len(batches))
            history.append(result)
            if config.alignment and result.epoch % config.alignment == 0:
                angles += _angles(network, result.epoch, next(batches.epoch(0)))
            place = _Place(epoch=result.epoch)
            if first:
                if out is not None:
                    write_history(out, history)
                    if angles:
                        write_angles(out, angles)
                events.add(result, [a for a in angles if a.epoch == result.epoch])
                shown.line(describe(result, config.epochs))
                if on_epoch is not None:
                    on_epoch(result)
            save()
    events.close()
    if out is not None and first:
        save_weights(network, out / "model.safetensors", plain_config)
    return Result(network, history, angles)


def describe(result: EpochResult, epochs: int) -> str:
    """Say in one line what an epoch came to."""
    scores = [("train", result.train_loss, result.train_top1), ("val", result.val_loss, result.val_top1)]
    scores.append(("test", result.test_loss, result.test_top1))
    text = ", ".join(f"{name} {top1:.2f} % (loss {loss:.3f})" for name, loss, top1 in scores if not math.isnan(top1))
    return f"epoch {result.epoch}/{epochs}: {text}, {result.images_per_second:,.0f} images/s"


def evaluate(model: nn.Module, batches: Batches, classes: int) -> tuple[float, float, float]:
    """Return mean loss, top-1 and top-5 accuracy in percent (NaN for fewer than six classes), over all processes."""
    from torchmetrics.classification import MulticlassAccuracy

    device = next(model.parameters()).device
    top1 = MulticlassAccuracy(classes, average="micro").to(device)
    top5 = MulticlassAccuracy(classes, top_k=5, average="micro").to(device) if classes > 5 else None
    loss, seen = 0.0, 0
    training = model.training
    model.eval()
    with torch.no_grad():
        for x, y in batches.epoch(0):
            logits = model(x)
            loss += F.cross_entropy(logits, y, reduction="sum").item()
            seen += len(y)
            top1.update(logits, y)
            if top5 is not None:
                top5.update(logits, y)
    model.train(training)
    loss, seen = _sums([loss, seen], device)
    best = 100 * top1.compute().item()
    return loss / seen, best, 100 * top5.compute().item() if top5 is not None else math.nan


def _step(
    fabric: Fabric, model: Any, optimizer: Any, x: Tensor, y: Tensor, size: int, clip: float | None
) -> tuple[float, int]:
    """Take one step on ``size`` images, ``x`` being this process's; return the sum of losses and the number right."""
    logits = model(x)
    loss = F.cross_entropy(logits, y, reduction="sum")
    optimizer.zero_grad()
    # Processes average their gradients: with the whole batch's size that is its mean, also where shares differ.
    fabric.backward(loss * (fabric.world_size / size))
    if clip is not None:
        fabric.clip_gradients(model, optimizer, max_norm=clip, error_if_nonfinite=False)
    optimizer.step()
    return loss.item(), int((logits.detach().argmax(1) == y).sum())


def _sums(values: Sequence[float], device: torch.device) -> list[float]:
    """Add up each value over all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(sums)
    return sums.tolist()


def _finish_epoch(
    config: TrainConfig, model: Any, scored: Mapping[str, Batches], classes: int, place: _Place, steps: int
) -> EpochResult:
    last = place.epoch + 1 == config.epochs
    scores = {"val": (math.nan,) * 3, "test": (math.nan,) * 3}
    for name, batches in scored.items():
        if name == "val" or "val" not in scored or last:
            scores[name] = evaluate(model, batches, classes)
    loss, correct, seen = _sums([place.loss, place.correct, place.seen], next(model.parameters()).device)
    return EpochResult(
        epoch=place.epoch + 1,
        lr=_lr(config, replace(place, step=steps - 1), steps),
        train_loss=loss / seen,
        train_top1=100 * correct / seen,
        val_loss=scores["val"][0],
        val_top1=scores["val"][1],
        test_loss=scores["test"][0],
        test_top1=scores["test"][1],
        test_top5=scores["test"][2],
        images_per_second=seen / sum(place.seconds),
        step_seconds=stats.median(place.seconds),
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


def _angles(network: nn.Module, epoch: int, batch: tuple[Tensor, Tensor]) -> list[Angle]:
    degrees = alignment(network, F.cross_entropy, *batch)
    return [Angle(epoch, name, value) for name, value in degrees.items()]


def _optimizer(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = []
    for part, factor in (("features", 1.0), ("classifier", config.head_lr)):
        parameters = [p for p in network.get_submodule(part).parameters() if p.requires_grad]
        if parameters:
            groups.append({"params": parameters, "lr": config.lr * factor, "factor": factor})
    if not groups:
        raise TrainingError("no parameter learns: every layer is frozen.")
    decay = config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=decay)
    kind = {"rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam}[config.optimizer]
    return kind(groups, weight_decay=decay)


def _lr(config: TrainConfig, place: _Place, steps: int) -> float:
    """Return the trunk's learning rate at a step, of so many an epoch."""
    return config.lr * SCHEDULES[config.schedule]((place.epoch + place.step / steps) / config.epochs)


def _precision(config: TrainConfig, shape: tuple[int, int, int], classes: int) -> str:
    if config.precision != "auto":
        return config.precision
    with torch.device("meta"):
        convolutions = _has_convolutions(config.model.build(shape, classes))
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported()
    else:
        fast = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if fast and convolutions else "32-true"


def _dtype(config: TrainConfig) -> torch.dtype:
    return torch.float64 if config.precision == "64-true" else torch.float32


def _has_convolutions(network: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d) for m in network.modules())


def _drop(config: TrainConfig, train: ImageSet, processes: int) -> bool:
    """Tell whether to leave out the last batch: a process's share of one image has no batch statistics."""
    return len(train) > config.batch_size and 0 < len(train) % config.batch_size < 2 * processes


def _diverged(config: TrainConfig, place: _Place, loss: float, lr: float) -> str:
    return (
        f"the loss is {loss} in epoch {place.epoch + 1}, step {place.step + 1}, at learning rate {lr:.4g}: training "
        "has "
        f"diverged. Try a smaller --lr (it is {config.lr:g}), or --clip 10."
    )


def _demand_fits(out: Path, config: Mapping[str, Any], resume: bool) -> None:
    """Refuse a folder that holds a run, unless that is to be resumed and has the same settings."""
    path = out / "config.json"
    if not path.exists():
        return
    if not resume:
        raise TrainingError(f"{out} holds a run already. Go on with --resume {out}, or choose another --out.")
    try:
        stored = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"can't resume: {path} is damaged ({error}).") from error
    demand_same(path, config, stored)


def _prepare(out: Path, config: Mapping[str, Any]) -> None:
    """Make the run's folder and write its configuration, unless it is there to be resumed."""
    path = out / "config.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Yield a flag that SIGINT and SIGTERM set; a second one of them acts as it would have."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, former[signal.Signals(number)])

    for number in former:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
