"""Experiments: comparisons of methods on equal terms."""

from torchdfa.experiments.compare import CompareConfig, Score, compare
from torchdfa.experiments.methods import METHODS, method
from torchdfa.experiments.reproduce import EXPERIMENTS, ReproduceConfig, reproduce, write_page
from torchdfa.experiments.runner import CellError

__all__ = [
    "EXPERIMENTS",
    "METHODS",
    "CellError",
    "CompareConfig",
    "ReproduceConfig",
    "Score",
    "compare",
    "method",
    "reproduce",
    "write_page",
]
