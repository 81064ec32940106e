"""Training: a configuration, one loop, checkpoints."""

from torchdfa.training.checkpoint import CheckpointError, load_weights, save_weights
from torchdfa.training.config import TrainConfig, differences, to_dict
from torchdfa.training.logs import Angle, EpochResult
from torchdfa.training.loop import Interrupted, Result, describe, fit
from torchdfa.training.processes import ProcessError
from torchdfa.training.run import DivergedError, TrainingError, evaluate

__all__ = [
    "Angle",
    "CheckpointError",
    "DivergedError",
    "EpochResult",
    "Interrupted",
    "ProcessError",
    "Result",
    "TrainConfig",
    "TrainingError",
    "describe",
    "differences",
    "evaluate",
    "fit",
    "load_weights",
    "save_weights",
    "to_dict",
]
