"""What calls and modules do to maps: which ones leave every position where it is, pool, add, multiply and join them."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from torchdfa.structure.trace import MOVING_MODULES, SQUASHES, SQUASHING_MODULES

# What leaves every position of a map where it is; eq. 7 of Han & Yoo 2019 ignores all of it.
PASSING = (
    *SQUASHING_MODULES,
    *(m for m in MOVING_MODULES if m is not nn.Flatten),
    *(nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.LocalResponseNorm, nn.Dropout2d, nn.Dropout3d),
)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
WINDOWS = (*_MAX_POOLS, *_AVERAGE_POOLS)
PASSING_CALLS = SQUASHES | frozenset(
    "dropout dropout1d dropout2d dropout3d stochastic_depth batch_norm group_norm instance_norm contiguous clone float "
    "double to type_as".split()
)
# What makes one number of a whole map, a channel or a position.
GLOBAL_POOLS = (
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
GLOBAL_POOLING_CALLS = frozenset(
    "mean amax adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d".split()
)
SUMS = frozenset("add add_ iadd sub sub_ isub".split())
_JOINS = frozenset("cat concat concatenate".split())
# The modules that do what functions of pooling do.
POOLS: dict[str, type[nn.Module]] = {
    **{f"max_pool{n}d": kind for n, kind in enumerate(_MAX_POOLS, 1)},
    **{f"avg_pool{n}d": kind for n, kind in enumerate(_AVERAGE_POOLS, 1)},
}
PRODUCTS = frozenset("mul mul_ imul".split())
_MAX_POOL_ARGUMENTS = "input kernel_size stride padding dilation ceil_mode return_indices".split()
_AVERAGE_POOL_ARGUMENTS = "input kernel_size stride padding ceil_mode count_include_pad divisor_override".split()


def pool(node: fx.Node, call: str) -> nn.Module | None:
    """Return the module that does what a call of a pooling function does."""
    kind = POOLS.get(call)
    if kind is None:
        return None
    # The functions have the last two in the other order than the modules, and no return_indices where they return none.
    names = _MAX_POOL_ARGUMENTS if kind in _MAX_POOLS else _AVERAGE_POOL_ARGUMENTS
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    given.pop("input", None)
    return kind(**given)


def joined(node: fx.Node, call: str, dims: int) -> list[fx.Node]:
    """Return the maps whose channels a call joins, none where it does something else."""
    if call not in _JOINS:
        return []
    given = {"dim": 0, **dict(zip(("tensors", "dim"), node.args, strict=False)), **node.kwargs}
    parts, along = given.get("tensors"), given.get("axis", given["dim"])
    if along not in (1, -dims - 1) or not isinstance(parts, (list, tuple)):
        return []
    return [part for part in parts if isinstance(part, fx.Node)]
