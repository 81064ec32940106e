"""Tracker: follows one object through a video, learning what it looks like as it goes (MDNet, Nam & Han 2016)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torchdfa.online import NonFiniteLossError
from torchdfa.tracking.backbones import Trunk, load_trunk, read_mdnet_head
from torchdfa.tracking.boxes import check_box, inside
from torchdfa.tracking.config import TrackerConfig
from torchdfa.tracking.frames import FrameReader
from torchdfa.tracking.head import BACKGROUND, TARGET, build_head, rates, read_head
from torchdfa.tracking.memory import Cycle, Memory
from torchdfa.tracking.region import Normal, Region, look, view_of, whole_view
from torchdfa.tracking.regression import BoxRegression
from torchdfa.tracking.samples import POSITIVES, Spread, draw, draw_overlapping

# How samples lie around the target; overlaps (IoU) are the paper's, spreads those of its public Python version.
_FIRST_NEAR = Spread(kind="uniform", shift=1.0, scale=1.6)
_FIRST_WHOLE = Spread(kind="whole", scale=1.6)
_NEGATIVES = Spread(kind="uniform", shift=2.0, scale=1.3)
_REGRESSION = Spread(kind="uniform", shift=0.3, scale=1.6, aspect=1.1)


class Tracker:
    """Follows one object from frame to frame.

    ::

        tracker = Tracker(TrackerConfig(rule=dfa.BDFA(init="product", center=True)))
        tracker.init(frames[0], (159, 82, 56, 65))
        for frame in frames[1:]:
            box, score = tracker.update(frame)

    Frames are arrays (H, W, 3) RGB, or grey, of uint8 or uint16. Boxes are x, y, w, h in pixels, the image's left upper
    corner being 0, 0.

    Args:
        config: Settings; the default ones follow the published values.
        trunk: Convolutional network to use in place of the one that ``config`` names, as to share it among trackers.

    Raises:
        ValueError: A setting does not fit.
        DataError: Weights can't be had.
        ImportError: A package is missing; the message says how to install it.
    """

    def __init__(self, config: TrackerConfig | None = None, *, trunk: Trunk | None = None):
        self.config = config or TrackerConfig()
        c = self.config
        self.trunk = trunk or load_trunk(c.backbone, c.layers or None, c.weights, c.dtype)
        self._widen = c.crop / c.target
        self._pretrained: dict[str, Tensor] | None = None
        if c.head is not None:
            self._pretrained, _ = read_head(Path(c.head))
        elif c.backbone == "vgg-m" and c.weights:
            self._pretrained = read_mdnet_head(Path(c.weights)) or None
        self._dtype = c.dtype
        self._started = False

    # ------------------------------------------------------------------------------------------------------ first frame

    def init(self, frame: Any, box: Sequence[float]) -> None:
        """Learn the target from its first frame; what was followed before is forgotten.

        Args:
            frame: Array (H, W, 3) or (H, W).
            box: The target: x, y, w, h. What lies outside the frame is cut off.

        Raises:
            BoxError: The box has no size, or lies outside the frame.
            FrameError: The frame is no image.
        """
        c = self.config
        self._started = False
        self._reader = FrameReader()
        image = self._reader(frame)
        self._size = (image.shape[2], image.shape[1])
        self._box = check_box(box, *self._size)
        self._generator = torch.Generator().manual_seed(c.seed)
        self._shift, self._count = c.shift, 0
        self._learnt: deque[float] = deque(maxlen=c.short_memory)

        regions = self._first_regions(image)
        positives = self._pool_from(regions, self._overlapping(c.first_positives, POSITIVES, above=0.7))
        if not len(positives):  # of a target that is a few pixels wide
            positives = self._features(regions[0], self._box[None])
        near = self._overlapping(c.first_negatives // 2, _FIRST_NEAR, below=0.5)
        negatives = torch.cat([self._pool_from(regions, near), self._far_negatives(image)])

        self._head = build_head(positives.shape[1], c, self._generator, self._pretrained)
        self._learn(positives, negatives, c.first_iterations, c.first_lr)
        self._regression = self._learn_regression(regions)

        self._memory = Memory(c.long_memory, c.short_memory)
        order = torch.randperm(len(negatives), generator=self._generator)[: c.update_negatives]
        chosen = torch.randperm(len(positives), generator=self._generator)[: c.update_positives]
        self._remember(positives[chosen], negatives[order])
        self._started = True

    def _first_regions(self, image: Tensor) -> list[Region]:
        """Look at the target several times, from a little nearer or farther and a little beside it."""
        c = self.config
        jitter = Spread(kind="uniform", shift=self.trunk.align / c.target, scale=1.1)
        boxes = [self._box, *draw(self._box, c.first_views - 1, jitter, self._size, self._generator)]
        regions = [look(self.trunk, image, view_of(box, c.target, c.reach, self.trunk.align)) for box in boxes]
        self._normal = Normal(regions[0].maps)
        for region in regions:
            region.maps = self._normal(region.maps)
        return regions

    def _pool_from(self, regions: list[Region], boxes: Tensor) -> Tensor:
        """Return the features of boxes, each pooled from one of the regions in turn."""
        parts = [self._features(region, boxes[i :: len(regions)]) for i, region in enumerate(regions)]
        return torch.cat([part for part in parts if len(part)]) if len(boxes) else parts[0]

    def _far_negatives(self, image: Tensor) -> Tensor:
        """Return features of boxes anywhere in the image."""
        c = self.config
        view = whole_view(self._box, self._size, c.target, self.trunk.align)
        whole = look(self.trunk, image, view)
        whole.maps = self._normal(whole.maps)
        boxes = self._overlapping(c.first_negatives - c.first_negatives // 2, _FIRST_WHOLE, below=0.5)
        centre = boxes[:, :2] + boxes[:, 2:] / 2
        corner = torch.tensor([view.left, view.top])
        seen = (centre >= corner) & (centre <= corner + torch.tensor([view.width, view.height]))
        return self._features(whole, boxes[seen.all(1)])

    def _learn_regression(self, regions: list[Region]) -> BoxRegression | None:
        c = self.config
        if not c.regression_samples:
            return None
        boxes = self._overlapping(c.regression_samples, _REGRESSION, above=0.6)
        if len(boxes) < 10:
            return None
        features = [self._features(region, boxes[i :: len(regions)]) for i, region in enumerate(regions)]
        ordered = [boxes[i :: len(regions)] for i in range(len(regions))]
        return BoxRegression(torch.cat(features), torch.cat(ordered), self._box, c.regression_alpha)

    # ------------------------------------------------------------------------------------------------- every next frame

    def update(self, frame: Any) -> tuple[tuple[float, float, float, float], float]:
        """Find the target in the next frame, and learn from it.

        Args:
            frame: Array of the first frame's size and type.

        Returns:
            The box x, y, w, h and its score: the log-odds of target against background, above 0 if it was found.

        Raises:
            RuntimeError: There was no ``init``.
            FrameError: The frame is no image, or of another size. The tracker is as it was.
        """
        if not self._started:
            raise RuntimeError("Tracker.update: call init(frame, box) with the first frame first.")
        c = self.config
        image = self._reader(frame)
        region = look(self.trunk, image, view_of(self._box, c.target, c.reach, self.trunk.align))
        region.maps = self._normal(region.maps)
        spread = Spread(kind="gaussian", shift=self._shift, scale=c.scale)
        # As close together as ever, however far the search has widened.
        count = round(c.candidates * (self._shift / c.shift) ** 2) if c.wait and c.shift else c.candidates
        boxes = draw(self._box, count, spread, self._size, self._generator)
        features = self._features(region, boxes)
        scores, best = _odds(self._head.logits(features)).topk(c.best)
        score = scores.mean().item()
        result = seed = inside(boxes[best].mean(0, keepdim=True), *self._size)[0]
        if score > 0:
            self._shift = c.shift
            if self._regression is not None:
                result = self._regression(features[best], boxes[best]).mean(0)
                result = inside(result[None], *self._size)[0]
                if c.regression_leads:
                    seed = result
            self._box = seed
        else:
            self._shift = min(self._shift * c.widening, c.shift_limit)
            if not c.wait:
                self._box = seed
        self._count += 1
        usual = sum(self._learnt) / len(self._learnt) if self._learnt else 0.0
        if score > c.sure * usual:
            self._learnt.append(score)
            self._remember(
                self._features(region, self._overlapping(c.update_positives, POSITIVES, above=0.7)),
                self._features(region, self._overlapping(c.update_negatives, _NEGATIVES, below=0.3)),
            )
            if self._count % c.long_every == 0:
                self._update(None)
        else:
            self._update(c.short_memory)
        x, y, w, h = result.tolist()
        return (x, y, w, h), score

    # ----------------------------------------------------------------------------------------------- sampling, learning

    def _update(self, frames: int | None) -> None:
        c = self.config
        self._learn(self._memory.positives(frames), self._memory.negatives(), c.update_iterations, c.update_lr)

    def _remember(self, positives: Tensor, negatives: Tensor) -> None:
        self._memory.add(positives.to(self._dtype), negatives.to(self._dtype))

    def _overlapping(self, count: int, spread: Spread, above: float = 0.0, below: float = 1.0) -> Tensor:
        return draw_overlapping(self._box, count, spread, self._size, self._generator, above=above, below=below)

    def _features(self, region: Region, boxes: Tensor) -> Tensor:
        return region.pool(boxes, self.config.bins, self._widen)

    def _hardest(self, features: Tensor) -> Tensor:
        """Return the indices of the negatives that the head takes for the target most."""
        x = features.to(self._dtype)
        *hidden, last = self._head.layers
        with torch.no_grad():
            for layer in hidden:
                x = F.relu_(F.linear(x, layer.weight.to(x), layer.bias.to(x)))
            return _odds(last(x.float())).topk(self.config.negatives).indices

    def _learn(self, positives: Tensor, negatives: Tensor, iterations: int, lr: float) -> None:
        """Train the head on batches of positives and of the hardest of many negatives."""
        c = self.config
        negatives = negatives.to(self._dtype)
        self._head.lr = rates(lr, c)
        self._head.reset_momentum()
        targets, others = Cycle(len(positives), self._generator), Cycle(len(negatives), self._generator)
        labels = torch.cat([torch.full((c.positives,), TARGET), torch.full((c.negatives,), BACKGROUND)])
        for _ in range(iterations):
            examined = negatives[others.next(c.examined)]
            hardest = self._hardest(examined)
            batch = torch.cat([positives[targets.next(c.positives)], examined[hardest]])
            try:
                self._head.step(batch, labels)
            except NonFiniteLossError as error:
                raise ValueError(
                    f"the tracker's head has diverged at a learning rate of {lr:g} and clip={c.clip:g} ({error}) "
                    "Try a smaller first_lr or update_lr, or a clip of 10."
                ) from error


def _odds(logits: Tensor) -> Tensor:
    """Return the log-odds of target against background, shape (N,), from logits (N, 2)."""
    return logits[:, TARGET] - logits[:, BACKGROUND]
