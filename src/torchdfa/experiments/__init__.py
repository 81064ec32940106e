"""Experiments: comparisons of methods on equal terms."""

from torchdfa.experiments.compare import CompareConfig, Score, compare
from torchdfa.experiments.methods import METHODS, method

__all__ = ["METHODS", "CompareConfig", "Score", "compare", "method"]
