"""Brings a core's sum to an error's width: shift, round, saturate. Both cores need one behind each lane."""

from __future__ import annotations

from amaranth.hdl import Module, signed

from torchdfa.hardware.rtl.unit import Unit, delayed, rounded, saturated


class Requantizer(Unit):
    """As :func:`torchdfa.hardware.model.fixed.requantize`, the shift being given.

    Args:
        wide: Bits of the sum.
        width: Bits of the result.
    """

    latency = 2

    def __init__(self, wide: int = 38, width: int = 16):
        super().__init__()
        self.width = width
        self.x, self.shift = self.input("x", signed(wide)), self.input("shift", 5)
        self.y = self.output("y", signed(width))

    def elaborate(self, platform: object) -> Module:
        """Build it."""
        m = Module()
        x, shift = delayed(m, self.x, "x_1"), delayed(m, self.shift, "shift_1")
        m.d.sync += self.y.eq(saturated(m, rounded(m, x, shift, "x"), self.width, "x_saturated"))
        return m
