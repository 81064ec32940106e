"""TrackerConfig: all settings of the tracker, the published ones as defaults where they apply."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from torchdfa.rules import BDFA, Rule
from torchdfa.settings import demand, one_of, positive

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class TrackerConfig:
    """Settings of the tracker: MDNet's (Nam & Han 2016), but for the trunk and what follows from it.

    MDNet's crop of 107 pixels with 16 of them around the box is for a trunk without padding; here the cells at a box's
    border see beyond it anyway.

    Args:
        rule: How the fully connected layers learn: BP, DFA, BDFA or another rule.
        backbone: Name of the trunk: efficientnet-lite0, resnet18, mobilenet_v2, squeezenet1_0, vgg16, vgg-m.
        layers: Its layers that are taken; empty: those chosen for the backbone.
        weights: File of the trunk's weights; by default those of an installed package, or torchvision's.
        head: File of pre-trained first layers, as track-pretrain writes it. By default they start at random.
        precision: Of the trunk and of the search for hard negatives: "float32", "bfloat16", or "auto", which is
            bfloat16 where the processor has arithmetic for it. Everything else is float32.
        seed: Of samples, weights, dropout and random feedback.
        crop: Pixels of the square, in the network's input, that a box is pooled from.
        padding: Pixels of it on each side that lie around the box.
        bins: Cells along each side of a pooled box.
        hidden: Widths of the fully connected layers before the last one.
        dropout: Before each of them but the first.
        momentum: Of SGD.
        weight_decay: Of SGD.
        clip: Largest norm of the gradient; 0: no limit.
        last_lr: Learning rate of the last layer over that of the others.
        positives: Of the target, in a batch.
        negatives: Of the background, in a batch: the ones with the highest scores of those examined.
        examined: Negatives of which those are the hardest.
        first_positives: Samples of the target in the first frame, of overlap 0.7 or more.
        first_negatives: Samples of the background in the first frame, of overlap 0.5 or less.
        first_views: Views of the first frame, shifted and scaled a little against each other, that the samples near the
            target are pooled from. One view would show the trunk's cells in one position against the target only.
        first_iterations: Steps of training in the first frame.
        first_lr: Learning rate there.
        update_positives: Samples a frame while the target is held, of overlap 0.7 or more.
        update_negatives: Likewise, of overlap 0.3 or less.
        update_iterations: Steps of an update.
        update_lr: Learning rate there.
        long_every: Frames from one long-term update to the next.
        long_memory: Frames whose positives are kept.
        short_memory: Frames of a short-term update's positives, and whose negatives are kept.
        candidates: Boxes that are scored in a frame.
        best: Of them, the ones whose mean is the result.
        shift: Largest move of the target from frame to frame, over the mean of its width and height.
        shift_limit: Likewise, as the search widens after failures.
        widening: Of the search at each failure.
        scale: Largest change of size from frame to frame, as a factor.
        reach: From the target's middle to the end of the search region, over the mean of its width and height.
        sure: Share of the mean score of the last frames learnt, ``short_memory`` of them, above which the head learns
            what it has found. Below, it learns once more from those frames, as after a failure. MDNet's is 0, so that
            it learns what hides the target.
        wait: Search for a lost target around the place where it was found last, and with more candidates, as many more
            as the search is wider. MDNet's follows the best of the candidates, though none is good.
        regression_samples: From which the box regression learns in the first frame; 0: no regression.
        regression_alpha: Its ridge penalty.
        regression_leads: Whether samples and the next search start from the regressed box. MDNet's don't: it helps
            where targets change their shape, and drifts away with small, blurred ones.

    Raises:
        ValueError: A setting is out of range.
    """

    rule: Rule = field(default_factory=lambda: BDFA(init="product", center=True, scale=30.0))
    backbone: str = "efficientnet-lite0"
    layers: tuple[str, ...] = ()
    weights: str | None = None
    head: str | None = None
    precision: Precision = "auto"
    seed: int = 0
    crop: int = 96
    padding: int = 0
    bins: int = 3
    hidden: tuple[int, ...] = (512, 512)
    dropout: float = 0.5
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float = 10.0
    last_lr: float = 10.0
    positives: int = 32
    negatives: int = 96
    examined: int = 1024
    first_positives: int = 500
    first_negatives: int = 5000
    first_views: int = 8
    first_iterations: int = 50
    first_lr: float = 5e-4
    update_positives: int = 50
    update_negatives: int = 200
    update_iterations: int = 15
    update_lr: float = 1e-3
    long_every: int = 10
    long_memory: int = 100
    short_memory: int = 30
    candidates: int = 256
    best: int = 5
    shift: float = 0.6
    shift_limit: float = 1.5
    widening: float = 1.1
    scale: float = 1.05
    reach: float = 2.75
    sure: float = 0.5
    wait: bool = True
    regression_samples: int = 1000
    regression_alpha: float = 1000.0
    regression_leads: bool = False

    def __post_init__(self) -> None:
        large = math.inf
        ranges = {
            "crop": (16, 1024), "padding": (0, (self.crop - 1) // 2), "bins": (1, 16), "clip": (0, large),
            "last_lr": (0, large), "positives": (1, large), "negatives": (1, large),
            "examined": (self.negatives, large), "first_positives": (1, large), "first_negatives": (2, large),
            "first_views": (1, 100), "first_iterations": (1, large), "first_lr": (0, large),
            "update_positives": (1, large), "update_negatives": (1, large), "update_iterations": (0, large),
            "update_lr": (0, large), "long_every": (1, large), "long_memory": (1, large),
            "short_memory": (1, self.long_memory), "candidates": (self.best, large), "best": (1, large),
            "shift": (0, self.shift_limit), "shift_limit": (0, self.reach), "widening": (1, 10), "scale": (1, 2),
            "reach": (1, 10), "sure": (0, 1), "regression_samples": (0, large),
        }  # fmt: skip
        within = {
            name: (low <= getattr(self, name) <= high, f"{low:g} or more" if high == large else f"{low:g} to {high:g}")
            for name, (low, high) in ranges.items()
        }
        demand(
            self,
            precision=one_of(self.precision, get_args(Precision)),
            hidden=(all(width >= 1 for width in self.hidden), "widths of 1 or more"),
            regression_alpha=positive(self.regression_alpha),
            **within,
        )

    @property
    def target(self) -> int:
        """Pixels of the network's input along a target that is square."""
        return self.crop - 2 * self.padding

    @property
    def dtype(self) -> torch.dtype:
        """Type that ``precision`` stands for on this machine."""
        fast = self.precision == "auto" and torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast or self.precision == "bfloat16" else torch.float32
