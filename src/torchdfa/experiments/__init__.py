"""Experiments: comparisons of methods on equal terms."""

from torchdfa.experiments.compare import CompareConfig, Score, compare
from torchdfa.experiments.methods import METHODS, method
from torchdfa.experiments.runner import CellError

__all__ = ["METHODS", "CellError", "CompareConfig", "Score", "compare", "method"]
