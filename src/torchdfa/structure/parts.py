"""Divide a network into modules: runs of layers at one resolution, blocks, recurrent layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from torch import nn

from torchdfa.feedback.init import NoProductError
from torchdfa.structure.base import CONVOLUTIONS, RECURRENT
from torchdfa.structure.calls import PASSING
from torchdfa.structure.follow import Paths

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Part:
    """A part of a network that is a scope of its own.

    Attributes:
        begin: Name of the module whose input is the part's.
        end: Name of the module whose output is the part's; ``begin`` where the part is one module.
        module: A module that does what the part does.
        prefixes: Names in the network of the children of ``module``, or of ``module`` itself under "".
    """

    begin: str
    end: str
    module: nn.Module
    prefixes: dict[str, str]

    @cached_property
    def paths(self) -> Paths:
        """What leads through it, as convolutions."""
        return Paths(self.module, self.name)

    @cached_property
    def gated(self) -> frozenset[str]:
        """Names in it of the layers that lie in gates; none where it can't be traced."""
        try:
            return self.paths.gated
        except NoProductError:  # which matters to its convolutions alone
            return frozenset()

    def name(self, inner: str) -> str:
        """Return the name in the network of what is called ``inner`` in the part."""
        if "" in self.prefixes:
            return f"{self.begin}.{inner}" if inner else self.begin
        child, _, rest = inner.partition(".")
        return f"{self.prefixes[child]}.{rest}" if rest else self.prefixes[child]


def find_parts(model: nn.Module, layers: Collection[str], patterns: Sequence[str] | None = None) -> list[Part]:
    """Divide what holds the given layers into parts, in the order of registration.

    What follows one another in ``nn.Sequential`` modules, however these are nested, is a run: convolutions, and blocks
    of convolutions alone, up to the next pooling, reshape or stride, so that a run has one resolution; or Linear
    layers. A block is a class of module that the network uses more than once. Blocks of other layers, such as
    a transformer's, and recurrent layers are parts by themselves, as is every layer that stands in no ``Sequential``.

    Args:
        model: The network.
        layers: Names of the layers that are to be divided up.
        patterns: Shell patterns on module names: a module that one of them matches is a part, the outermost if they
            are nested, a Sequential from its first layer to its last; layers that one of them matches by themselves
            form runs. Layers in none are left out.

    Raises:
        ValueError: A pattern matches no module.
    """
    modules = dict(model.named_modules())
    if patterns is None:
        return list(_Finder(model, frozenset(layers)).visit("", model))
    groups: list[set[str]] = []
    for pattern in patterns:
        groups.append({name for name in modules if name and fnmatchcase(name, pattern)})
        if not groups[-1]:
            raise ValueError(f"modules={pattern!r} matches no module; there are {', '.join(_outer(modules))}.")
    matched = set[str]().union(*groups)
    finder = _Finder(model, frozenset(layers))
    whole = [n for n in modules if n in matched and n not in layers and (finder.holds(n) or _is_block(modules[n]))]
    whole = [n for n in whole if not any(n.startswith(f"{other}.") for other in whole)]
    left = {n for n in layers if not any(n.startswith(f"{other}.") for other in whole)}
    parts = [finder.named(name, modules[name]) for name in whole]
    for group in groups:
        parts += _Finder(model, frozenset(left & group)).visit("", model)
        left -= group
    order = list(modules)
    return sorted(parts, key=lambda part: order.index(part.begin))


def _is_block(module: nn.Module) -> bool:
    """Tell whether a module with a forward of its own holds others, and learns, whatever layers it is made of."""
    inner = next(module.children(), None) is not None and not isinstance(module, _CONTAINERS)
    return inner and next(module.parameters(), None) is not None


def _outer(modules: dict[str, nn.Module]) -> list[str]:
    return [repr(name) for name in modules if name and name.count(".") <= 1][:20]


class _Finder:
    def __init__(self, model: nn.Module, layers: frozenset[str]):
        self.layers = layers
        kinds = Counter(type(m) for n, m in model.named_modules() if n and n not in layers and self.holds(n))
        self.repeated = {kind for kind, count in kinds.items() if count > 1 and not issubclass(kind, _CONTAINERS)}

    def holds(self, name: str) -> bool:
        return any(layer.startswith(f"{name}.") for layer in self.layers)

    def inside(self, name: str, module: nn.Module) -> list[nn.Module]:
        return [m for n, m in module.named_modules(prefix=name) if n in self.layers]

    def visit(self, name: str, module: nn.Module) -> Iterator[Part]:
        if name in self.layers:
            yield self.single(name, module)
        elif name and type(module) in self.repeated and self.holds(name):
            yield Part(name, name, module, {"": name})
        elif isinstance(module, nn.Sequential):
            yield from self.sequence(list(self.items(name, module)))
        else:
            for child, inner in module.named_children():
                yield from self.visit(f"{name}.{child}".lstrip("."), inner)

    def items(self, name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Go through what a Sequential calls, one after another."""
        if isinstance(module, nn.Sequential):
            for child, inner in module.named_children():
                yield from self.items(f"{name}.{child}".lstrip("."), inner)
        else:
            yield name, module

    def sequence(self, items: list[tuple[str, nn.Module]]) -> Iterator[Part]:
        run: list[tuple[str, nn.Module]] = []
        family = None
        for name, module in items:
            kind = self.family(name, module)
            joins = kind == "passing" or (kind is not None and kind == family and not self.strided(name, module))
            if not joins or not run:
                yield from self.close(run)
                run, family = [], None
            if kind is None:
                yield from self.visit(name, module)
            elif run or kind != "passing":
                run.append((name, module))
                family = kind if kind != "passing" else family
        yield from self.close(run)

    def family(self, name: str, module: nn.Module) -> str | None:
        """Return the kind of run that an item can be in; None for what ends a run."""
        inner = self.inside(name, module)
        if not inner:
            return "passing" if isinstance(module, PASSING) else None
        if isinstance(module, RECURRENT):
            return None
        if name in self.layers:
            return "convolutions" if isinstance(module, CONVOLUTIONS) else "linear"
        blocks = type(module) in self.repeated and all(isinstance(m, CONVOLUTIONS) for m in inner)
        return "convolutions" if blocks else None

    def strided(self, name: str, module: nn.Module) -> bool:
        strides = (m.stride for m in self.inside(name, module) if isinstance(m, CONVOLUTIONS))
        return any(s != 1 for stride in strides for s in stride)

    def single(self, name: str, module: nn.Module) -> Part:
        if name in self.layers and not isinstance(module, RECURRENT):
            return Part(name, name, nn.Sequential(module), {"0": name})
        return Part(name, name, module, {"": name})

    def named(self, name: str, module: nn.Module) -> Part:
        """Return the part that a module is: of a Sequential, all from its first layer to its last."""
        if type(module).forward is not nn.Sequential.forward:
            return Part(name, name, module, {"": name})
        items = list(self.items(name, module))
        first = next(i for i, item in enumerate(items) if self.inside(*item))
        return next(self.close(items[first:]))

    def close(self, run: list[tuple[str, nn.Module]]) -> Iterator[Part]:
        while run and not self.inside(*run[-1]):
            run.pop()  # activations after the last layer: the part ends with its sums
        if len(run) == 1:
            yield self.single(*run[0])
        elif run:
            names = {str(i): name for i, (name, _) in enumerate(run)}
            yield Part(run[0][0], run[-1][0], nn.Sequential(*(m for _, m in run)), names)
