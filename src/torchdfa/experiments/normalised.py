"""A rule that was tried, and is no option of the library's: binary feedback of errors brought to one length.

It shows how a rule is made from another one: a data class that wraps the feedback.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from torchdfa.feedback import Feedback
from torchdfa.feedback.init import Site
from torchdfa.rules import BDFA


class NormalisedFeedback(Feedback):
    """Another feedback, given each sample's error at the batch's mean length.

    Samples that the network gets right then send as much down as those that it gets wrong. The mean keeps the errors
    proportional to the loss's scale.

    Args:
        inner: The feedback that carries them.
    """

    def __init__(self, inner: Feedback):
        super().__init__(inner.errors, inner.features, per_position=inner.per_position)
        self.inner = inner

    def forward(self, e: Tensor) -> Tensor:
        """Return the error at the activation, shape (N, H), for ``e`` of shape (N, K)."""
        lengths = e.norm(dim=1, keepdim=True)
        return self.inner(e * (lengths.mean() / lengths.clamp_min(1e-30)))

    def dense(self) -> Tensor:
        """Return the inner feedback's matrix, shape (K, H)."""
        return self.inner.dense()


@dataclass(frozen=True, kw_only=True)
class NormalisedBDFA(BDFA):
    """BDFA whose feedback sees errors of one length."""

    def feedback(self, site: Site) -> Feedback:
        """Make the feedback of :class:`torchdfa.BDFA`, and what brings the errors to one length before it."""
        return NormalisedFeedback(super().feedback(site))
