"""Checkpoints: written whole or not at all, under a checksum, no pickles, refused where they don't fit."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import torchdfa
from torchdfa.files import write_atomically
from torchdfa.training.config import TrainConfig, differences, to_dict
from torchdfa.training.sealed import SealError, read_sealed, seal

FORMAT = 2
_NAME = re.compile(r"checkpoint-(\d+)\.ckpt")
# What a result does not depend on: a run may be resumed with other values of these.
_FREE = ("data_root",)


class CheckpointError(ValueError):
    """A checkpoint can't be read, or belongs to another run; the message says which and why."""


def save_checkpoint(folder: Path, number: int, state: Mapping[str, Any], config: Mapping[str, Any], keep: int) -> Path:
    """Write ``checkpoint-NUMBER.ckpt``, then delete all others but the ``keep - 1`` before it.

    Later ones are of no use: the run was resumed from before them, since they were damaged.

    Args:
        folder: Of the run.
        number: Steps done.
        state: Tensors and plain values only.
        config: The run's configuration as plain data.
        keep: How many checkpoints stay, at least 1.
    """
    path = folder / f"checkpoint-{number:08d}.ckpt"
    header = {"format": FORMAT, "torchdfa": torchdfa.__version__, "config": json.dumps(config)}
    data = seal({**header, "state": dict(state)})
    write_atomically(path, lambda file: file.write(data))
    paths = list_checkpoints(folder)
    end = paths.index(path) + 1
    for other in (*paths[: max(0, end - keep)], *paths[end:]):
        other.unlink(missing_ok=True)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    found = [p for p in folder.iterdir() if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=lambda p: int(p.stem.partition("-")[2]))


def load_checkpoint(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the newest checkpoint of a run; if that is damaged, the one before it, with a warning.

    Returns:
        The state that was saved; None if the run has written no checkpoint yet.

    Raises:
        CheckpointError: None of them can be read, or the newest was made by another configuration or format.
    """
    paths = list_checkpoints(folder)
    problems: list[str] = []
    for path in reversed(paths):
        try:
            content = read_sealed(path)
            if not isinstance(content, dict) or not {"format", "config", "state"} <= content.keys():
                raise SealError("it is no torchdfa checkpoint")
            stored, state = json.loads(content["config"]), content["state"]
            if not isinstance(stored, dict) or not isinstance(state, dict):
                raise SealError("it is no torchdfa checkpoint")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            problems.append(f"{path.name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            continue
        if problems:
            warnings.warn(
                f"skipped a damaged checkpoint, going on from {path.name}. {'; '.join(problems)}", stacklevel=2
            )
        _demand_format(path, content)
        demand_same(path, config, stored)
        return state
    if problems:
        raise CheckpointError(
            f"can't resume from {folder}: none of its checkpoints can be read ({'; '.join(problems)}). Start anew in "
            "another folder."
        )
    return None


def _demand_format(path: Path, content: Mapping[str, Any]) -> None:
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {content['format']} (torchdfa {content.get('torchdfa')}); this is torchdfa "
            f"{torchdfa.__version__}, which reads format {FORMAT}."
        )


def demand_same(path: Path, here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Compare a run's plain configuration with the one that a file holds.

    Raises:
        CheckpointError: They differ; the message names the file and each setting.
    """
    # A file of an earlier version lacks later settings, which had what is now their default.
    defaults = to_dict(TrainConfig())
    here, there = ({k: v for k, v in {**defaults, **settings}.items() if k not in _FREE} for settings in (here, there))
    if changed := differences(here, there):
        raise CheckpointError(
            f"{path} was made by another run; these settings differ (name: here, in the file): {'; '.join(changed)}."
        )


def save_weights(model: nn.Module | Mapping[str, Tensor], path: Path, config: Mapping[str, Any]) -> None:
    """Write a model's weights, buffers and feedback as safetensors, its configuration beside them as metadata.

    Equal models and configurations give equal files.

    Args:
        model: The model, or its state_dict.
        path: Of the file.
        config: Plain data.
    """
    from safetensors.torch import save

    state = model.state_dict() if isinstance(model, nn.Module) else model
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    # One entry only: safetensors writes several in any order.
    data = save(tensors, {"torchdfa": json.dumps({"version": torchdfa.__version__, "config": config})})
    write_atomically(path, lambda file: file.write(data))


def load_weights(model: nn.Module, path: Path) -> None:
    """Load what :func:`save_weights` wrote into a model built and converted alike.

    Raises:
        CheckpointError: The file can't be read, or its tensors are not the model's; the message names them.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"can't read weights from {path}: {error}.") from error
    own = model.state_dict()
    names = {*own, *tensors}
    wrong = sorted(n for n in names if n not in own or n not in tensors or own[n].shape != tensors[n].shape)
    if wrong:
        shapes = [
            f"{n}: {tuple(own[n].shape) if n in own else 'none'}, {tuple(tensors[n].shape) if n in tensors else 'none'}"
            for n in wrong[:5]
        ]
        raise CheckpointError(
            f"{path} holds the weights of another model or rule; {len(wrong)} tensors differ (name: shape in the "
            f"model, in the file): {'; '.join(shapes)}."
        )
    model.load_state_dict(tensors)
