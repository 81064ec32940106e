"""The rules that divide a network into modules: direct feedback within them, between them, or both.

The idea is that of Han et al. 2020 (arXiv 2006.12830), of which we know the abstract alone. What is theirs and what is
our reading of it stands in docs/modules.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from torchdfa.feedback import (
    BinaryConvFeedback,
    BinarySparseFeedback,
    ConvFeedback,
    DenseFeedback,
    Feedback,
    PackedFeedback,
    SparseFeedback,
)
from torchdfa.feedback.bits import draw, key_of, unpack
from torchdfa.feedback.conv import Upsample
from torchdfa.feedback.init import Site, magnitude, product, scaled, uniform
from torchdfa.feedback.sparse import Blocks
from torchdfa.feedback.time import Steps
from torchdfa.rules import FeedbackRule
from torchdfa.settings import demand, one_of, positive, whole
from torchdfa.structure import LAYERS

Source = Literal["module", "network"]
Direct = Literal["inside", "between"]


@dataclass(frozen=True, kw_only=True)
class ModuleRule(FeedbackRule):
    """What ModuleDFA and HybridDFA have in common.

    Args:
        modules: Shell patterns on module names: what they match are the modules, or, where they match single layers,
            what these are collected from. None: they are found: runs of convolutions between poolings and strides, of
            Linear layers, a ResNet's stages, a transformer's blocks, recurrent layers.
        groups: Groups of channels of the feedback convolutions: their products and their bytes shrink by as much.
        dilation: Of the feedback convolutions, which have three taps a dimension. ``"matched"``: as many positions as
            make the receptive field that of the layers they skip, for 3 × 3 convolutions their number. Or a number.
        upsample: How a feedback convolution makes up for strides: ``"transposed"``, as the transpose of one that has
            them, or ``"nearest"``: on the error repeated to the activation's size.
        density: Share of the entries of feedback matrices (to Linear and recurrent layers) that is not zero; 1 / n.
        binary: Entries ±1 times one scale, one bit each, as in :class:`torchdfa.BDFA`.
        chunk: Steps of a recurrent layer that make a module. None: all. A cell is a module of one step.
        decay: λ, by which the error of each later step counts less at the states before it.
        init: ``"random"``, or ``"product"``: the composition of the skipped layers' weights, as they are when the
            model is converted, at the taps and channels that the feedback has.
        scale: As in :class:`torchdfa.DFA`; the mean absolute value of the entries that are kept.
        seed: As in :class:`torchdfa.DFA`.
    """

    modules: str | tuple[str, ...] | None = None
    groups: int = 1
    dilation: int | Literal["matched"] = "matched"
    upsample: Upsample = "transposed"
    density: float = 1.0
    binary: bool = False
    chunk: int | None = None
    decay: float = 0.5

    modular = True
    chooses = LAYERS
    fits = LAYERS

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.modules, list):  # as configuration files have it
            object.__setattr__(self, "modules", tuple(self.modules))
        dense = 0 < self.density <= 1 and abs(self.density * round(1 / self.density) - 1) <= 1e-3
        demand(
            self,
            upsample=one_of(self.upsample, get_args(Upsample)),
            groups=whole(self.groups),
            dilation=(
                self.dilation == "matched" or whole(self.dilation)[0],
                "'matched' or a whole number of 1 or more",
            ),
            chunk=(self.chunk is None or whole(self.chunk)[0], "a whole number of 1 or more, or None"),
            decay=(positive(self.decay)[0] and self.decay <= 1, "a number in (0, 1]"),
            density=(dense, "1 / n with a whole n: 1, 0.5, 0.333, 0.25 …"),
        )

    @property
    def patterns(self) -> tuple[str, ...] | None:
        """The shell patterns of ``modules``."""
        return (self.modules,) if isinstance(self.modules, str) else self.modules

    @property
    def within(self) -> bool:
        """Whether the layers inside a module get direct feedback."""
        raise NotImplementedError

    @property
    def between(self) -> Source | None:
        """Where the direct feedback to a module's input comes from; None: it is back-propagated."""
        raise NotImplementedError

    @property
    def wide(self) -> bool:
        """Whether errors come from the network's output."""
        return self.between == "network"

    @property
    def steps(self) -> Steps | None:
        """Which states in a module of a recurrent layer's steps get direct feedback."""
        inner = "inner" if self.within else None
        return inner if self.between is None else "all" if self.within else "first"

    def feedback(self, site: Site) -> Feedback:
        """Make a feedback convolution where the error and the activation are maps, else a matrix."""
        return self._matrix(site) if site.path is None else self._convolution(site)

    def _convolution(self, site: Site) -> Feedback:
        assert site.path is not None
        path, like = site.path, site.weight
        taken = (self.groups, self.dilation, self.upsample)
        geometry = path.geometry(*taken)
        shape = (path.outputs, path.inputs // self.groups, *geometry.kernel)
        taps = torch.Size(shape[1:]).numel()
        precise = like if like.dtype == torch.float64 else like.float()
        # Where the size alone is wanted a few outputs' kernels tell it: composing all takes long in wide networks.
        sampled = self.init != "product"
        composed = cache(lambda: path.kernels(taken, precise, sampled=sampled).flatten(1))
        site = dataclasses.replace(site, features=taps, product=composed)
        entries, size = self._entries(site, shape)
        if self.binary:
            return BinaryConvFeedback((entries >= 0).to(like.device), like.new_tensor(size), geometry)
        return ConvFeedback(entries.to(like), geometry)

    def _matrix(self, site: Site) -> Feedback:
        count, like = round(1 / self.density), site.weight
        if count == 1:
            entries, size = self._entries(site, (site.errors, site.features))
            if self.binary:
                return PackedFeedback(
                    (entries >= 0).to(like.device), like.new_tensor(size), per_position=site.per_position
                )
            return DenseFeedback(entries.to(like), per_position=site.per_position)
        if count > min(site.errors, site.features):
            raise ValueError(
                f"density={self.density} at {site.name!r}: its {site.errors} × {site.features} feedback would have "
                "empty rows or columns."
            )
        generator = torch.Generator().manual_seed(key_of(self.seed, f"{site.name}/order"))
        order = torch.randperm(site.errors, generator=generator, device="cpu")
        blocks = Blocks(site.errors, site.features, count, order)
        places = blocks.places
        kept = dataclasses.replace(
            site, product=lambda: site.product().flatten().cpu()[places.clamp(min=0)].where(places >= 0, 0.0)
        )
        entries, size = self._entries(kept, places.shape)
        if self.binary:
            positive = (entries >= 0).to(like.device)
            return BinarySparseFeedback(positive, like.new_tensor(size), blocks, per_position=site.per_position)
        return SparseFeedback(entries.where(places >= 0, 0.0).to(like), blocks, per_position=site.per_position)

    def _entries(self, site: Site, shape: tuple[int, ...]) -> tuple[Tensor, float]:
        """Return entries of a shape, and their mean absolute value."""
        size = magnitude(self.scale, site)
        if self.init == "product":
            return scaled(product(site).cpu(), size).reshape(shape), size
        if self.binary:
            rows = shape[0]
            columns = torch.Size(shape[1:]).numel()
            bits = draw(torch.tensor(key_of(self.seed, site.name), device="cpu"), rows, columns)
            return unpack(bits, columns, torch.float32).view(shape), size
        return 2 * size * uniform(shape, self.seed, site.name), size


@dataclass(frozen=True, kw_only=True)
class ModuleDFA(ModuleRule):
    """Direct feedback within the modules of a network, and between them.

    Every layer in a module gets the error of the module's output through feedback of its own; so does the module's
    input, from which the error of the module below is taken.

    Args:
        source: Where the feedback to a module's input comes from: its own output (``"module"``) or the output of the
            ``"network"``, by dense feedback, which needs ``example=``. Recurrent layers take it from their own output.
    """

    source: Source = "module"

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(self, source=one_of(self.source, get_args(Source)))

    @property
    def within(self) -> bool:
        """Whether the layers inside a module get direct feedback: yes."""
        return True

    @property
    def between(self) -> Source | None:
        """Where the direct feedback to a module's input comes from: ``source``."""
        return self.source


@dataclass(frozen=True, kw_only=True)
class HybridDFA(ModuleRule):
    """Direct feedback within the modules of a network, back-propagation between them; or the reverse.

    The error of a module's output reaches every layer inside through feedback of its own. The module's first layer
    hands its own error down by its transposed weights.

    Args:
        direct: Where feedback is direct: ``"inside"`` the modules, or ``"between"`` them: then the error of the
            network's output enters at every module's input, and modules back-propagate it. For a transformer's blocks
            that is block-level DFA (Launay et al. 2020).
        source: Where the feedback between modules comes from, as in :class:`ModuleDFA`.
    """

    direct: Direct = "inside"
    source: Source = "network"

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(self, direct=one_of(self.direct, get_args(Direct)), source=one_of(self.source, get_args(Source)))

    @property
    def within(self) -> bool:
        """Whether the layers inside a module get direct feedback."""
        return self.direct == "inside"

    @property
    def between(self) -> Source | None:
        """Where the direct feedback to a module's input comes from; None: it is back-propagated."""
        return self.source if self.direct == "between" else None
