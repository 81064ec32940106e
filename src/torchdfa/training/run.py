"""A training run under way: the place it has come to, and how to take it a step further."""

from __future__ import annotations

import math
import statistics as stats
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import torchdfa
from torchdfa.alignment import Gradients, angle, both_gradients
from torchdfa.baselines import WeightMirror
from torchdfa.data import Corpus, Dataset
from torchdfa.distributed import share_feedback
from torchdfa.training.checkpoint import CheckpointError
from torchdfa.training.config import TrainConfig
from torchdfa.training.logs import Angle, EpochResult
from torchdfa.training.losses import LOSSES, Loss
from torchdfa.training.material import AnyBatches, Material, prepare
from torchdfa.training.processes import (
    all_rows,
    draw_seed,
    load_model_state,
    load_optimizer_state,
    model_state,
    optimizer_state,
    own_rows,
    sums,
)
from torchdfa.training.schedule import SCHEDULES

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class TrainingError(RuntimeError):
    """Training can't go on; the message says why."""


class DivergedError(TrainingError):
    """The loss is no longer finite; the message says where, and what to try."""


@dataclass
class Place:
    """How far a run has come, and the sums of the epoch under way."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: list[float] = field(default_factory=list)


class Run:
    """Network, optimizer, data and place of a run. All of it is made from the configuration, the same in every process.

    Args:
        config: The settings.
        dataset: The data.
        fabric: Launched already.
        sharded: Whether the strategy divides parameters among the processes.

    Attributes:
        network: The converted network, as its state is saved.
        history: One entry a finished epoch.
        angles: As often as the configuration asks for them.
        place: How far it has come.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset | Corpus, fabric: Fabric, sharded: bool = False):
        self.config, self.fabric = config, fabric
        self.mirrors = any(isinstance(rule, WeightMirror) for rule in config.rules)
        if sharded and (config.alignment or config.refresh or self.mirrors):
            what = "alignment, refresh and the rule WeightMirror"
            raise TrainingError(f"{what} need whole layers; they don't go with --strategy fsdp.")
        self.material: Material = prepare(config, dataset, fabric, sharded)
        self.network, self.batches, self.scored = self.material.network, self.material.batches, self.material.scored
        self._convert()
        if config.head_lr == 0:
            self.network.get_submodule(self.material.head).requires_grad_(False)
        self.loss = LOSSES[config.loss]
        share_feedback(self.network)
        if sharded:
            # The parameters are others once they are divided: the optimizer comes after.
            self.model = fabric.setup_module(self.network)
            self.optimizer: Any = fabric.setup_optimizers(_optimizer(config, self.network, self.material.head))
        else:
            optimizer = _optimizer(config, self.network, self.material.head)
            self.model, self.optimizer = fabric.setup(self.network, optimizer)
        # A recurrent model's, between the steps of an epoch.
        self.carried: Any = None
        self.place = Place()
        self.history: list[EpochResult] = []
        self.angles: list[Angle] = []
        torch.manual_seed(config.seed)

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without Fabric's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * len(self.batches)

    @property
    def done(self) -> int:
        """Steps done."""
        return self.place.epoch * len(self.batches) + self.place.step

    @property
    def lr(self) -> float:
        """Learning rate of the trunk at the next step: a function of the place alone."""
        return self._lr_at(self.done)

    def _lr_at(self, done: int) -> float:
        return self.config.lr * SCHEDULES[self.config.schedule](done / self.steps)

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on, as tensors and plain values; to be called in every process.

        It is the same whatever the number of processes: any other number can go on from it.
        """
        place = self.place
        loss, correct, seen = sums([place.loss, place.correct, place.seen], self.fabric.device)
        whole = Place(place.epoch, place.step, loss, int(correct), int(seen), place.seconds)
        return {
            "model": model_state(self.network),
            "optimizer": optimizer_state(self.network, self._plain_optimizer),
            "place": asdict(whole),
            "history": [asdict(row) for row in self.history],
            "angles": [asdict(row) for row in self.angles],
            "random": _random_state(),
            "carried": all_rows(self.carried, self.config.batch_size, self.fabric),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state; it may be that of another number of processes.

        Raises:
            CheckpointError: It is no state of this run.
        """
        try:
            load_model_state(self.network, state["model"])
            load_optimizer_state(self.network, self._plain_optimizer, state["optimizer"])
            self.place = Place(**state["place"])
            self.history = [EpochResult(**row) for row in state["history"]]
            self.angles = [Angle(**row) for row in state["angles"]]
            _set_random_state(state["random"])
            self.carried = _moved(own_rows(state["carried"], self.fabric), self.fabric.device)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint is of another network or run ({error}).") from error
        # With fewer processes a last batch can be there that more of them had to leave out, or the other way round.
        self.place.step = min(self.place.step, len(self.batches))
        if self.fabric.global_rank:  # the sums are those of all processes
            self.place.loss, self.place.correct, self.place.seen = 0.0, 0, 0

    def _convert(self) -> None:
        example = self.material.example.to(next(self.network.parameters()).device)
        torchdfa.convert(self.network, self.config.rule, example=example, output=self.material.output)

    def epoch(self, stop: Any) -> Iterator[tuple[float, bool]]:
        """Take the steps that are left of the epoch under way; after each, yield the loss and whether to stop.

        Args:
            stop: A threading.Event. It is asked in every process, since all must agree on whether to go on, or one
                would wait for another's gradients without end.

        Raises:
            DivergedError: The loss is no longer finite.
        """
        place = self.place
        self.model.train()
        if self.config.refresh and place.step == 0 and place.epoch and place.epoch % self.config.refresh == 0:
            self._refresh()
        begin = time.perf_counter()
        for x, y in self.batches.epoch(place.epoch, place.step):
            lr = self.lr
            for group in self.optimizer.param_groups:
                group["lr"] = group["factor"] * lr
            size = self.batches.count(place.step)
            loss, correct = self._step(x, y, size)
            mean, stopping = sums([loss / size, stop.is_set()], self.fabric.device)
            if not math.isfinite(mean):
                raise DivergedError(_diverged(self.config, place, mean, lr))
            place.loss += loss
            place.correct += correct
            place.seen += len(y)
            place.step += 1
            place.seconds.append(time.perf_counter() - begin)
            yield mean, bool(stopping)
            begin = time.perf_counter()

    def _refresh(self) -> None:
        """Make the feedback anew; the parameters, which the optimizer holds, stay the same objects."""
        learning = {p: p.requires_grad for p in self.network.parameters()}
        torchdfa.revert(self.network)
        self._convert()
        for parameter, learns in learning.items():
            parameter.requires_grad_(learns)

    def _step(self, x: Tensor, y: Tensor, size: int) -> tuple[float, int]:
        """Take a step on ``size`` targets, ``x`` being this process's; return its summed loss and number right."""
        if self.fabric.world_size > 1:
            # Dropout differs between processes, and goes on as it would have without their states being kept.
            torch.manual_seed(draw_seed(self.config.seed, self.done, self.fabric.global_rank))
        if self.mirrors:
            # Of several processes each does it, and the first one's feedback goes to the others in the forward.
            noise = torch.Generator().manual_seed(draw_seed(self.config.seed, self.done, -1))
            torchdfa.mirror(self.network, x, rate=self.config.mirror_rate, generator=noise)
        logits, self.carried = _logits(self.model, x, self.carried)
        loss = self.loss(logits, y, reduction="sum")
        self.optimizer.zero_grad()
        # Processes average their gradients: with the whole batch's size that is its mean, also where shares differ.
        self.fabric.backward(loss * (self.fabric.world_size / size))
        if self.config.clip is not None:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.config.clip, error_if_nonfinite=False)
        self.optimizer.step()
        return loss.item(), int((logits.detach().argmax(1) == y).sum())

    def finish_epoch(self) -> EpochResult:
        """Score the epoch, note it, and move on to the next."""
        place, config = self.place, self.config
        last = place.epoch + 1 == config.epochs
        scores = {"val": (math.nan,) * 3, "test": (math.nan,) * 3}
        for name, batches in self.scored.items():
            due = last or (place.epoch + 1) % config.score_every == 0
            if due and (name == "val" or "val" not in self.scored or last):
                scores[name] = evaluate(self.model, batches, self.material.classes, self.loss, self.material.top5)
        loss, correct, seen = sums([place.loss, place.correct, place.seen], self.fabric.device)
        trunk_angle = trunk_ratio = math.nan
        if config.alignment and (place.epoch + 1) % config.alignment == 0:
            x, y = next(self.batches.epoch(0))
            by_rule, true = both_gradients(self.network, lambda out, y: self.loss(_flat(out)[0], y), x, y)
            # Of the layers' weights; those of biases and norms say little and would treble the file.
            layers = [name for name, parameter in self.network.named_parameters() if parameter.ndim > 1]
            self.angles += [
                Angle(place.epoch + 1, name, angle(by_rule[name], true[name])) for name in layers if name in by_rule
            ]
            trunk_angle, trunk_ratio = _trunk(by_rule, true, self.material.head)
        result = EpochResult(
            epoch=place.epoch + 1,
            lr=self._lr_at(self.done - 1),
            train_loss=loss / seen,
            train_top1=100 * correct / seen,
            val_loss=scores["val"][0],
            val_top1=scores["val"][1],
            test_loss=scores["test"][0],
            test_top1=scores["test"][1],
            test_top5=scores["test"][2],
            images_per_second=seen / sum(place.seconds),
            step_seconds=stats.median(place.seconds),
            trunk_angle=trunk_angle,
            trunk_ratio=trunk_ratio,
        )
        self.history.append(result)
        self.place, self.carried = Place(epoch=result.epoch), None
        return result


def evaluate(
    model: nn.Module, batches: AnyBatches, classes: int, loss_fn: Loss, top5: bool = True
) -> tuple[float, float, float]:
    """Return mean loss, top-1 and top-5 accuracy in percent, over all processes.

    Top-5 is NaN for fewer than six classes, or where it is not asked for. A state that the model returns is handed on
    to the next batch.
    """
    from torchmetrics.classification import MulticlassAccuracy

    device = next(model.parameters()).device
    best = MulticlassAccuracy(classes, average="micro").to(device)
    five = MulticlassAccuracy(classes, top_k=5, average="micro").to(device) if classes > 5 and top5 else None
    loss, seen = 0.0, 0
    carried = None
    training = model.training
    model.eval()
    with torch.no_grad():
        for x, y in batches.epoch(0):
            logits, carried = _logits(model, x, carried)
            loss += loss_fn(logits, y, reduction="sum").item()
            seen += len(y)
            best.update(logits.argmax(1), y)
            if five is not None:
                five.update(logits, y)
    model.train(training)
    loss, seen = sums([loss, seen], device)
    return loss / seen, 100 * best.compute().item(), 100 * five.compute().item() if five is not None else math.nan


def _logits(model: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Return a model's logits, shape (M, K), and its state, cut off from the graph, or None."""
    logits, state = _flat(model(x) if state is None else model(x, state))
    return logits, _moved(state, x.device)


def _flat(output: Any) -> tuple[Tensor, Any]:
    logits, state = output if isinstance(output, tuple) else (output, None)
    return logits.flatten(0, -2), state


def _moved(state: Any, device: torch.device) -> Any:
    if isinstance(state, (tuple, list)):
        return tuple(_moved(part, device) for part in state)
    return None if state is None else state.detach().to(device)


def _trunk(by_rule: Gradients, true: Gradients, head: str) -> tuple[float, float]:
    """Return the angle between the trunk's two gradients, in degrees, and the ratio of their lengths; else NaN."""
    names = [n for n in by_rule if not n.startswith(f"{head}.") and by_rule[n] is not None and true[n] is not None]
    if not names:
        return math.nan, math.nan
    ours, theirs = (torch.cat([g[n].flatten() for n in names]) for g in (by_rule, true))  # type: ignore[union-attr]
    return angle(ours, theirs), (ours.norm() / theirs.norm()).item()


def _optimizer(config: TrainConfig, network: nn.Module, head: str) -> torch.optim.Optimizer:
    learning = {name: p for name, p in network.named_parameters() if p.requires_grad}
    parts = {True: [], False: []}
    for name, parameter in learning.items():
        parts[name.startswith(f"{head}.")].append(parameter)
    groups: list[dict[str, Any]] = []
    for parameters, factor in ((parts[False], 1.0), (parts[True], config.head_lr)):
        if parameters:
            groups.append({"params": parameters, "lr": config.lr * factor, "factor": factor})
    if not groups:
        raise TrainingError("no parameter learns: every layer is frozen.")
    decay = config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=decay)
    kind = {"rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam}[config.optimizer]
    return kind(groups, weight_decay=decay)


def _diverged(config: TrainConfig, place: Place, loss: float, lr: float) -> str:
    clip = "none" if config.clip is None else f"{config.clip:g}"
    return (
        f"the loss is {loss} in epoch {place.epoch + 1}, step {place.step + 1}, at learning rate {lr:.4g}: training "
        f"has diverged. Try a smaller --lr (it is {config.lr:g}) or --clip (it is {clip})."
    )


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
