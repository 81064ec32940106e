"""What leads from a convolution's input to the output of the part of a network it lies in, as one convolution."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from torchdfa.feedback.conv import Channels, Conv, Geometry, Upsample
from torchdfa.feedback.init import NoProductError
from torchdfa.structure.base import CONVOLUTIONS
from torchdfa.structure.kernels import Wanted, compose
from torchdfa.structure.moves import MOVING_CALLS, Moves
from torchdfa.structure.trace import (
    MOVING_MODULES,
    SQUASHES,
    SQUASHING_MODULES,
    Reader,
    UntraceableError,
    is_size,
    plain,
    trace,
)

# What leaves every position of a map where it is; eq. 7 of Han & Yoo 2019 ignores all of it.
PASSING = (
    *SQUASHING_MODULES,
    *(m for m in MOVING_MODULES if m is not nn.Flatten),
    *(nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.LocalResponseNorm, nn.Dropout2d, nn.Dropout3d),
)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_WINDOWS = (*_MAX_POOLS, *_AVERAGE_POOLS)
_PASSING_CALLS = SQUASHES | frozenset(
    "dropout dropout1d dropout2d dropout3d stochastic_depth batch_norm group_norm instance_norm contiguous clone float "
    "double to type_as".split()
)
# What makes one number of a whole map, a channel or a position.
_GLOBAL_POOLS = (
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_GLOBAL_POOLING_CALLS = frozenset(
    "mean amax adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d".split()
)
_SUMS = frozenset("add add_ iadd sub sub_ isub".split())
_JOINS = frozenset("cat concat concatenate".split())
# The modules that do what functions of pooling do, their arguments in the same places.
_POOLS: dict[str, type[nn.Module]] = {
    **{f"max_pool{n}d": kind for n, kind in enumerate(_MAX_POOLS, 1)},
    **{f"avg_pool{n}d": kind for n, kind in enumerate(_AVERAGE_POOLS, 1)},
}
_PRODUCTS = frozenset("mul mul_ imul".split())
# Outputs of which a mean is taken where the size of all kernels is asked for, and multiply-adds to spend on them.
_SAMPLE, _SAMPLED_PRODUCTS = 32, 2 * 10**10


@dataclass(frozen=True)
class Reach:
    """Which input positions one output position depends on, one spatial dimension; see :class:`Geometry`."""

    extent: int = 1
    stride: int = 1
    left: int = 0
    right: int = 0

    def through(self, kernel: int, stride: int, dilation: int, left: int, right: int) -> Reach:
        """Return the reach after one more window."""
        return Reach(
            self.extent + (kernel - 1) * dilation * self.stride,
            self.stride * stride,
            self.left + left * self.stride,
            self.right + right * self.stride,
        )

    def beside(self, other: Reach) -> Reach:
        """Return the reach of a sum of two maps."""
        left = max(self.left, other.left)
        extent = left + max(self.extent - self.left, other.extent - other.left)
        return Reach(extent, self.stride, left, extent - left + self.left + self.right - self.extent)


# How a feedback convolution is to be made, whatever it stands for: groups, dilation, upsampling.
Shape = tuple[int, int | str, Upsample]
Note = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class Path:
    """The way from a convolution's input to a part's output, with everything but convolutions and pooling ignored.

    Attributes:
        inner: Name of the convolution in the part.
        name: As messages call it.
        inputs: Channels at its input.
        reached: Which channels of the part's output it leads to, booleans; others come from beside it.
        reach: Receptive field of one output position, a spatial dimension.
        weights: Of all convolutions on the way.
        above: Names in the part of the other convolutions on the way.
        apply: Applies the composed linear map, average pooling standing for any pooling, to (N, inputs, size...). Given
            a function, it calls it with the name and the input of every convolution on the way, its own first, and
            goes on with what that returns.
        paths: Those of the part.
    """

    inner: str
    name: str
    inputs: int
    reached: Tensor
    reach: tuple[Reach, ...]
    weights: int
    above: tuple[str, ...]
    apply: Callable[[Tensor, Note], Tensor]
    paths: Paths

    @property
    def outputs(self) -> int:
        """How many channels of the part's output it leads to."""
        return int(self.reached.sum())

    def geometry(self, groups: int, dilation: int | str, upsample: Upsample) -> Geometry:
        """Return the geometry of a feedback convolution of three taps a dimension that stands for this path.

        Args:
            groups: Groups of channels.
            dilation: Between taps; ``"matched"``: that which gives the receptive field of the path.
            upsample: How strides are made up for.

        Raises:
            ValueError: The channels can't be divided into the groups.
        """
        if self.inputs % groups or self.outputs % groups:
            raise ValueError(
                f"groups={groups} at {self.name!r}: the error has {self.outputs} channels and the activation "
                f"{self.inputs}, and both must be multiples of it."
            )
        kernel = tuple(3 if r.extent > 1 else 1 for r in self.reach)
        steps = tuple(
            max(1, (r.extent - 1) // 2) if dilation == "matched" else int(dilation) if k > 1 else 1
            for r, k in zip(self.reach, kernel, strict=True)
        )
        stride = tuple(r.stride for r in self.reach)
        pads = []
        for r, k, d in zip(self.reach, kernel, steps, strict=True):
            extent = d * (k - 1) + 1
            before = (r.extent - extent) // 2
            pads.append((r.left - before, r.right - (r.extent - extent - before)))
        upsample = upsample if any(s > 1 for s in stride) else "transposed"
        return Geometry(kernel, stride, steps, tuple(pads), groups, "zeros", upsample, _spans(self.reached))

    @property
    def sample(self) -> int:
        """Outputs whose kernels tell the size of all well enough; fewer where composing one takes long."""
        products = self.weights * math.prod(r.extent for r in self.reach)
        return max(2, min(_SAMPLE, _SAMPLED_PRODUCTS // products))

    def product(self, geometry: Geometry, like: Tensor) -> Tensor:
        """Return the composed kernels at a geometry's taps: its weight; see :func:`.compose`."""
        return compose(self, {self.inner: Wanted(self, geometry)}, like)[self.inner]

    def kernels(self, shape: Shape, like: Tensor, *, sampled: bool) -> Tensor:
        """Return the composed kernels at the taps of the geometry of a shape.

        One pass gives also those of the convolutions above; they are kept until they are asked for.

        Args:
            shape: Arguments of :meth:`geometry`.
            like: A tensor of the type and on the device to compute in.
            sampled: Of some outputs alone, enough to tell the size of all.
        """
        ready = self.paths.ready.setdefault((shape, like.dtype, like.device, sampled), {})
        if ready.get(self.inner) is None:
            wanted = {self.inner: Wanted(self, self.geometry(*shape))}
            for name in self.above:
                # What can't be is told where it is asked for.
                with suppress(ValueError):
                    if name not in ready:
                        other = self.paths.path(name)
                        wanted[name] = Wanted(other, other.geometry(*shape))
            ready.update(compose(self, wanted, like, self.sample if sampled else None))
        found, ready[self.inner] = ready[self.inner], None
        assert found is not None
        return found


def _mask(channels: int, value: bool) -> Tensor:
    return torch.full((channels,), value, device="cpu")


def _spans(reached: Tensor) -> Channels | None:
    """Return which channels are reached as ranges; None where all are."""
    if reached.all():
        return None
    edges = F.pad(reached.to(torch.int8), (1, 1)).diff().nonzero().flatten().tolist()
    return Channels(len(reached), tuple(zip(edges[::2], edges[1::2], strict=True)))


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
        self.dims = next((len(m.kernel_size) for m in self.reader.modules.values() if isinstance(m, CONVOLUTIONS)), 2)
        self.shown = shown
        self.found: dict[str, Path] = {}
        self.ready: dict[tuple[Shape, torch.dtype, torch.device, bool], dict[str, Tensor | None]] = {}

    def _find_gates(self) -> set[fx.Node]:
        """Return all from a global pooling up to where a map is multiplied by what was made of it."""
        reader, pooled, gates = self.reader, set[fx.Node](), set[fx.Node]()
        for node in reader.graph.nodes:
            inputs = set(reader.tensors(node))
            pools = isinstance(reader.module(node), _GLOBAL_POOLS) or reader.call(node) in _GLOBAL_POOLING_CALLS
            if inputs and (pools or inputs <= pooled):
                pooled.add(node)
            elif reader.call(node) in _PRODUCTS:
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
            NoProductError: Something other than convolutions, norms, activations, dropout, pooling, sums and joined
                channels lies on the way, or the convolution is called more than once.
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
            if call in MOVING_CALLS and (split or call not in _PASSING_CALLS) and moves.follow(node, above):
                if (taken := moves.taken(node)) is not None:
                    source, own = taken
                    del moves.pieces[node]
                    found[node], reached[node] = found[source], reached[source][own]
                    steps.append((node, [source], _selected(own)))
                continue
            if split:
                raise self._nothing_stands_for(split[0], layer, shown)
            below = found[above[0]] if above else (Reach(),) * dims
            module = reader.module(node) if node.op == "call_module" else _pool(node, call)
            reached[node] = reached[above[0]] if above else _mask(layer.in_channels, True)
            if isinstance(module, CONVOLUTIONS):
                found[node] = _through(below, Geometry.of(module))
                steps.append((node, above, _linear(module)))
                convolutions[node] = reader.name(node)
                groups = reached[node].view(module.groups, -1).any(1)
                reached[node] = groups.repeat_interleave(module.out_channels // module.groups)
                weights += module.weight.numel()
            elif isinstance(module, _WINDOWS):
                window = _window(module, dims, shown)
                found[node] = _through(below, window)
                steps.append((node, above, _average(window)))
            elif isinstance(module, PASSING) or (module is None and call in _PASSING_CALLS):
                found[node] = below
                steps.append((node, above, lambda x: x))
            elif module is None and call in _PRODUCTS and (factor := self._factor(node, above)) is not None:
                found[node] = below
                steps.append((node, above, _scaled(factor)))
            elif module is None and call in _SUMS:
                found[node] = _merged(node, [found[p] for p in above], shown)
                reached[node] = reduce(operator.or_, (reached[p] for p in above))
                steps.append((node, above, _sum if "sub" not in call else _difference))
            elif module is None and (parts := _joined(node, call, dims)):
                # Others, which come from beside the way, stand for zeros.
                maps = [reached[p] if p in above else _mask(self._channels(p, shown), False) for p in parts]
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

    def _channels(self, node: fx.Node, shown: str) -> int:
        """Return how many channels a map has that is not on the way.

        Raises:
            NoProductError: That can't be told.
        """
        found = self._made(node)
        if found is None:
            raise NoProductError(f"above {shown!r} channels are joined, and how many {node.name!r} has can't be told.")
        return found

    def _made(self, node: fx.Node) -> int | None:
        """Return how many channels a call makes, or None where that can't be told."""
        module = self.reader.module(node)
        if isinstance(module, CONVOLUTIONS):
            return module.out_channels
        if (own := _normed(module)) is not None:
            return own
        if parts := _joined(node, self.reader.call(node), self.dims):
            each = [self._made(part) for part in parts]
            if all(n is not None for n in each):
                return sum(n for n in each if n is not None)
        elif self._keeps(node):
            return self._made(self.reader.tensors(node)[0])
        elif (own := self._left(node)) is not None:
            return own
        return self._taken(node)

    def _left(self, node: fx.Node) -> int | None:
        """Return how many channels are left of a map's by calls that move them, or None where that can't be told."""
        call, source = self.reader.call, node
        while call(source) in MOVING_CALLS and self.reader.tensors(source):
            source = self.reader.tensors(source)[0]
        if source is node:
            return None
        channels = self._made(source)
        moves = Moves(self.dims, lambda n: channels if n is source else None)
        taken = moves.taken(node) if moves.follow(node, [source]) else None
        return None if taken is None else len(taken[1])

    def _taken(self, node: fx.Node) -> int | None:
        """Return how many channels those take that are given a map, or None where that can't be told."""
        for user in node.users:
            module = self.reader.module(user)
            if isinstance(module, CONVOLUTIONS):
                return module.in_channels
            found = _normed(module)
            if found is None and (self._keeps(user) or _joined(user, self.reader.call(user), self.dims) == [node]):
                found = self._taken(user)
            if found is not None:
                return found
        return None

    def _keeps(self, node: fx.Node) -> bool:
        """Tell whether a call's output has the channels of its first input."""
        call = self.reader.call(node)
        passes = call in _PASSING_CALLS or call in _POOLS or call in _SUMS or call in _PRODUCTS
        return passes or isinstance(self.reader.module(node), (*PASSING, *_WINDOWS))


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


def _pool(node: fx.Node, call: str) -> nn.Module | None:
    """Return the module that does what a call of a pooling function does."""
    kind = _POOLS.get(call)
    return None if kind is None else kind(*node.args[1:], **{k: v for k, v in node.kwargs.items() if k != "input"})


def _joined(node: fx.Node, call: str, dims: int) -> list[fx.Node]:
    """Return the maps whose channels a call joins, none where it does something else."""
    if call not in _JOINS:
        return []
    given = {"dim": 0, **dict(zip(("tensors", "dim"), node.args, strict=False)), **node.kwargs}
    parts, along = given.get("tensors"), given.get("axis", given["dim"])
    if along not in (1, -dims - 1) or not isinstance(parts, (list, tuple)):
        return []
    return [part for part in parts if isinstance(part, fx.Node)]


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


def _normed(module: nn.Module | None) -> int | None:
    """Return the channels that a norm is made for."""
    found = getattr(module, "num_features", None) or getattr(module, "num_channels", None)
    return found if isinstance(found, int) else None


def _window(pool: nn.Module, dims: int, shown: str) -> Geometry:
    each: dict[str, Any] = {
        name: value if isinstance(value := getattr(pool, name, 1), tuple) else (value,) * dims
        for name in ("kernel_size", "stride", "padding", "dilation")
    }
    if pool.ceil_mode or set(each["dilation"]) != {1}:
        raise NoProductError(f"pooling with ceil_mode or dilation lies above {shown!r}, for which nothing stands.")
    return Geometry(each["kernel_size"], each["stride"], each["dilation"], tuple((p, p) for p in each["padding"]))


def _average(g: Geometry) -> Callable[[Tensor], Tensor]:
    pool: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(g.kernel)]

    def apply(x: Tensor) -> Tensor:
        return pool(x, g.kernel, g.stride, tuple(left for left, _ in g.pads))

    return apply


def _sum(*maps: Tensor) -> Tensor:
    return maps[0] if len(maps) == 1 else operator.add(*maps)


def _difference(*maps: Tensor) -> Tensor:
    raise NoProductError("a difference of maps lies on the way, which nothing stands for.")
