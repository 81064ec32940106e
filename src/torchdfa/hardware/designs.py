"""The units that are verified, synthesised and measured, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from torchdfa.feedback.lfsr import WIDTH
from torchdfa.hardware.rtl import Depc, MacCore, MomentumUnit, Requantizer, RunLengthDecoder, RunLengthEncoder
from torchdfa.hardware.rtl.cores import Core
from torchdfa.hardware.rtl.unit import Unit
from torchdfa.hardware.vectors import (
    Operands,
    Vectors,
    core_vectors,
    decoder_vectors,
    demand_cycles,
    encoder_vectors,
    momentum_vectors,
    requantizer_vectors,
)
from torchdfa.settings import demand


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Sizes of the error propagation cores.

    Args:
        terms: Added a cycle and lane; with the generator 1 to 32.
        width: Bits of an error, 2 to 16.
        lanes: Samples at a time, which share the feedback.
        blocks: The longest sum, in cycles.

    Raises:
        ValueError: A size is out of range.
    """

    terms: int = 16
    width: int = 16
    lanes: int = 1
    blocks: int = 64

    def __post_init__(self) -> None:
        ranges = {"terms": (1, 256), "width": (2, 16), "lanes": (1, 256), "blocks": (1, 2**16)}
        demand(
            self,
            **{name: (a <= getattr(self, name) <= b, f"{a} to {b}") for name, (a, b) in ranges.items()},
        )

    def __str__(self) -> str:
        lanes = f"{self.lanes} lane{'s' if self.lanes > 1 else ''}"
        return f"{self.terms} terms, {self.width}-bit errors, {lanes}, sums of {self.blocks} cycles"


@dataclass(frozen=True)
class Design:
    """A unit and how it is synthesised.

    Attributes:
        name: In tables and file names.
        about: What it is, in a line.
        build: Makes it.
        booth: Multipliers by Booth's recoding; otherwise arrays.
    """

    name: str
    about: str
    build: Callable[[Parameters], Unit]
    booth: bool = False

    @property
    def is_core(self) -> bool:
        """Whether it is one of the error propagation cores."""
        return self.name.startswith(("mac", "depc"))


def _mac(bits: int) -> Callable[[Parameters], MacCore]:
    return lambda p: MacCore(p.terms, p.width, bits, p.lanes, p.blocks)


def _requantizer(p: Parameters) -> Requantizer:
    """Build the one that takes the widest core's sums."""
    return Requantizer(_mac(16)(p).sums[0].shape().width, p.width)


DESIGNS = {
    d.name: d
    for d in (
        Design("mac-16x16", "BP core, 16-bit weights, array multipliers", _mac(16)),
        Design("mac-16x16-booth", "BP core, 16-bit weights, Booth multipliers", _mac(16), booth=True),
        Design("mac-16x8", "BP core, 8-bit weights, array multipliers", _mac(8)),
        Design("mac-16x8-booth", "BP core, 8-bit weights, Booth multipliers", _mac(8), booth=True),
        Design("depc-stored", "DEPC, signs from a port", lambda p: Depc(p.terms, p.width, p.lanes, p.blocks)),
        Design(
            "depc-generator",
            "DEPC, signs from its generator",
            lambda p: Depc(p.terms, p.width, p.lanes, p.blocks, "generator"),
        ),
        Design("requantizer", "sum to error: shift, round, saturate", _requantizer),
        Design("momentum", "momentum unit, 16-bit weights", lambda p: MomentumUnit()),
        Design("momentum-guarded", "momentum unit, 24-bit weights", lambda p: MomentumUnit(24)),
        Design("runlength-encoder", "encoder of feature maps", lambda p: RunLengthEncoder()),
        Design("runlength-decoder", "decoder of feature maps", lambda p: RunLengthDecoder()),
    )
}
CORES = tuple(name for name, design in DESIGNS.items() if design.is_core)


def demand_buildable(names: Sequence[str], p: Parameters) -> None:
    """Check sizes against the designs that are to have them.

    Args:
        names: Of the designs.
        p: The sizes.

    Raises:
        ValueError: A cycle's terms are more than the bits that the generator makes, and it is among the designs.
    """
    if "depc-generator" in names and p.terms > WIDTH:
        raise ValueError(
            f"Parameters: terms={p.terms}, expected at most {WIDTH} for depc-generator, whose register has no "
            "more fresh bits a cycle; leave it out by --designs."
        )


def vectors_for(unit: Unit, operands: Operands, maps: np.ndarray, rng: np.random.Generator) -> Vectors:
    """Return the vectors of a unit: a core's from operands, the codec's from feature maps (T, S), random otherwise.

    Raises:
        ValueError: There are fewer than two cycles, or no stream.
    """
    demand_cycles(*maps.shape)
    if isinstance(unit, Core):
        return core_vectors(unit, operands)
    if isinstance(unit, RunLengthEncoder):
        return encoder_vectors(unit, maps)
    if isinstance(unit, RunLengthDecoder):
        return decoder_vectors(unit, maps)
    make = {Requantizer: requantizer_vectors, MomentumUnit: momentum_vectors}[type(unit)]
    return make(unit, rng, *maps.shape)  # type: ignore[operator]
