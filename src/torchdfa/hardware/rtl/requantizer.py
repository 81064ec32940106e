"""Brings a core's sum to an error's width: shift, round, saturate. Both cores need one behind each lane."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, signed

from torchdfa.hardware.rtl.unit import Unit, delayed, named, rounded, saturated


class Requantizer(Unit):
    """As :func:`torchdfa.hardware.model.fixed.rescale`: to the right by the shift, to the left where it is negative.

    Args:
        wide: Bits of the sum.
        width: Bits of the result. The shift is ``-width`` to ``wide``; beyond, results are as at these ends.
    """

    latency = 3

    def __init__(self, wide: int, width: int = 16):
        super().__init__()
        self.wide, self.width = wide, width
        self.x, self.shift = self.input("x", signed(wide)), self.input("shift", range(-width, wide + 1))
        self.y = self.output("y", signed(width))

    def elaborate(self, platform: object) -> Module:
        """Build it."""
        m = Module()
        x, shift = delayed(m, self.x, "x_1"), delayed(m, self.shift, "shift_1")
        right = named(m, "right", Mux(shift < 0, 0, shift)[: self.wide.bit_length()])
        left = named(m, "left", Mux(shift < 0, -shift, 0)[: self.width.bit_length()])
        # Where the shift is to the left this saturates only, so that what is shifted next is narrow.
        narrow = delayed(m, saturated(m, rounded(m, x, right, "x"), self.width, "x_saturated"), "narrow_2")
        wider = named(m, "wider", narrow << delayed(m, left, "left_2"))
        m.d.sync += self.y.eq(saturated(m, wider, self.width, "y_saturated"))
        return m
