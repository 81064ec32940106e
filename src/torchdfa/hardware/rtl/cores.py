"""The error propagation cores: adders whose feedback is signs (DEPC), multipliers whose feedback is weights (BP).

Both take, each cycle, ``terms`` errors a lane and add up what they make of them; sums of more terms take several
cycles (blocks), ``first`` and ``last`` mark their ends. Lanes are samples of the batch: they share the feedback.
Stages: inputs, signed terms or products, the tree's sum, the accumulator.
"""

# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# Amaranth's types say neither that `with m.If(...)` is a context nor which slices of a signal are values.
from __future__ import annotations

from typing import Any, Literal

from amaranth.hdl import Cat, Module, Mux, Signal, signed

from torchdfa.feedback.lfsr import WIDTH
from torchdfa.hardware.model.depc import sum_width
from torchdfa.hardware.rtl.lfsr import Lfsr
from torchdfa.hardware.rtl.unit import Unit, add_tree, delayed, named


class Core(Unit):
    """What the two have in common.

    Args:
        terms: Added a cycle and lane.
        width: Bits of an error.
        lanes: Samples at a time.
        blocks: The longest sum, in cycles.
        product: Bits of a term of the sums.
    """

    latency = 4

    def __init__(self, terms: int, width: int, lanes: int, blocks: int, product: int):
        super().__init__()
        if min(terms, lanes, blocks) < 1 or width < 2:
            raise ValueError(
                f"{type(self).__name__}: terms={terms}, width={width}, lanes={lanes}, blocks={blocks}; expected at "
                "least one of each and two bits."
            )
        self.terms, self.width, self.lanes, self.blocks = terms, width, lanes, blocks
        self.valid, self.first, self.last = (self.input(name) for name in ("valid", "first", "last"))
        self.errors = [[self.input(f"e{j}_{i}", signed(width)) for i in range(terms)] for j in range(lanes)]
        wide = signed(sum_width(product, terms, blocks))
        self.sums = [self.output(f"y{j}", wide, reset_less=True) for j in range(lanes)]
        self.done = self.output("done")

    def held(self, m: Module, signal: Any, name: str) -> Signal:
        """Register an input; it keeps its value where none is valid, so that nothing behind it toggles."""
        register = Signal(signal.shape(), name=name, reset_less=True)
        with m.If(self.valid):
            m.d.sync += register.eq(signal)
        return register

    def accumulate(self, m: Module, sums: list[Any]) -> None:
        """Add up the cycles' sums, which are the third stage's inputs."""
        valid = first = last = None
        for stage in (1, 2, 3):
            valid = delayed(m, self.valid if valid is None else valid, f"valid_{stage}", reset=True)
            first = delayed(m, self.first if first is None else first, f"first_{stage}")
            last = delayed(m, self.last if last is None else last, f"last_{stage}")
        assert valid is not None and first is not None and last is not None
        for j, (total, out) in enumerate(zip(sums, self.sums, strict=True)):
            partial = delayed(m, named(m, f"tree_{j}", total), f"partial_{j}")
            base = Signal(out.shape(), name=f"base_{j}")
            m.d.comb += base.eq(Mux(first, 0, out))
            with m.If(valid):
                m.d.sync += out.eq(base + partial)
        m.d.sync += self.done.eq(valid & last)


class Depc(Core):
    """Direct error propagation core: ``y = Σ ±e``.

    A term is negated by inverting its bits; the ones that this lacks are counted once for all lanes and added to the
    tree's sum.

    Args:
        terms: As in :class:`Core`.
        width: As in :class:`Core`.
        lanes: As in :class:`Core`.
        blocks: As in :class:`Core`.
        source: ``"stored"``: the signs come from the port ``signs``, set for +1. ``"generator"``: from an LFSR that
            ``load`` sets to ``seed`` before a layer's first cycle.
    """

    def __init__(
        self,
        terms: int = 16,
        width: int = 16,
        lanes: int = 1,
        blocks: int = 64,
        source: Literal["stored", "generator"] = "stored",
    ):
        super().__init__(terms, width, lanes, blocks, width)
        self.source = source
        if source == "stored":
            self.signs = self.input("signs", terms)
        else:
            self.lfsr = Lfsr(terms)
            self.seed, self.load = self.input("seed", WIDTH), self.input("load")

    def elaborate(self, platform: object) -> Module:
        """Build it."""
        m = Module()
        if self.source == "generator":
            m.submodules.lfsr = self.lfsr
            m.d.comb += [
                self.lfsr.seed.eq(self.seed),
                self.lfsr.load.eq(self.load),
                self.lfsr.step.eq(self.valid),
            ]
            signs = [self.lfsr.state[WIDTH - 1 - i] for i in range(self.terms)]
        else:
            signs = [self.signs[i] for i in range(self.terms)]
        negative = self.held(m, named(m, "negative", Cat(*[~s for s in signs])), "negative_1")
        negative_2 = delayed(m, negative, "negative_2")
        count = add_tree(m, [negative_2[i] for i in range(self.terms)], "count")
        sums = []
        for j, lane in enumerate(self.errors):
            signed_terms = []
            for i, error in enumerate(lane):
                held = self.held(m, error, f"e{j}_{i}_1")
                flipped = named(m, f"flip{j}_{i}", (held.as_unsigned() ^ negative[i].replicate(self.width)).as_signed())
                signed_terms.append(delayed(m, flipped, f"term{j}_{i}"))
            sums.append(add_tree(m, signed_terms, f"sum{j}") + count)
        self.accumulate(m, sums)
        return m


class MacCore(Core):
    """Back-propagation's core: ``y = Σ w e``.

    Args:
        terms: As in :class:`Core`.
        width: As in :class:`Core`.
        weight_width: Bits of a weight.
        lanes: As in :class:`Core`.
        blocks: As in :class:`Core`.
    """

    def __init__(self, terms: int = 16, width: int = 16, weight_width: int = 16, lanes: int = 1, blocks: int = 64):
        super().__init__(terms, width, lanes, blocks, width + weight_width - 1)
        self.weights = [self.input(f"w{i}", signed(weight_width)) for i in range(terms)]

    def elaborate(self, platform: object) -> Module:
        """Build it."""
        m = Module()
        weights = [self.held(m, weight, f"w{i}_1") for i, weight in enumerate(self.weights)]
        sums = []
        for j, lane in enumerate(self.errors):
            products = []
            for i, error in enumerate(lane):
                held = self.held(m, error, f"e{j}_{i}_1")
                products.append(delayed(m, named(m, f"times{j}_{i}", held * weights[i]), f"product{j}_{i}"))
            sums.append(add_tree(m, products, f"sum{j}"))
        self.accumulate(m, sums)
        return m
