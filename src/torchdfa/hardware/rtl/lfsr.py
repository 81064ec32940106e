"""The feedback generator: a 32-bit linear feedback shift register that leaps several shifts a cycle."""

# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# Amaranth's types say neither that `with m.If(...)` is a context nor which slices of a signal are values.
from __future__ import annotations

from amaranth.hdl import Cat, Module

from torchdfa.feedback.lfsr import WIDTH, leap_columns
from torchdfa.hardware.rtl.unit import Unit, named


class Lfsr(Unit):
    """The register of :mod:`torchdfa.feedback.lfsr`: each next bit is the parity of a few bits of the state.

    Args:
        leap: Shifts a cycle, 1 to 32: as many bits of the state are fresh.

    Raises:
        ValueError: The leap is out of range.
    """

    latency = 1

    def __init__(self, leap: int):
        super().__init__()
        if not 1 <= leap <= WIDTH:
            raise ValueError(f"Lfsr: leap={leap}, expected 1 to {WIDTH}: a register has no more fresh bits a cycle.")
        self.leap = leap
        self.seed, self.load, self.step = self.input("seed", WIDTH), self.input("load"), self.input("step")
        self.state = self.output("state", WIDTH, init=1)

    def elaborate(self, platform: object) -> Module:
        """Build it."""
        m = Module()
        columns = leap_columns(self.leap)
        bits = [
            named(m, f"next_{i}", Cat(*[self.state[j] for j in range(WIDTH) if columns[j] >> i & 1]).xor())
            for i in range(WIDTH)
        ]
        with m.If(self.load):
            m.d.sync += self.state.eq(self.seed)
        with m.Elif(self.step):
            m.d.sync += self.state.eq(Cat(*bits))
        return m
