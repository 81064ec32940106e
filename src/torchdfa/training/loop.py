"""One training loop for every rule, on Lightning Fabric: CPU, CUDA or MPS, one process or several."""

from __future__ import annotations

import json
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import distributed, nn

from torchdfa.data import TEXTS, Corpus, Dataset, load_any
from torchdfa.files import write_text
from torchdfa.training.checkpoint import (
    CheckpointError,
    demand_same,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from torchdfa.training.config import TrainConfig, to_dict
from torchdfa.training.logs import Angle, EpochResult, Events, bar, write_angles, write_history
from torchdfa.training.material import precision_of
from torchdfa.training.processes import Strategy, alone_in, from_first, is_first, make_fabric, model_state
from torchdfa.training.run import Run, TrainingError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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
    strategy: Strategy = "auto",
    dataset: Dataset | Corpus | None = None,
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
        devices: Of Fabric: processes on this machine. Under torchrun those that it has started, on all machines.
        strategy: "ddp": every process holds the network; "fsdp": its parameters, and the optimizer's state, are divided
            among them (FSDP2). "auto": DDP where there are several processes.
        dataset: The data, if it is loaded already.
        on_epoch: Called after every epoch, on the first process.

    Raises:
        DivergedError: The loss is no longer finite.
        TrainingError: No parameter learns; or ``out`` holds another run and ``resume`` is not set.
        ProcessError: Another process trains in ``out``.
        OSError: ``out`` can't be written; what was written before is whole.
        CheckpointError: The checkpoint is of another run, or can't be read.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was written.
        torchdfa.data.DataError: The data is not there or does not fit the settings.
    """
    if (checkpoint_steps is not None and checkpoint_steps < 1) or keep < 1:
        raise ValueError(f"checkpoint_steps={checkpoint_steps} and keep={keep} must be 1 or more.")
    if resume and out is None:
        raise ValueError("resume=True needs the folder of the run, out=...")
    dataset = dataset if dataset is not None else load_any(config.data, config.data_root)
    plain_config = to_dict(config)
    precision = precision_of(config, dataset)
    # Where processes have met already, the first one may have begun when another comes here.
    met = distributed.is_available() and distributed.is_initialized()
    if not met:
        # Before other processes start, so that none of them is left waiting for this one.
        _demand_fits(out, plain_config, resume)
    with alone_in(out):
        problem = None
        try:
            if is_first() or not met:
                _demand_fits(out, plain_config, resume)  # another one may have begun, and ended, in between
        except (TrainingError, CheckpointError) as error:
            if not met:
                raise
            problem = error
        fabric = make_fabric(accelerator, devices, precision, strategy)
        fabric.launch()
        from_first(fabric, None, problem)
        folder = out if fabric.is_global_zero else None  # only the first process writes
        if folder is not None:
            _prepare(folder, plain_config)
        fabric.barrier()
        run = Run(config, dataset, fabric, strategy == "fsdp")
        state = _stored_state(fabric, folder, plain_config) if resume else None
        if state is not None:
            run.restore(state)

        def save() -> None:
            state = run.state()
            if folder is not None:
                save_checkpoint(folder, run.done, state, plain_config, keep)

        unit = "tokens" if isinstance(dataset, Corpus) else "images"
        events = Events(folder if tensorboard else None, len(run.history))
        with _stopping() as stop, bar(progress and fabric.is_global_zero, run.steps, run.done, unit) as shown:
            while run.place.epoch < config.epochs:
                for loss, stopping in run.epoch(stop):
                    place = run.place
                    rate = run.batches.count(place.step - 1) / place.seconds[-1]
                    shown.advance(loss, 100 * place.correct / place.seen, rate)
                    if stopping:
                        save()
                        raise Interrupted(f"stopped after epoch {place.epoch}, step {place.step}")
                    if checkpoint_steps and place.step % checkpoint_steps == 0 and place.step < len(run.batches):
                        save()
                result = run.finish_epoch()
                if folder is not None:
                    write_history(folder, run.history)
                    if run.angles:
                        write_angles(folder, run.angles)
                if fabric.is_global_zero:
                    events.add(result, [a for a in run.angles if a.epoch == result.epoch])
                    shown.line(describe(result, config))
                    if on_epoch is not None:
                        on_epoch(result)
                save()
        events.close()
        weights = model_state(run.network)
        if folder is not None:
            save_weights(weights, folder / "model.safetensors", plain_config)
        return Result(run.network, run.history, run.angles)


def _stored_state(fabric: Fabric, folder: Path | None, config: Mapping[str, Any]) -> Any:
    """Return the newest checkpoint's state, which the first process reads, or None."""
    state, problem = None, None
    try:
        state = None if folder is None else load_checkpoint(folder, config)
    except CheckpointError as error:
        problem = error
    return from_first(fabric, state, problem)


def describe(result: EpochResult, config: TrainConfig) -> str:
    """Say in one line what an epoch came to."""
    scores = [("train", result.train_loss, result.train_top1), ("val", result.val_loss, result.val_top1)]
    scores.append(("test", result.test_loss, result.test_top1))
    text = config.data in TEXTS
    said = [
        f"{name} perplexity {math.exp(min(loss, 700)):.2f} ({top1:.2f} % right)"
        if text
        else f"{name} {top1:.2f} % (loss {loss:.3f})"
        for name, loss, top1 in scores
        if not math.isnan(top1)
    ]
    speed = f"{result.images_per_second:,.0f} {'tokens' if text else 'images'}/s"
    return f"epoch {result.epoch}/{config.epochs}: {', '.join(said)}, {speed}"


def _demand_fits(out: Path | None, config: Mapping[str, Any], resume: bool) -> None:
    """Refuse a folder that holds a run, unless that is to be resumed and has the same settings."""
    if out is None or not (path := out / "config.json").exists():
        return
    if not resume:
        raise TrainingError(f"{out} holds a run already. Go on with --resume {out}, or choose another --out.")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"can't resume: {path} is damaged ({error}).") from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"can't resume: {path} is damaged (it holds no settings).")
    demand_same(path, config, stored)


def _prepare(out: Path, config: Mapping[str, Any]) -> None:
    """Make the run's folder and write its configuration, unless it is there to be resumed."""
    path = out / "config.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        write_text(path, text)


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
