"""A head as a list of layers: read off an ``nn.Sequential``, or built from sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Activation = Literal["relu", "leaky_relu", "tanh", "sigmoid"]
_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
# The error before an activation, from the error behind it and its value there. Activations whose derivative is no
# function of their value would need their input kept as well.
_BACKWARD: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Tensor]] = {
    nn.ReLU: lambda _, error, value: torch.ops.aten.threshold_backward(error, value, 0),
    nn.LeakyReLU: lambda layer, error, value: torch.ops.aten.leaky_relu_backward(
        error, value, layer.negative_slope, True
    ),
    nn.Tanh: lambda _, error, value: torch.ops.aten.tanh_backward(error, value),
    nn.Sigmoid: lambda _, error, value: torch.ops.aten.sigmoid_backward(error, value),
}


@dataclass(frozen=True)
class Layer:
    """A Linear layer, with what comes before and after it.

    Attributes:
        name: Of the Linear layer in the network.
        linear: Itself.
        dropout: On its input; None without.
        activation: Of its output; None without, as in the last layer.
    """

    name: str
    linear: nn.Linear
    dropout: nn.Dropout | None = None
    activation: nn.Module | None = None

    @property
    def learns(self) -> bool:
        """Whether any of its parameters does."""
        return any(p.requires_grad for p in self.linear.parameters(recurse=False))

    def activate(self, sums: Tensor) -> Tensor:
        """Return the activation's value."""
        return sums if self.activation is None else self.activation(sums)

    def before_activation(self, error: Tensor, value: Tensor) -> Tensor:
        """Return the error at the layer's sums, from the one at the activation's value."""
        return error if self.activation is None else _BACKWARD[type(self.activation)](self.activation, error, value)

    def mask(self, h: Tensor, generator: torch.Generator) -> Tensor | None:
        """Draw what dropout multiplies the layer's input by: 0, or 1 over the share that stays; None without."""
        share = 0.0 if self.dropout is None else self.dropout.p
        if share == 0:
            return None
        if share == 1:
            return torch.zeros_like(h)
        return torch.empty_like(h).bernoulli_(1 - share, generator=generator).div_(1 - share)


def read_layers(net: nn.Module) -> list[Layer]:
    """Return the layers of a network made of Linear layers, each followed by an activation and dropout or neither.

    Raises:
        ValueError: It is made of something else; the message names it.
    """
    layers: list[Layer] = []
    dropout: nn.Dropout | None = None
    seen: set[int] = set()
    for name, module in _leaves("", net):
        kind, last = type(module), layers[-1] if layers else None
        if kind is nn.Linear:
            if not isinstance(module._parameters.get("weight"), nn.Parameter):
                raise _refusal(f"{name!r}, whose weight is made from others (torch.nn.utils.parametrize)")
            if id(module) in seen or id(module.weight) in seen:
                raise _refusal(f"{name!r}, which is used twice or shares its weight")
            seen |= {id(module), id(module.weight)}
            assert isinstance(module, nn.Linear)
            if last is not None and last.linear.out_features != module.in_features:
                raise _refusal(
                    f"{name!r}, which takes {module.in_features} features where {last.name!r} puts out "
                    f"{last.linear.out_features}"
                )
            layers.append(Layer(name, module, dropout))
            dropout = None
        elif kind is nn.Dropout and dropout is None:
            assert isinstance(module, nn.Dropout)
            dropout = module
        elif kind in _BACKWARD and last is not None and last.activation is None and dropout is None:
            if isinstance(module, nn.LeakyReLU) and module.negative_slope < 0:
                raise _refusal(f"{name!r} with a negative slope")
            layers[-1] = Layer(last.name, last.linear, last.dropout, module)
        elif kind is nn.Identity or (kind is nn.Flatten and last is None):
            continue
        else:
            raise _refusal(f"{name!r}, a {kind.__name__}{_hint(module)}")
    if not layers or dropout is not None or layers[-1].activation is not None:
        raise _refusal("no Linear layer" if not layers else f"something behind the last one, {layers[-1].name!r}")
    if layers[-1].linear.out_features < 2:
        raise ValueError(
            f"OnlineHead: {layers[-1].name!r} has one output; a softmax needs one a class, two for two classes."
        )
    return layers


def build_network(
    sizes: Sequence[int],
    activation: Activation,
    dropout: float,
    seed: int,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Sequential:
    """Return Linear layers of these sizes, weights from N(0, 2 / fan_in) (He et al. 2015), biases zero.

    Raises:
        ValueError: A size, the activation or the dropout is none.
    """
    if len(sizes) < 2 or not all(isinstance(n, Integral) and n > 0 for n in sizes):
        raise ValueError(f"OnlineHead: sizes={tuple(sizes)!r}, expected two or more positive whole numbers.")
    sizes = [int(n) for n in sizes]
    if activation not in _ACTIVATIONS:
        expected = ", ".join(map(repr, get_args(Activation)))
        raise ValueError(f"OnlineHead: activation={activation!r}, expected one of {expected}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"OnlineHead: dropout={dropout!r}, expected a share from 0 to below 1.")
    generator = torch.Generator().manual_seed(seed)
    modules: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        if modules:
            modules += [_ACTIVATIONS[activation](), *([nn.Dropout(dropout)] if dropout else [])]
        modules.append(new_linear(inputs, outputs, generator).to(device=device or "cpu", dtype=dtype))
    return nn.Sequential(*modules)


def new_linear(inputs: int, outputs: int, generator: torch.Generator, std: float | None = None) -> nn.Linear:
    """Return a Linear layer on the CPU, its weights drawn from ``generator`` alone, its biases zero.

    Args:
        inputs: Its features.
        outputs: Its outputs.
        generator: Of the weights.
        std: Their standard deviation; None: √(2 / inputs) (He et al. 2015).
    """
    # Made empty: the default initialisation would draw from the global generator.
    linear = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    if std is None:
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu", generator=generator)
    else:
        nn.init.normal_(linear.weight, 0, std, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear


def describe(net: nn.Module) -> list[Any]:
    """Return plain data that :func:`build` makes a network of the same kind from, with other weights."""
    kinds: dict[type[nn.Module], tuple[str, ...]] = {
        nn.Linear: ("in_features", "out_features"),
        nn.Dropout: ("p",),
        nn.ReLU: ("inplace",),
        nn.LeakyReLU: ("negative_slope", "inplace"),
        nn.Flatten: ("start_dim", "end_dim"),
    }
    if isinstance(net, nn.Sequential):
        return ["Sequential", {name: describe(module) for name, module in net.named_children()}]
    settings = {name: getattr(net, name) for name in kinds.get(type(net), ())}
    if isinstance(net, nn.Linear):
        settings["bias"] = net.bias is not None
    return [type(net).__name__, settings]


def build(description: Sequence[Any]) -> nn.Module:
    """Make a network that :func:`describe` described.

    Raises:
        ValueError: The description names a layer that a head can't have.
    """
    kind, settings = description
    if kind == "Sequential":
        net = nn.Sequential()
        for name, part in settings.items():
            net.add_module(name, build(part))
        return net
    kinds = (nn.Linear, nn.Dropout, nn.Identity, nn.Flatten, *_BACKWARD)
    known: dict[str, Callable[..., nn.Module]] = {k.__name__: k for k in kinds}
    if kind not in known:
        raise ValueError(f"a layer of kind {kind!r}, expected one of {', '.join(sorted(known))}")
    return known[kind](**settings)


def _leaves(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    if type(module) is not nn.Sequential:
        return [(name, module)]
    return [leaf for n, child in module._modules.items() if child for leaf in _leaves(f"{name}.{n}".lstrip("."), child)]


def _hint(module: nn.Module) -> str:
    if isinstance(module, (nn.Softmax, nn.LogSoftmax)):
        return "; the head's loss takes logits, so leave it out"
    return ""


def _refusal(found: str) -> ValueError:
    kinds = ", ".join(kind.__name__ for kind in _BACKWARD)
    return ValueError(
        f"OnlineHead: found {found}. Expected an nn.Sequential of Linear layers, each but the last followed by one of "
        f"{kinds}, then Dropout or not. A single Linear layer goes in as nn.Sequential(layer)."
    )
