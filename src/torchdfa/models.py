"""The papers' networks. A network is data, like a rule: its ``build`` makes a plain ``nn.Sequential``.

Every network has two parts: ``features``, the trunk, and ``classifier``, the fully connected head that ends in logits.

>>> net = VGG16(width=0.25).build((3, 32, 32), classes=10)
>>> [name for name, _ in net.named_children()]
['features', 'classifier']
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from torchdfa.settings import Check, demand, one_of, positive, share, whole

Activation = Literal["relu", "tanh", "sigmoid"]
Init = Literal["he", "uniform", "zero"]
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
_VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@dataclass(frozen=True, kw_only=True)
class Network:
    """What all networks have in common."""

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
        """Make the network, its weights drawn from torch's global random generator.

        Args:
            shape: Of one image, (C, H, W).
            classes: K, the number of logits.

        Raises:
            ValueError: The network can't take images of this shape.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class MLP(Network):
    """Fully connected layers on the image's pixels.

    Args:
        hidden: Widths of the hidden layers.
        activation: Of the hidden layers.
        norm: Batch normalisation before each activation.
        input_dropout: Share of the pixels that is dropped (Nøkland 2016: 0.1).
        dropout: Share of each hidden layer that is dropped (Nøkland 2016: 0.5).
        init: ``"he"`` (He et al. 2015), ``"uniform"``: U(±1/√fan_in), or ``"zero"``: all weights and biases zero
            (Nøkland 2016, for FA and DFA with tanh or logistic units).
    """

    hidden: tuple[int, ...] = (1000, 1000, 1000)
    activation: Activation = "relu"
    norm: bool = False
    input_dropout: float = 0.0
    dropout: float = 0.0
    init: Init = "he"

    def __post_init__(self) -> None:
        demand(
            self,
            hidden=_sizes(self.hidden),
            activation=one_of(self.activation, get_args(Activation)),
            input_dropout=share(self.input_dropout),
            dropout=share(self.dropout),
            init=one_of(self.init, get_args(Init)),
        )

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
        """Make the network; see :meth:`Network.build`."""
        pixels = shape[0] * shape[1] * shape[2]
        below = [nn.Dropout(self.input_dropout)] if self.input_dropout else []
        head = _head(pixels, self.hidden, classes, self.activation, self.norm, self.dropout)
        network = _join([nn.Flatten(), *below], head)
        {"he": _he, "uniform": _uniform, "zero": _zero}[self.init](network)
        return network


@dataclass(frozen=True, kw_only=True)
class VGG16(Network):
    """VGG-16 as Han & Yoo (2019) train it: 13 convolutions with batch norm and ReLU, three Linear layers without.

    Args:
        width: Multiplies the channels of every convolution.
        head: Widths of the first two Linear layers.
        head_norm: Batch normalisation in the head ("w/ BN" of the paper's Table 1).
        head_dropout: Share of each hidden Linear layer that is dropped.
    """

    width: float = 1.0
    head: tuple[int, ...] = (512, 512)
    head_norm: bool = False
    head_dropout: float = 0.0

    def __post_init__(self) -> None:
        demand(self, width=positive(self.width), head=_sizes(self.head), head_dropout=share(self.head_dropout))

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
        """Make the network; see :meth:`Network.build`. Images of 32 × 32 end as 1 × 1 maps."""
        _demand(shape, 32, "VGG16")
        layers: list[nn.Module] = []
        channels = shape[0]
        for block in _VGG16_BLOCKS:
            for full in block:
                out = max(1, round(full * self.width))
                # The norm's own shift makes a convolution's bias useless.
                layers += [
                    nn.Conv2d(channels, out, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out),
                    nn.ReLU(inplace=True),
                ]
                channels = out
            layers.append(nn.MaxPool2d(2))
        flat = channels * (shape[1] // 32) * (shape[2] // 32)
        network = _join(
            [*layers, nn.Flatten()], _head(flat, self.head, classes, "relu", self.head_norm, self.head_dropout)
        )
        _he(network)
        return network


@dataclass(frozen=True, kw_only=True)
class NoklandConv(Network):
    """Nøkland's convolutional net (2016): three 5 × 5 convolutions with tanh, each with max-pooling 3/2; FC 2048-2048.

    Args:
        channels: Of the three convolutions.
        head: Widths of the hidden Linear layers.
        init: As in :class:`MLP`.
    """

    channels: tuple[int, int, int] = (96, 128, 256)
    head: tuple[int, ...] = (2048, 2048)
    init: Literal["uniform", "zero"] = "uniform"

    def __post_init__(self) -> None:
        demand(
            self,
            channels=_sizes(self.channels),
            head=_sizes(self.head),
            init=one_of(self.init, ("uniform", "zero")),
        )

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
        """Make the network; see :meth:`Network.build`."""
        _demand(shape, 8, "NoklandConv")
        layers: list[nn.Module] = []
        below, height, width = shape
        for channels in self.channels:
            layers += [nn.Conv2d(below, channels, 5, padding=2), nn.Tanh(), nn.MaxPool2d(3, 2, padding=1)]
            below, height, width = channels, (height + 1) // 2, (width + 1) // 2
        head = _head(below * height * width, self.head, classes, "tanh", False, 0.0)
        network = _join([*layers, nn.Flatten()], head)
        {"uniform": _uniform, "zero": _zero}[self.init](network)
        return network


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions with batch norm beside a shortcut (He et al. 2016).

    Args:
        below: Channels at the input.
        channels: Channels at the output.
        stride: Of the first convolution. Where the shape changes the shortcut is a 1 × 1 convolution with batch norm.
    """

    def __init__(self, below: int, channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(below, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride > 1 or below != channels:
            self.shortcut.append(nn.Conv2d(below, channels, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output, shape (N, channels, ⌈H / stride⌉, ⌈W / stride⌉), for x of shape (N, below, H, W)."""
        h = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


@dataclass(frozen=True, kw_only=True)
class ResNet(Network):
    """Residual network for small images (He et al. 2016): a 3 × 3 convolution, stages of blocks, average pooling.

    The default is ResNet-20; ``ResNet(blocks=(2, 2, 2, 2), width=64)`` is ResNet-18 with the stem of small images.

    Args:
        blocks: Blocks of each stage. From the second stage on, the first block halves the resolution.
        width: Channels of the first stage; each further stage has twice as many.
    """

    blocks: tuple[int, ...] = (3, 3, 3)
    width: int = 16

    def __post_init__(self) -> None:
        demand(self, blocks=_sizes(self.blocks), width=whole(self.width))

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
        """Make the network; see :meth:`Network.build`."""
        _demand(shape, 2 ** (len(self.blocks) - 1), "ResNet")
        below = self.width
        layers: list[nn.Module] = [nn.Conv2d(shape[0], below, 3, padding=1, bias=False), nn.BatchNorm2d(below)]
        layers.append(nn.ReLU())
        for i, count in enumerate(self.blocks):
            channels = self.width * 2**i
            first = BasicBlock(below, channels, 1 if i == 0 else 2)
            layers.append(nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(count - 1))))
            below = channels
        network = _join([*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()], [nn.Linear(below, classes)])
        _he(network)
        return network


@dataclass(frozen=True, kw_only=True)
class SmallConv(Network):
    """A small network of VGG-16's plan, for images from 8 × 8 up: convolutions, batch norm, a three-layer head.

    Args:
        channels: Of the convolutions; each is followed by 2 × 2 pooling.
        head: Widths of the hidden Linear layers.
        head_norm: Batch normalisation in the head.
    """

    channels: tuple[int, ...] = (16, 32)
    head: tuple[int, ...] = (128, 128)
    head_norm: bool = False

    def __post_init__(self) -> None:
        demand(self, channels=_sizes(self.channels), head=_sizes(self.head))

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
        """Make the network; see :meth:`Network.build`."""
        _demand(shape, 2 ** len(self.channels), "SmallConv")
        layers: list[nn.Module] = []
        below = shape[0]
        for channels in self.channels:
            layers += [nn.Conv2d(below, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            below = channels
        shrink = 2 ** len(self.channels)
        flat = below * (shape[1] // shrink) * (shape[2] // shrink)
        network = _join([*layers, nn.Flatten()], _head(flat, self.head, classes, "relu", self.head_norm, 0.0))
        _he(network)
        return network


def _head(
    below: int, hidden: Sequence[int], classes: int, activation: str, norm: bool, dropout: float
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in hidden:
        layers.append(nn.Linear(below, width))
        layers += [nn.BatchNorm1d(width)] if norm else []
        layers.append(_ACTIVATIONS[activation]())
        layers += [nn.Dropout(dropout)] if dropout else []
        below = width
    return [*layers, nn.Linear(below, classes)]


def _join(features: list[nn.Module], classifier: list[nn.Module]) -> nn.Sequential:
    parts: list[tuple[str, nn.Module]] = [
        ("features", nn.Sequential(*features)),
        ("classifier", nn.Sequential(*classifier)),
    ]
    return nn.Sequential(OrderedDict(parts))


def _demand(shape: tuple[int, int, int], least: int, name: str) -> None:
    if min(shape[1:]) < least:
        raise ValueError(f"{name} takes images of {least} × {least} and larger, got {shape[1]} × {shape[2]}.")


def _sizes(found: tuple[int, ...]) -> Check:
    return all(whole(width)[0] for width in found), "whole numbers of 1 or more"


def _layers(network: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    return [m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def _he(network: nn.Module) -> None:
    """Draw weights from N(0, 2 / fan_in), biases zero (He et al. 2015)."""
    for layer in _layers(network):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _uniform(network: nn.Module) -> None:
    """Draw weights and biases from U(±1/√fan_in) (Nøkland 2016)."""
    for layer in _layers(network):
        bound = layer.weight[0].numel() ** -0.5
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -bound, bound)


def _zero(network: nn.Module) -> None:
    with torch.no_grad():
        for layer in _layers(network):
            for parameter in layer.parameters():
                parameter.zero_()
