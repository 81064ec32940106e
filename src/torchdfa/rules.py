"""The rules: how each layer's error is made. A rule is data; :func:`torchdfa.convert` carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from torchdfa.feedback import ConvFeedback, DenseFeedback, Feedback, Geometry, PackedFeedback, SeededFeedback
from torchdfa.feedback.binary import DRAW, Generator
from torchdfa.feedback.bits import key_of, unpack
from torchdfa.feedback.init import Init, Scale, Site, magnitude, product, scaled, uniform
from torchdfa.settings import demand, one_of, positive, whole
from torchdfa.structure import CONVOLUTIONS, CUTTABLE

Trunk = Literal["direct", "chain"]
Storage = Literal["packed", "seeded"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What all rules have in common.

    A rule that is given for a whole model takes the layers of the types ``chooses``; one that is given for the modules
    matching a pattern takes those of the types ``fits``.

    Attributes:
        chooses: Layer types that the rule takes in a whole model.
        fits: Layer types that it can take where a pattern names them.
        local: The scope of the error is the layer itself, not the network.
        modular: The scopes of the error are modules of the network.
        freezes: The layer's parameters don't learn.
    """

    chooses: ClassVar[tuple[type[nn.Module], ...]] = (nn.Module,)
    fits: ClassVar[tuple[type[nn.Module], ...]] = (nn.Module,)
    local: ClassVar[bool] = False
    modular: ClassVar[bool] = False
    freezes: ClassVar[bool] = False

    def feedback(self, site: Site) -> Feedback | None:
        """Make the feedback for a layer; None if the rule leaves its input uncut."""
        return None

    @property
    def spares_first(self) -> bool:
        """Whether the first layer that the rule takes keeps its uncut input."""
        return False

    @property
    def wide(self) -> bool:
        """Whether errors come from the network's output."""
        return not (self.local or self.modular)


@dataclass(frozen=True, kw_only=True)
class BP(Rule):
    """Back-propagation: errors pass through every layer's transposed weights (eq. 2 of Han & Yoo 2019)."""


@dataclass(frozen=True, kw_only=True)
class Frozen(Rule):
    """Layers that don't learn; errors pass through them by back-propagation.

    For a whole model it freezes the Linear layers: Han & Yoo's control "Conv. only training".
    """

    chooses = (nn.Linear,)
    freezes = True


@dataclass(frozen=True, kw_only=True)
class FeedbackRule(Rule):
    """A rule that sends errors through fixed feedback.

    Args:
        init: ``"random"``, or ``"product"``: the product of the forward weights from the layer to the scope's output
            (eq. 7 of Han & Yoo 2019), as they are when the model is converted.
        scale: Mean absolute value of the feedback's entries. ``"matched"``: equal to that of the product, whatever
            ``init`` is; where there is no product (a convolution lies between, or the weights are zero) as
            ``"nokland"``. ``"nokland"``: that of U(±1/√H), H being the activation's size. ``"unit"``: 1. A positive
            number: that many times "matched".
        seed: Of the random entries; each layer draws its own, from the seed and its name.

    Raises:
        ValueError: A field has a value that is none of these.
    """

    init: Init = "random"
    scale: Scale = "matched"
    seed: int = 0

    chooses = CUTTABLE
    fits = CUTTABLE

    def __post_init__(self) -> None:
        sizes = ("matched", "unit", "nokland")
        demand(
            self,
            init=one_of(self.init, get_args(Init)),
            scale=one_of(self.scale, sizes) if isinstance(self.scale, str) else positive(self.scale),
            seed=whole(self.seed, least=None),
        )

    def entries(self, site: Site) -> Tensor:
        """Return real-valued entries for a feedback, shape (K, H): the product's, or random ones of its size."""
        size = magnitude(self.scale, site)
        if self.init == "product":
            return scaled(product(site), size)
        return 2 * size * uniform((site.errors, site.features), self.seed, site.name)


@dataclass(frozen=True, kw_only=True)
class FA(FeedbackRule):
    """Feedback alignment: each layer's fixed ``B`` for its ``Wᵀ`` (Lillicrap et al. 2016; eq. 5 of Han & Yoo 2019).

    The scope is the layer itself, so that ``init="product"`` starts from ``B = W``.
    """

    local = True

    def feedback(self, site: Site) -> Feedback:
        """Make ``B`` in the shape of the layer's weight."""
        b = self.entries(site).reshape(site.weight.shape).to(site.weight)
        if isinstance(site.layer, CONVOLUTIONS):
            return ConvFeedback(b, Geometry.of(site.layer))
        return DenseFeedback(b, per_position=True)


@dataclass(frozen=True, kw_only=True)
class DFA(FeedbackRule):
    """Direct feedback alignment: ``e_i = D_iᵀ e_L ⊙ f′`` with dense, fixed ``D_i`` (Nøkland 2016).

    In a whole model it cuts every Linear and convolution layer but the first.
    """

    def feedback(self, site: Site) -> Feedback:
        """Make ``D``, shape (K, H)."""
        return DenseFeedback(self.entries(site).to(site.weight), per_position=site.per_position)


@dataclass(frozen=True, kw_only=True)
class BDFA(FeedbackRule):
    """Binary direct feedback alignment: feedback of ±1, one bit an entry, times one scale (eq. 9 of Han & Yoo 2019).

    Args:
        init: ``"random"`` signs, or the signs of the ``"product"``.
        scale: As in :class:`DFA`; ``"unit"`` is ±1 as the paper prints it.
        seed: As in :class:`DFA`.
        storage: ``"packed"``: bits in memory. ``"seeded"``: random bits made anew from the seed at every use; the
            same ones as packed.
        generator: Of random bits. ``"hash"`` makes any word alone and is the faster one here; ``"lfsr"`` is the shift
            register that :mod:`torchdfa.hardware` builds, so that a network trained here and the chip have the same.
        center: Take the signs after subtracting the mean over the scope's outputs. With two classes, whose errors
            are opposite, uncentred signs leave every unit whose two signs agree without any error.
    """

    storage: Storage = "packed"
    center: bool = False
    generator: Generator = "hash"

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(
            self,
            storage=one_of(self.storage, get_args(Storage)),
            generator=one_of(self.generator, get_args(Generator)),
        )
        if self.init == "product" or self.center:
            what = "init='product'" if self.init == "product" else "center=True"
            for name, needed in (("storage", "packed"), ("generator", "hash")):
                if (value := getattr(self, name)) != needed:
                    raise ValueError(
                        f"{type(self).__name__}: {name}={value!r} draws random bits, which {what} does not have. "
                        f"Use {name}={needed!r}."
                    )

    def feedback(self, site: Site) -> Feedback:
        """Make ``B``, K × H bits, or the seed of them."""
        scale = site.weight.new_tensor(magnitude(self.scale, site))
        key = key_of(self.seed, site.name)
        if self.storage == "seeded":
            return SeededFeedback(
                site.errors, site.features, key, scale, per_position=site.per_position, generator=self.generator
            )
        if self.init == "product":
            positive = self._centered(product(site)) >= 0
        elif self.center:
            positive = self._centered(uniform((site.errors, site.features), self.seed, site.name)) >= 0
        else:
            bits = DRAW[self.generator](torch.tensor(key, device="cpu"), site.errors, site.features)
            positive = unpack(bits, site.features, torch.float32) > 0
        return PackedFeedback(positive.to(scale.device), scale, per_position=site.per_position)

    def _centered(self, entries: Tensor) -> Tensor:
        return entries - entries.mean(dim=0) if self.center else entries


@dataclass(frozen=True, kw_only=True)
class _HeadRule(FeedbackRule):
    """What makes CDFA and CBDFA the rules of a convolutional network's head.

    Args:
        trunk: How the error reaches the trunk below the first Linear layer. ``"direct"``: by that layer's own
            feedback ``D₀``. ``"chain"``: through its live weights, ``W₁ᵀ e₁``.
    """

    trunk: Trunk = "direct"

    chooses = (nn.Linear,)
    fits = (nn.Linear,)

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(self, trunk=one_of(self.trunk, get_args(Trunk)))

    @property
    def spares_first(self) -> bool:
        """Whether the first Linear layer keeps its uncut input: with ``trunk="chain"``."""
        return self.trunk == "chain"


@dataclass(frozen=True, kw_only=True)
class CDFA(_HeadRule, DFA):
    """Back-propagation in the convolutions, DFA in the Linear layers (§3.1 of Han & Yoo 2019).

    Its fields are those of :class:`DFA`, and ``trunk``: ``"direct"`` sends the error to the trunk by the first Linear
    layer's own feedback ``D₀``, ``"chain"`` through its live weights, ``W₁ᵀ e₁``.
    """


@dataclass(frozen=True, kw_only=True)
class CBDFA(_HeadRule, BDFA):
    """Back-propagation in the convolutions, binary DFA in the Linear layers (§3.2 of Han & Yoo 2019).

    Its fields are those of :class:`BDFA`, and ``trunk`` as in :class:`CDFA`.
    """
