"""Follow the ways from a part's convolutions to its output, in its traced graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from torchdfa.feedback.conv import Conv, Geometry
from torchdfa.feedback.init import NoProductError
from torchdfa.structure.base import CONVOLUTIONS
from torchdfa.structure.calls import (
    GLOBAL_POOLING_CALLS,
    GLOBAL_POOLS,
    PASSING,
    PASSING_CALLS,
    PRODUCTS,
    SUMS,
    WINDOWS,
    joined,
    pool,
)
from torchdfa.structure.moves import MOVING_CALLS, Moves
from torchdfa.structure.path import Note, Path, Reach, Shape
from torchdfa.structure.trace import Reader, UntraceableError, is_size, plain, trace
from torchdfa.structure.widths import Widths


class Paths:
    """The paths through one part of a network.

    Args:
        part: A module that takes a map and returns one.
        shown: What messages call a module of it.

    Attributes:
        ready: Kernels that came with others', by what was asked for and by convolution; None: they were handed out.

    Raises:
        NoProductError: Its forward can't be traced.
    """

    def __init__(self, part: nn.Module, shown: Callable[[str], str] = str):
        try:
            self.reader = Reader(part, trace(part))
        except UntraceableError as error:
            raise NoProductError(
                f"the way through {type(part).__name__} can't be read, since its forward can't be traced ({error})."
            ) from error
        self.gates = self._find_gates()
        self.shown = shown
        self.found: dict[str, Path] = {}
        self.ready: dict[tuple[Shape, torch.dtype, torch.device, bool], dict[str, Tensor | None]] = {}

    def _find_gates(self) -> set[fx.Node]:
        """Return all from a global pooling up to where a map is multiplied by what was made of it."""
        reader, pooled, gates = self.reader, set[fx.Node](), set[fx.Node]()
        for node in reader.graph.nodes:
            inputs = set(reader.tensors(node))
            pools = isinstance(reader.module(node), GLOBAL_POOLS) or reader.call(node) in GLOBAL_POOLING_CALLS
            if inputs and (pools or inputs <= pooled):
                pooled.add(node)
            elif reader.call(node) in PRODUCTS:
                gates |= {n for gate in inputs & pooled for n in reader.ancestors(gate) if n in pooled}
        return gates

    @property
    def gated(self) -> frozenset[str]:
        """Names of the layers in gates, as in squeeze-and-excitation: what they make multiplies maps as a whole."""
        return frozenset(self.reader.name(n) for n in self.gates if n.op == "call_module")

    def _factor(self, node: fx.Node, above: list[fx.Node]) -> Tensor | float | None:
        """Return what a product multiplies a map by, where that does not depend on the input; of a gate 1.

        A gate's values count as an activation's derivative does: they are ignored.
        """
        if not self.gates.isdisjoint(node.all_input_nodes):
            return 1
        others = [value for value in node.args if value not in above]
        return self.reader.constant(others[0]) if len(above) == len(others) == 1 else None

    def path(self, name: str) -> Path:
        """Return the path from the convolution ``name``.

        Raises:
            NoProductError: Something other than convolutions, norms, activations, dropout, pooling, sums, joined and
                moved channels lies on the way, or the convolution is called more than once.
        """
        if name not in self.found:
            self.found[name] = self._follow(name)
        return self.found[name]

    def _follow(self, name: str) -> Path:
        reader, shown = self.reader, self.shown(name)
        if reader.calls.get(name) != 1:
            raise NoProductError(f"{shown!r} is called {reader.calls.get(name, 0)} times in its module.")
        layer = reader.modules[name]
        assert isinstance(layer, CONVOLUTIONS)
        dims = len(layer.kernel_size)
        start = next(n for n in reader.graph.nodes if n.op == "call_module" and reader.name(n) == name)
        found: dict[fx.Node, tuple[Reach, ...]] = {}
        steps: list[tuple[fx.Node, list[fx.Node], Callable[..., Tensor]]] = []
        convolutions: dict[fx.Node, str] = {}
        # Which channels of each map depend on this one.
        reached: dict[fx.Node, Tensor] = {}
        moves = Moves(dims, lambda node: len(reached[node]) if node in found else None)
        weights = 0
        for node in reader.graph.nodes:
            above = [p for p in node.all_input_nodes if (p in found or p in moves.pieces) and not is_size(node)]
            if node is not start and (not above or node in self.gates):
                continue
            if node.op == "output":
                break
            call = reader.call(node)
            split = [p for p in above if p in moves.pieces]
            if call in MOVING_CALLS and (split or call not in PASSING_CALLS) and moves.follow(node, above):
                if (taken := moves.taken(node)) is not None:
                    source, own = taken
                    del moves.pieces[node]
                    found[node], reached[node] = found[source], reached[source][own]
                    steps.append((node, [source], _selected(own)))
                continue
            if split:
                raise self._nothing_stands_for(split[0], layer, shown)
            below = found[above[0]] if above else (Reach(),) * dims
            module = reader.module(node) if node.op == "call_module" else pool(node, call)
            reached[node] = reached[above[0]] if above else _mask(layer.in_channels, True)
            if isinstance(module, CONVOLUTIONS):
                found[node] = _through(below, Geometry.of(module))
                steps.append((node, above, _linear(module)))
                convolutions[node] = reader.name(node)
                groups = reached[node].view(module.groups, -1).any(1)
                reached[node] = groups.repeat_interleave(module.out_channels // module.groups)
                weights += module.weight.numel()
            elif isinstance(module, WINDOWS):
                window = _window(module, dims, shown)
                found[node] = _through(below, window)
                steps.append((node, above, _average(window)))
            elif isinstance(module, PASSING) or (module is None and call in PASSING_CALLS):
                found[node] = below
                steps.append((node, above, lambda x: x))
            elif module is None and call in PRODUCTS and (factor := self._factor(node, above)) is not None:
                found[node] = below
                steps.append((node, above, _scaled(factor)))
            elif module is None and call in SUMS:
                found[node] = _merged(node, [found[p] for p in above], shown)
                reached[node] = reduce(operator.or_, (reached[p] for p in above))
                steps.append((node, above, _sum if "sub" not in call else _difference))
            elif module is None and (parts := joined(node, call, dims)):
                # Others, which come from beside the way, stand for zeros.
                maps = [reached[p] if p in above else _mask(self._width(p, dims, shown), False) for p in parts]
                found[node] = _merged(node, [found[p] for p in above], shown)
                reached[node] = torch.cat(maps)
                where = [above.index(p) if p in above else None for p in parts]
                steps.append((node, above, _join(where, [len(m) for m in maps])))
            else:
                raise self._nothing_stands_for(node, layer, shown)
        else:
            raise AssertionError("a graph has an output")
        (value,) = node.args
        if value not in found:
            raise NoProductError(f"{shown!r} does not lead to the one output of its module.")
        end = value

        def apply(x: Tensor, note: Note) -> Tensor:
            values: dict[fx.Node, Tensor] = {}
            for node, above, step in steps:
                maps = [values[p] for p in above] or [x]
                if node in convolutions:
                    maps = [note(convolutions[node], *maps)]
                values[node] = step(*maps)
            return values[end]

        # A convolution that is called twice has no kernels of its own.
        others = (n for n in convolutions.values() if n != name and reader.calls[n] == 1)
        return Path(name, shown, layer.in_channels, reached[end], found[end], weights, tuple(others), apply, self)

    def _nothing_stands_for(self, node: fx.Node, layer: nn.Module, shown: str) -> NoProductError:
        return NoProductError(
            f"feedback to {shown!r}, a {type(layer).__name__}, is a convolution that stands for what leads to its "
            f"module's output; but {self.reader.described(node)}, which no convolution stands for. Choose modules=, "
            "parts of the network of convolutions, norms, activations, pooling, sums, joined and moved channels alone; "
            "or give this one BP."
        )

    def _width(self, node: fx.Node, dims: int, shown: str) -> int:
        found = Widths(self.reader, dims).of(node)
        if found is None:
            raise NoProductError(f"above {shown!r} channels are joined, and how many {node.name!r} has can't be told.")
        return found


def _mask(channels: int, value: bool) -> Tensor:
    return torch.full((channels,), value, device="cpu")


def _through(reach: tuple[Reach, ...], g: Geometry) -> tuple[Reach, ...]:
    each = zip(reach, g.kernel, g.stride, g.dilation, g.pads, strict=True)
    return tuple(r.through(k, s, d, left, right) for r, k, s, d, (left, right) in each)


def _linear(layer: Conv) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        if plain(layer):
            return layer._conv_forward(x, layer.weight.detach().to(x.dtype), None)
        own = x.to(layer.weight.dtype)
        return (layer.forward(own) - layer.forward(torch.zeros_like(own))).to(x.dtype)

    return apply


def _scaled(factor: Tensor | float) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        return x * (factor.detach().to(x.dtype) if isinstance(factor, Tensor) else factor)

    return apply


def _selected(channels: Tensor) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        return x.index_select(1, channels.to(x.device))

    return apply


def _merged(node: fx.Node, below: Sequence[tuple[Reach, ...]], shown: str) -> tuple[Reach, ...]:
    """Return the reach of maps that are added, or whose channels are joined."""
    reach = below[0]
    for other in below[1:]:
        if [r.stride for r in other] != [r.stride for r in reach]:
            raise NoProductError(f"{node.name!r} takes maps of different strides above {shown!r}.")
        reach = tuple(a.beside(b) for a, b in zip(reach, other, strict=True))
    return reach


def _join(where: Sequence[int | None], widths: Sequence[int]) -> Callable[..., Tensor]:
    def apply(*maps: Tensor) -> Tensor:
        first = maps[0]
        return torch.cat(
            [
                first.new_zeros(len(first), n, *first.shape[2:]) if i is None else maps[i]
                for i, n in zip(where, widths, strict=True)
            ],
            1,
        )

    return apply


def _window(pool: nn.Module, dims: int, shown: str) -> Geometry:
    each: dict[str, Any] = {
        name: value if isinstance(value := getattr(pool, name, 1), tuple) else (value,) * dims
        for name in ("kernel_size", "stride", "padding", "dilation")
    }
    if pool.ceil_mode or set(each["dilation"]) != {1}:
        raise NoProductError(f"pooling with ceil_mode or dilation lies above {shown!r}, for which nothing stands.")
    return Geometry(each["kernel_size"], each["stride"], each["dilation"], tuple((p, p) for p in each["padding"]))


def _average(g: Geometry) -> Callable[[Tensor], Tensor]:
    average: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(g.kernel)]

    def apply(x: Tensor) -> Tensor:
        return average(x, g.kernel, g.stride, tuple(left for left, _ in g.pads))

    return apply


def _sum(*maps: Tensor) -> Tensor:
    return maps[0] if len(maps) == 1 else operator.add(*maps)


def _difference(*maps: Tensor) -> Tensor:
    raise NoProductError("a difference of maps lies on the way, which nothing stands for.")
