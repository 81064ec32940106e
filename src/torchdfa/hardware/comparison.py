"""DEPC against BP's core: savings, what they leave of a whole core, and the DRAM fetches that generated signs spare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchdfa.hardware.rows import Measured, Synthesised

PAPER = 35.3  # percent: Han & Yoo 2019, §5.2, of the core; the abstract says it of the accelerator
# pJ a bit, and whose figure it is.
DRAM_PJ = {
    "HBM2 (O'Connor et al. 2017)": 3.9,
    "DRAM, low (Horowitz 2014)": 20.0,
    "DRAM, high (Horowitz 2014)": 40.0,
}


@dataclass(frozen=True)
class Saving:
    """Of a DEPC against a BP core of the same terms a cycle, on the same errors.

    Attributes:
        depc: Its design's name.
        mac: The BP core's.
        library: Of both.
        size: Of both.
        wires: As in :class:`Measured`.
        stream: What both were fed with.
        delays: ``zero`` or ``timed``.
        energy: Percent less energy a term.
        area: Percent less area.
    """

    depc: str
    mac: str
    library: str
    size: str
    wires: float
    stream: str
    delays: str
    energy: float
    area: float

    @property
    def implied_share(self) -> float:
        """Percent of BP's core in parts common to both at which the whole core saves what the paper says; < 0: none."""
        return 100 * (1 - PAPER / self.energy) if self.energy > 0 else float("-inf")


def savings(measured: Sequence[Measured], synthesised: Sequence[Synthesised]) -> list[Saving]:
    """Return every pair of a DEPC and a BP core that were measured alike."""
    areas = {(s.library, s.size, s.design): s.area for s in synthesised}
    found = []
    for m in measured:
        for d in measured:
            if _alike(m) == _alike(d) and m.design.startswith("mac") and d.design.startswith("depc"):
                before, after = (areas.get((c.library, c.size, c.design)) for c in (m, d))
                area = 100 * (1 - after / before) if before and after else float("nan")
                energy = 100 * (1 - d.per_term / m.per_term)
                found.append(Saving(d.design, m.design, *_alike(m), energy, area))
    return found


def _alike(m: Measured) -> tuple[str, str, float, str, str]:
    """Return what two cores must have in common to be compared."""
    return m.library, m.size, m.wires, m.stream, m.delays


def core_saving(datapath: float, share: float) -> float:
    """Return what a whole core saves, percent, of which ``share`` percent of BP's power is in parts common to both."""
    return datapath * (1 - share / 100)


@dataclass(frozen=True)
class Fetch:
    """What feedback costs a term to have.

    Attributes:
        what: The feedback and where it comes from.
        memory: Of DRAM's energies, whose; "" where there is none.
        batch: Samples that use it once fetched.
        picojoules: A term.
    """

    what: str
    memory: str
    batch: int
    picojoules: float


def fetches(measured: Sequence[Measured], batches: Sequence[int] = (1, 32)) -> list[Fetch]:
    """Return DRAM's energies of weights and stored signs, and the generator's, as measured where delays are timed."""
    found = [
        Fetch(what, memory, batch, bits * pj / batch)
        for what, bits in (("16-bit weight", 16), ("8-bit weight", 8), ("stored sign", 1))
        for memory, pj in DRAM_PJ.items()
        for batch in batches
    ]
    by = {(m.design, *_alike(m)): m for m in measured}
    delays = "timed" if any(m.delays == "timed" for m in measured) else "zero"
    for m in measured:
        if m.design == "depc-generator" and m.delays == delays and m.stream == "uniform" and m.wires == 1:
            stored = by.get(("depc-stored", *_alike(m)))
            if stored is not None:
                extra = m.per_term - stored.per_term
                found.append(Fetch(f"generated sign ({m.library}, {delays})", "", 1, extra))
    return found
