"""The momentum unit: one weight a cycle."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, signed

from torchdfa.hardware.model.momentum import DECAY_BITS, RATE_BITS, WIDTH
from torchdfa.hardware.rtl.unit import Unit, delayed, named, rounded, saturated


class MomentumUnit(Unit):
    """As :func:`torchdfa.hardware.model.momentum.momentum`.

    The settings (decay, rate, shifts) are those of a layer and don't change while weights are in the pipeline. The
    noise is that of the weight which came three cycles ago.

    Args:
        weight_width: Bits of a weight, 16 and the guard bits.
    """

    latency = 4

    def __init__(self, weight_width: int = WIDTH):
        super().__init__()
        self.weight_width = weight_width
        self.w, self.v = self.input("w", signed(weight_width)), self.input("v", signed(WIDTH))
        self.g = self.input("g", signed(WIDTH))
        self.decay, self.rate = self.input("decay", DECAY_BITS), self.input("rate", RATE_BITS)
        self.align, self.narrow = self.input("align", 5), self.input("narrow", 5)
        self.apply, self.coarsen = self.input("apply", 6), self.input("coarsen")
        self.noise = self.input("noise", 32)
        self.w_new, self.v_new = self.output("w_new", signed(weight_width)), self.output("v_new", signed(WIDTH))

    def elaborate(self, platform: object) -> Module:
        """Build it."""
        m = Module()
        w, v, g = (delayed(m, s, f"{s.name}_1") for s in (self.w, self.v, self.g))
        kept, shifted = named(m, "kept", v * self.decay), named(m, "shifted", g << self.align)
        wide = delayed(m, named(m, "moved", kept + shifted), "wide_2")
        w_2 = delayed(m, w, "w_2")
        v_new = saturated(m, rounded(m, wide, self.narrow, "v"), WIDTH, "v_saturated")
        point = named(m, "point", Mux(self.coarsen, (w_2 + 1) >> 1, w_2))
        v_3, w_3 = delayed(m, v_new, "v_3"), delayed(m, point, "w_3")
        dither = named(m, "dither", self.noise >> named(m, "coarse", 32 - self.apply)[:6])
        step = named(m, "step", v_3 * self.rate)
        applied = named(m, "applied", (named(m, "noisy", step + dither)) >> self.apply)
        difference = named(m, "difference", w_3 - applied)
        m.d.sync += [
            self.w_new.eq(saturated(m, difference, self.weight_width, "w_saturated")),
            self.v_new.eq(v_3),
        ]
        return m
