"""Experiments: comparisons of methods on equal terms."""

from torchdfa.experiments.compare import CompareConfig, Score, compare
from torchdfa.experiments.methods import METHODS, method
from torchdfa.experiments.runner import CellError
from torchdfa.experiments.table1 import ReproduceConfig, run_table1
from torchdfa.experiments.table1_report import write_page

__all__ = [
    "METHODS",
    "CellError",
    "CompareConfig",
    "ReproduceConfig",
    "Score",
    "compare",
    "method",
    "run_table1",
    "write_page",
]
