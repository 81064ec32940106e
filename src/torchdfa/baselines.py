"""Rules to judge fixed feedback by: feedback that learns, that has the weights' signs, that carries the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import nn

from torchdfa.feedback import (
    ConvFeedback,
    DenseFeedback,
    Feedback,
    Geometry,
    KolenPollackConvFeedback,
    KolenPollackFeedback,
    SignConvFeedback,
    SignFeedback,
    TargetFeedback,
)
from torchdfa.feedback.bits import key_of
from torchdfa.feedback.init import Site, magnitude, uniform
from torchdfa.feedback.signs import Magnitudes
from torchdfa.feedback.target import Output
from torchdfa.rules import FeedbackRule
from torchdfa.settings import demand, one_of
from torchdfa.structure import CONVOLUTIONS

Magnitude = Literal["uniform", "fixed", "batch"]


@dataclass(frozen=True, kw_only=True)
class _LayerOrNetwork(FeedbackRule):
    """A rule whose scope is each layer, as feedback alignment's, or the network, as direct feedback alignment's.

    Args:
        direct: Whether it is the network.
    """

    direct: bool = False

    dense: ClassVar[type[DenseFeedback]] = DenseFeedback
    convolution: ClassVar[type[ConvFeedback]] = ConvFeedback

    @property
    def local(self) -> bool:  # type: ignore[override]
        """Whether the scope of the error is the layer itself."""
        return not self.direct

    def feedback(self, site: Site) -> Feedback:
        """Make ``B``, of the shape of the layer's weight or (K, H)."""
        b = self.entries(site).to(site.weight)
        if self.direct:
            return self.dense(b, per_position=site.per_position)
        b = b.reshape(site.weight.shape)
        if isinstance(site.layer, CONVOLUTIONS):
            return self.convolution(b, Geometry.of(site.layer))
        return self.dense(b, per_position=True)


@dataclass(frozen=True, kw_only=True)
class KolenPollack(_LayerOrNetwork):
    """Feedback that learns by the gradient ``eᵀ h``, and decays, as the weights do.

    The feedback is a parameter of the model, to be given to the optimizer, with weight decay: convert first. With
    ``direct=False`` it and the weights get the same updates, so that decay makes them equal (Kolen & Pollack 1994;
    Akrout et al. 2019). With ``direct=True`` it is DFA's feedback that learns so (Webster et al. 2021).
    """

    dense = KolenPollackFeedback
    convolution = KolenPollackConvFeedback

    def feedback(self, site: Site) -> Feedback:
        """Make ``B``, which learns where the layer does."""
        return super().feedback(site).requires_grad_(next(site.layer.parameters()).requires_grad)


@dataclass(frozen=True, kw_only=True)
class WeightMirror(_LayerOrNetwork):
    """Feedback that follows the weights by correlating noise with what comes of it (Akrout et al. 2019).

    :func:`torchdfa.mirror` does the correlating, between training steps. With ``direct=False`` it is each layer's
    noise and output; with ``direct=True`` each cut activation's noise and the network's output.
    """


@dataclass(frozen=True, kw_only=True)
class SignSymmetry(FeedbackRule):
    """Feedback alignment with the signs of the present weights (Liao et al. 2016; Moskovitz et al. 2018).

    Args:
        magnitude: ``"uniform"``: all equal (uSF). ``"fixed"``: drawn once (frSF). ``"batch"``: drawn anew whenever the
            weights have changed (brSF).
        scale: Mean magnitude, as in :class:`torchdfa.FA`.
        seed: As in :class:`torchdfa.FA`.
        init: ``"random"`` alone: the signs are the weights'.
    """

    magnitude: Magnitude = "uniform"

    local = True

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(self, magnitude=one_of(self.magnitude, get_args(Magnitude)), init=one_of(self.init, ("random",)))

    def feedback(self, site: Site) -> Feedback:
        """Make the magnitudes; the signs are read in every forward."""
        size = site.weight.new_tensor(magnitude(self.scale, site))
        fixed = key = None
        if self.magnitude == "fixed":
            # U(0, 2): of mean 1.
            fixed = 2 * uniform(site.weight.shape, self.seed, site.name).abs().to(site.weight)
        elif self.magnitude == "batch":
            key = key_of(self.seed, site.name)
        magnitudes = Magnitudes(size, fixed, key)
        if isinstance(site.layer, CONVOLUTIONS):
            return SignConvFeedback(site.layer, magnitudes)
        assert isinstance(site.layer, nn.Linear)
        return SignFeedback(site.layer, magnitudes)


@dataclass(frozen=True, kw_only=True)
class DRTP(FeedbackRule):
    """Direct random target projection: DFA that sends the target in place of the error (Frenkel et al. 2021).

    For classification: the loss must be the cross-entropy of the outputs' softmax or sigmoid with targets of 0 and 1,
    weighted or not. Of another loss it makes nothing sensible. What hidden layers get does not shrink as the error
    does: unbounded activations such as ReLU let it grow without end, tanh and sigmoid don't.

    Args:
        output: ``"softmax"`` or ``"sigmoid"``.
    """

    output: Output = "softmax"

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(self, output=one_of(self.output, get_args(Output)))

    def feedback(self, site: Site) -> Feedback:
        """Make ``B``, shape (K, H)."""
        return TargetFeedback(self.entries(site).to(site.weight), self.output, per_position=site.per_position)
