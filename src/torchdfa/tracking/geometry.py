"""Where the cells of a feature map lie in the image: read off the layers' kernels, strides and paddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from torchdfa.structure.calls import PASSING, PASSING_CALLS, PRODUCTS, SUMS, joined


@dataclass(frozen=True)
class Grid:
    """Centre of cell i, in pixels of the image: ``stride · i + offset``, as in x so in y.

    Attributes:
        stride: Pixels from cell to cell.
        offset: Of the first cell's centre; half the stride where the map is what its size suggests. A convolution's
            padding shifts it by up to half of its stride, which is 8 pixels in deep layers.
    """

    stride: float = 1.0
    offset: float = 0.5

    def after(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> Grid:
        """Return the grid of what a window of this kind makes of the map."""
        shift = dilation * (kernel - 1) / 2 - padding
        return Grid(self.stride * stride, self.offset + self.stride * shift)


class GeometryError(ValueError):
    """The network has a layer whose geometry can't be told."""


# Each cell of their result comes from the same cell of their inputs.
_CALLS = PASSING_CALLS | SUMS | PRODUCTS


def grids(module: fx.GraphModule) -> dict[str, Grid]:
    """Return the grid of each node of a traced network that is a map, by the node's name.

    Raises:
        GeometryError: A layer is of a kind that is not known; the message names it.
    """
    found: dict[str, Grid] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            found[node.name] = Grid()
        elif node.op == "call_module":
            found[node.name] = _after(module.get_submodule(str(node.target)), _shared(node, found), str(node.target))
        elif node.op in ("call_function", "call_method"):
            call = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            if call in _CALLS or joined(node, call, dims=2):
                found[node.name] = _shared(node, found)
                continue
            raise GeometryError(f"the network calls {node.target}, whose geometry can't be told.")
    return found


def _shared(node: fx.Node, found: dict[str, Grid]) -> Grid:
    inputs = {found[n.name] for n in node.all_input_nodes if n.name in found}
    if len(inputs) != 1:
        raise GeometryError(f"the maps that meet in {node.name} lie differently: {sorted(map(str, inputs))}.")
    return inputs.pop()


def _after(layer: nn.Module, grid: Grid, name: str) -> Grid:
    if isinstance(layer, nn.ZeroPad2d):
        left, _, top, _ = layer.padding
        if left == top:
            return grid.after(1, 1, left)
    elif isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
        kernel, stride, padding = (_one(getattr(layer, n)) for n in ("kernel_size", "stride", "padding"))
        dilation = _one(getattr(layer, "dilation", 1))
        if None not in (kernel, stride, padding, dilation):
            return grid.after(kernel, stride, padding, dilation)
    elif isinstance(layer, PASSING):
        return grid
    raise GeometryError(f"the layer {name}, {layer}, has a geometry that can't be told.")


def _one(value: Any) -> Any:
    """Return the number that holds in both directions; None if they differ or it is a word."""
    if isinstance(value, int):
        return value
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else None
