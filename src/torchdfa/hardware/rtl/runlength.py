"""The run-length codec of the output memory: an element or a code a cycle."""

# pyright: reportGeneralTypeIssues=false
# Amaranth types its `with m.If(...)` as a generator.
from __future__ import annotations

from amaranth.hdl import Module, Signal

from torchdfa.hardware.model.runlength import RUN_BITS
from torchdfa.hardware.rtl.unit import Unit


class RunLengthEncoder(Unit):
    """Takes an element a cycle (``valid``, ``last``), gives a code where one is complete (``ready``).

    Args:
        width: Bits of an element.
        run_bits: Bits of a run.
    """

    latency = 1

    def __init__(self, width: int = 16, run_bits: int = RUN_BITS):
        super().__init__()
        self.run_bits = run_bits
        self.x, self.valid, self.last = self.input("x", width), self.input("valid"), self.input("last")
        self.run, self.value, self.ready = (
            self.output("run", run_bits),
            self.output("value", width),
            self.output("ready"),
        )

    def elaborate(self, platform: object) -> Module:
        """Build it."""
        m = Module()
        zeros = Signal(self.run_bits, name="zeros")
        ends = Signal(name="ends")
        m.d.comb += ends.eq(self.valid & ((self.x != 0) | zeros.all() | self.last))
        m.d.sync += self.ready.eq(ends)
        with m.If(ends):
            m.d.sync += [self.run.eq(zeros), self.value.eq(self.x), zeros.eq(0)]
        with m.Elif(self.valid):
            m.d.sync += zeros.eq(zeros + 1)
        return m


class RunLengthDecoder(Unit):
    """Takes a code (``valid``) where it is not ``busy``, gives its elements, one a cycle (``ready``).

    Args:
        width: Bits of an element.
        run_bits: Bits of a run.
    """

    latency = 1

    def __init__(self, width: int = 16, run_bits: int = RUN_BITS):
        super().__init__()
        self.width, self.run_bits = width, run_bits
        self.run, self.value, self.valid = self.input("run", run_bits), self.input("value", width), self.input("valid")
        self.x, self.ready, self.busy = self.output("x", width), self.output("ready"), self.output("busy")

    def elaborate(self, platform: object) -> Module:
        """Build it."""
        m = Module()
        left = Signal(self.run_bits, name="left")
        waiting = Signal(self.width, name="waiting")
        m.d.sync += self.ready.eq(self.busy | self.valid)
        with m.If(self.busy):
            m.d.sync += [left.eq(left - 1), self.busy.eq(left != 1), self.x.eq(0)]
            with m.If(left == 1):
                m.d.sync += self.x.eq(waiting)
        with m.Elif(self.valid):
            m.d.sync += [left.eq(self.run), waiting.eq(self.value), self.busy.eq(self.run != 0), self.x.eq(0)]
            with m.If(self.run == 0):
                m.d.sync += self.x.eq(self.value)
        return m
