"""How the entries of a feedback are chosen: their signs and shape, and their size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from torchdfa.feedback.bits import key_of

if TYPE_CHECKING:
    from torchdfa.structure.path import Path

Init = Literal["random", "product"]
Scale = Literal["matched", "unit", "nokland"] | float


class NoProductError(ValueError):
    """The product of forward weights (eq. 7 of Han & Yoo 2019) does not exist for a layer; the message says why."""


@dataclass(frozen=True)
class Site:
    """A place where a network is cut, and what a rule may read there to make its feedback.

    Attributes:
        name: The layer's name in the model.
        layer: The layer whose input is cut.
        errors: K, entries of the error at the scope's output.
        features: H, entries of the activation.
        per_position: See :class:`torchdfa.feedback.Feedback`.
        product: Returns ``W_L … W_{i+1}``, shape (K, H), float64, or raises NoProductError.
        path: What leads from the activation to the scope's output, where both are maps of channels. Errors and
            features are then the channels'.
    """

    name: str
    layer: nn.Module
    errors: int
    features: int
    per_position: bool
    product: Callable[[], Tensor]
    path: Path | None = None

    @property
    def weight(self) -> Tensor:
        """The layer's weight, or a module's first: feedback has its type and device."""
        weight = getattr(self.layer, "weight", None)
        return (weight if isinstance(weight, Tensor) else next(self.layer.parameters())).detach()


def uniform(shape: torch.Size | tuple[int, ...], seed: int, name: str) -> Tensor:
    """Draw U(-1, 1), float32, the same for a seed and a layer's name on every rank and device."""
    generator = torch.Generator("cpu").manual_seed(key_of(seed, name))
    return torch.empty(shape, dtype=torch.float32, device="cpu").uniform_(-1, 1, generator=generator)


def product(site: Site) -> Tensor:
    """Return the site's product of forward weights, or raise NoProductError, also if it is all zero."""
    value = site.product()
    if not value.any():
        raise NoProductError(
            f"init='product' for {site.name!r}: the product of the forward weights is zero, so it would carry no "
            "error. Use init='random' with weights that start at zero."
        )
    return value


def magnitude(scale: Scale, site: Site) -> float:
    r"""Return the mean absolute value that the entries of a feedback shall have.

    ``"matched"``: that of the product (7); where there is none (above a convolution, or all zero), Nøkland's.
    ``"nokland"``: ``1 / (2 √H)``, the mean of \\|U(±1/√H)\\| (Nøkland 2016). ``"unit"``: 1. A number: that many
    times "matched".
    """
    if scale == "unit":
        return 1.0
    nokland = 0.5 / site.features**0.5
    if scale == "nokland":
        return nokland
    try:
        matched = product(site).abs().mean().item()
    except NoProductError:
        matched = nokland
    return matched if scale == "matched" else scale * matched


def scaled(entries: Tensor, size: float) -> Tensor:
    """Return entries whose mean absolute value is ``size``."""
    return entries * (size / entries.abs().mean())
