"""A table of what a conversion did: each layer's rule, and what its feedback costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from torchdfa.convert import conversion_of
from torchdfa.feedback import Feedback
from torchdfa.feedback.time import Feedbacks
from torchdfa.rules import Rule
from torchdfa.table import align


@dataclass(frozen=True)
class Row:
    """One layer of a summary.

    Attributes:
        layer: Its name; of a recurrent one with what the feedback serves, as ``rnn.time_l0``.
        kind: Its type.
        rule: Its rule's name.
        feedback: Shape of the feedback at its input, (K, H) or a convolution's kernel; None where the input is not cut.
        scale: Mean absolute value of the feedback's entries.
        nbytes: Bytes of the feedback as it is kept.
        nbytes_float32: Bytes of the same feedback as float32.
    """

    layer: str
    kind: str
    rule: str
    feedback: tuple[int, ...] | None = None
    scale: float | None = None
    nbytes: int = 0
    nbytes_float32: int = 0


@dataclass(frozen=True)
class Summary:
    """A model's layers and rules; ``print`` it to read it."""

    rows: tuple[Row, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all feedback."""
        return sum(row.nbytes for row in self.rows)

    @property
    def nbytes_float32(self) -> int:
        """Bytes of all feedback as float32."""
        return sum(row.nbytes_float32 for row in self.rows)

    def __str__(self) -> str:
        head = ("layer", "type", "rule", "feedback", "mean |B|", "bytes", "as float32")
        lines = [head, *(_cells(row) for row in self.rows)]
        lines.append(("total", "", "", "", "", f"{self.nbytes:,}", f"{self.nbytes_float32:,}"))
        return align(lines, left=4)


def summary(model: nn.Module) -> Summary:
    """Return the table of a converted model: layer, rule, feedback shape, bytes, bytes as float32.

    >>> import torch, torchdfa as dfa
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> print(dfa.summary(dfa.convert(model, dfa.BDFA(scale="unit"))))
    layer  type    rule  feedback  mean |B|  bytes  as float32
    0      Linear  BDFA
    2      Linear  BDFA  3 × 16           1     10         192
    total                                       10         192

    Raises:
        ValueError: The model is not converted.
    """
    conversion = conversion_of(model)
    rows = []
    for name, rule in conversion.rules.items():
        layer = model.get_submodule(name)
        made = layer._modules.get("feedback")
        if isinstance(made, Feedbacks):
            rows += [_row(f"{name}.{part}", layer, rule, feedback) for part, feedback in made.items()]
        else:
            rows.append(_row(name, layer, rule, made if isinstance(made, Feedback) else None))
    return Summary(tuple(rows))


def _row(name: str, layer: nn.Module, rule: Rule, feedback: nn.Module | None) -> Row:
    row = Row(name, type(layer).__name__, type(rule).__name__)
    if not isinstance(feedback, Feedback):
        return row
    matrix = feedback.dense()
    size = matrix[matrix != 0].abs().mean().item()
    return replace(
        row,
        feedback=tuple(matrix.shape),
        scale=size,
        nbytes=feedback.nbytes,
        nbytes_float32=feedback.nbytes_float32,
    )


def _cells(row: Row) -> tuple[str, ...]:
    if row.feedback is None:
        return (row.layer, row.kind, row.rule, "", "", "", "")
    shape = " × ".join(map(str, row.feedback))
    return (row.layer, row.kind, row.rule, shape, f"{row.scale:.3g}", f"{row.nbytes:,}", f"{row.nbytes_float32:,}")
