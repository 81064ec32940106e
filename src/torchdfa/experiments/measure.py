"""What runs are judged by: accuracy on images, perplexity on a text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torchdfa.data import TEXTS

if TYPE_CHECKING:
    from torchdfa.experiments.results import Row

_MOST = 700.0


@dataclass(frozen=True)
class Measure:
    """What the runs on a data set are judged by.

    Attributes:
        name: In tables.
        label: Of a plot's axis.
        unit: What the data is counted in.
        falls: Whether less is better. Two such values are compared by their ratio, others by their difference.
    """

    name: str
    label: str
    unit: str
    falls: bool

    def of(self, row: Row, part: Literal["train", "val", "test"]) -> float:
        """Return what an epoch came to on a part of the data; NaN where not measured."""
        if self.falls:
            return math.exp(min(getattr(row, f"{part}_loss"), _MOST))
        return getattr(row, f"{part}_top1")

    def scaled(self, value: float) -> float:
        """Return a value on the scale on which values are averaged and compared: their own, or the logarithm's."""
        return math.log(value) if self.falls else value

    def difference(self, mean: float) -> float:
        """Turn a mean difference on that scale into points, or percent."""
        return 100 * (math.exp(mean) - 1) if self.falls else mean


ACCURACY = Measure("top-1", "test top-1 (%)", "images", False)
PERPLEXITY = Measure("perplexity", "test perplexity", "tokens", True)


def measure_of(dataset: str) -> Measure:
    """Return what runs on a data set are judged by."""
    return PERPLEXITY if dataset in TEXTS else ACCURACY
