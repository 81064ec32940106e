from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchdfa as dfa
from torchdfa.models import MLP, VGG16, Network, NoklandConv, ResNet, SmallConv

# Small versions, each with a shape that it takes.
SMALL = {
    "MLP": (MLP(hidden=(16, 16), norm=True, dropout=0.1, input_dropout=0.1), (1, 8, 8)),
    "VGG16": (VGG16(width=1 / 16, head=(32, 32), head_norm=True, head_dropout=0.2), (3, 32, 32)),
    "NoklandConv": (NoklandConv(channels=(4, 6, 8), head=(32, 32)), (3, 16, 16)),
    "ResNet": (ResNet(blocks=(1, 2), width=4), (1, 8, 8)),
    "SmallConv": (SmallConv(channels=(4, 8), head=(16, 16), head_norm=True), (1, 8, 8)),
}


def kinds(part):
    return "".join(
        {"Conv2d": "C", "BatchNorm2d": "N", "BatchNorm1d": "N", "ReLU": "A", "Tanh": "A", "Sigmoid": "A"}.get(
            type(m).__name__, type(m).__name__[0]
        )
        for m in part
    )


def widths(network, kind):
    return [tuple(m.weight.shape[:2]) for m in network.modules() if isinstance(m, kind)]


def size(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    "network, shape, features, classifier",
    [
        (MLP(hidden=(5, 6)), (1, 4, 4), "F", "LALAL"),
        (MLP(hidden=()), (1, 4, 4), "F", "L"),
        (MLP(hidden=(5,), norm=True, dropout=0.5, input_dropout=0.1), (1, 4, 4), "FD", "LNADL"),
        (VGG16(width=1 / 64), (3, 32, 32), "CNACNAM" * 2 + "CNACNACNAM" * 3 + "F", "LALAL"),
        (VGG16(width=1 / 64, head_norm=True), (3, 32, 32), "CNACNAM" * 2 + "CNACNACNAM" * 3 + "F", "LNALNAL"),
        (VGG16(width=1 / 64, head_dropout=0.5), (3, 32, 32), "CNACNAM" * 2 + "CNACNACNAM" * 3 + "F", "LADLADL"),
        (NoklandConv(channels=(2, 2, 2), head=(4, 4)), (3, 32, 32), "CAM" * 3 + "F", "LALAL"),
        (SmallConv(), (1, 8, 8), "CNAM" * 2 + "F", "LALAL"),
        (SmallConv(head_norm=True), (1, 8, 8), "CNAM" * 2 + "F", "LNALNAL"),
    ],
)
def test_layers(network, shape, features, classifier):
    net = network.build(shape, 10)
    assert [name for name, _ in net.named_children()] == ["features", "classifier"]
    assert (kinds(net.features), kinds(net.classifier)) == (features, classifier)
    assert net.eval()(torch.zeros(2, *shape)).shape == (2, 10)


def test_vgg16_is_the_papers():
    with torch.device("meta"):
        net, normed = VGG16().build((3, 32, 32), 100), VGG16(head_norm=True).build((3, 32, 32), 100)
        larger = VGG16().build((3, 64, 96), 10)
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert widths(net, nn.Conv2d) == list(zip(channels[1:], channels, strict=False))
    assert widths(net, nn.Linear) == [(512, 512), (512, 512), (100, 512)]
    assert all(
        c.kernel_size == (3, 3) and c.padding == (1, 1) and c.bias is None for c in net.features if kinds([c]) == "C"
    )
    convolutions = sum(9 * i * o + 2 * o for i, o in pairwise(channels))
    head = 2 * (512 * 512 + 512) + 512 * 100 + 100
    assert size(net) == convolutions + head == 14_718_912 + 576_612
    assert size(normed) == size(net) + 2 * 2 * 512
    assert larger.classifier[0].in_features == 512 * 2 * 3


@pytest.mark.parametrize("width", [0.25, 2, 0.001])
def test_width_multiplies_channels_and_leaves_the_head(width):
    with torch.device("meta"):
        net = VGG16(width=width).build((3, 32, 32), 10)
    channels = [out for out, _ in widths(net, nn.Conv2d)]
    assert channels[0] == max(1, 64 * width // 1) and channels[-1] == max(1, 512 * width // 1)
    assert widths(net, nn.Linear) == [(512, channels[-1]), (512, 512), (10, 512)]


def test_noklandconv_is_the_papers():
    with torch.device("meta"):
        net = NoklandConv().build((3, 32, 32), 10)
    assert widths(net, nn.Conv2d) == [(96, 3), (128, 96), (256, 128)]
    assert widths(net, nn.Linear) == [(2048, 256 * 4 * 4), (2048, 2048), (10, 2048)]
    assert [m.kernel_size for m in net.features if isinstance(m, nn.Conv2d)] == [(5, 5)] * 3
    assert [(m.kernel_size, m.stride) for m in net.features if isinstance(m, nn.MaxPool2d)] == [(3, 2)] * 3
    assert not any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU)) for m in net.modules())
    assert NoklandConv(channels=(2, 2, 2), head=(4,)).build((1, 28, 28), 10)(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


@pytest.mark.parametrize("side, flat", [(8, 32 * 2 * 2), (28, 32 * 7 * 7), (9, 32 * 2 * 2)])
def test_smallconv_takes_many_sizes(side, flat):
    net = SmallConv().build((1, side, side), 10)
    assert net.classifier[0].in_features == flat
    assert size(net) == 9 * 16 + 32 + 9 * 16 * 32 + 64 + flat * 128 + 128 + 128 * 128 + 128 + 1290
    assert net(torch.zeros(2, 1, side, side)).shape == (2, 10)


@pytest.mark.parametrize("activation, kind", [("relu", nn.ReLU), ("tanh", nn.Tanh), ("sigmoid", nn.Sigmoid)])
def test_activation(activation, kind):
    net = MLP(hidden=(4, 4), activation=activation).build((1, 2, 2), 3)
    assert sum(isinstance(m, kind) for m in net.modules()) == 2


def test_dropout_shares():
    net = MLP(hidden=(4, 4), input_dropout=0.1, dropout=0.5).build((1, 2, 2), 3)
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.1, 0.5, 0.5]


@pytest.mark.parametrize(
    "network, shape",
    [
        (MLP(hidden=(400, 400)), (1, 20, 20)),
        (SmallConv(channels=(64, 64)), (1, 28, 28)),
        (VGG16(width=0.5), (3, 32, 32)),
    ],
)
def test_he_init(network, shape):
    for layer in network.build(shape, 200).modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.numel() > 20_000:
            weight = layer.weight
            expected = (2 / weight[0].numel()) ** 0.5
            assert weight.std().item() == pytest.approx(expected, rel=0.03)
            assert abs(weight.mean().item()) < 4 * expected / weight.numel() ** 0.5
            # Of a normal distribution 4.55 % lies beyond two standard deviations; of a uniform one, nothing.
            assert (weight.abs() > 2 * expected).float().mean().item() == pytest.approx(0.0455, rel=0.15)
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.bias is not None:
            assert not layer.bias.any()


@pytest.mark.parametrize(
    "network", [MLP(hidden=(300, 300), init="uniform"), NoklandConv(channels=(8, 16, 16), head=(300, 300))]
)
def test_uniform_init(network):
    net = network.build((3, 16, 16), 10)
    layers = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    for layer in layers:
        bound = layer.weight[0].numel() ** -0.5
        assert 0 < layer.bias.abs().max() <= bound
        assert 0.9 * bound < layer.weight.abs().max() <= bound
    weight = net.classifier[2].weight
    assert weight.std().item() == pytest.approx((300 * 3) ** -0.5, rel=0.02)


@pytest.mark.parametrize(
    "network", [MLP(hidden=(8,), init="zero"), NoklandConv(channels=(2, 2, 2), head=(4,), init="zero")]
)
def test_zero_init(network):
    assert not any(p.any() for p in network.build((3, 8, 8), 10).parameters())


@pytest.mark.parametrize("name", SMALL)
def test_weights_come_from_the_global_generator(name):
    network, shape = SMALL[name]

    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in network.build(shape, 10).parameters()])

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    "network, shape, least",
    [
        (VGG16(), (3, 31, 32), 32),
        (VGG16(), (1, 8, 8), 32),
        (NoklandConv(), (3, 32, 7), 8),
        (SmallConv(), (1, 3, 3), 4),
        (SmallConv(channels=(2, 2, 2)), (1, 7, 9), 8),
        (ResNet(), (1, 3, 3), 4),
    ],
)
def test_too_small_images_are_refused(network, shape, least):
    name = type(network).__name__
    with pytest.raises(ValueError, match=rf"{name} takes images of {least} × {least} .*got {shape[1]} × {shape[2]}"):
        network.build(shape, 10)


def test_the_smallest_images_of_a_resnet_end_as_one_pixel():
    net = ResNet(width=4).build((1, 4, 4), 10)
    maps = []
    net.features[-2].register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0].shape))
    assert net(torch.zeros(2, 1, 4, 4)).shape == (2, 10) and maps == [(2, 16, 1, 1)]


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda: MLP(activation="gelu"), "MLP: activation='gelu', expected one of .*relu.*tanh.*sigmoid"),
        (lambda: MLP(init="ones"), "MLP: init='ones', expected one of .*he.*uniform.*zero"),
        (lambda: NoklandConv(init="he"), "NoklandConv: init='he', expected one of .*uniform.*zero"),
        (lambda: NoklandConv(channels=(8, 0, 8)), r"NoklandConv: channels=\(8, 0, 8\), expected whole numbers"),
        (lambda: MLP(hidden=(0,)), r"MLP: hidden=\(0,\), expected whole numbers of 1 or more"),
        (lambda: MLP(dropout=1.0), "MLP: dropout=1.0, expected from 0 to below 1"),
        (lambda: MLP(input_dropout=-0.1), "MLP: input_dropout=-0.1, expected from 0 to below 1"),
        (lambda: VGG16(width=0), "VGG16: width=0, expected a positive number"),
        (lambda: VGG16(head=(512, 0.5)), r"VGG16: head=\(512, 0.5\), expected whole numbers"),
        (lambda: VGG16(head_dropout=1), "VGG16: head_dropout=1, expected from 0 to below 1"),
        (lambda: ResNet(width=0), "ResNet: width=0, expected a whole number of 1 or more"),
        (lambda: ResNet(blocks=(2, 0)), r"ResNet: blocks=\(2, 0\), expected whole numbers"),
        (lambda: SmallConv(channels=(-1,)), r"SmallConv: channels=\(-1,\), expected whole numbers"),
        (lambda: SmallConv(head=(0,)), r"SmallConv: head=\(0,\), expected whole numbers"),
    ],
)
def test_wrong_settings_are_refused(make, expected):
    with pytest.raises(ValueError, match=f"^{expected}"):
        make()


def test_a_bare_network_builds_nothing():
    with pytest.raises(NotImplementedError):
        Network().build((1, 8, 8), 10)


@pytest.mark.parametrize(
    "rule", [dfa.BP(), dfa.FA(), dfa.DFA(), dfa.BDFA(), dfa.CDFA(), dfa.CBDFA()], ids=lambda r: type(r).__name__
)
@pytest.mark.parametrize("name", SMALL)
def test_every_network_takes_a_step_by_every_rule(name, rule):
    network, shape = SMALL[name]
    x, y = torch.randn(8, *shape), torch.arange(8)
    net = dfa.convert(network.build(shape, 10), rule, example=x[:1])
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    F.cross_entropy(net(x), y).backward()
    torch.optim.SGD(net.parameters(), lr=0.01).step()
    assert [n for n, p in net.named_parameters() if torch.equal(p, before[n]) or not p.isfinite().all()] == []


def test_networks_are_values():
    assert MLP(hidden=(3,)) == MLP(hidden=(3,)) != replace(MLP(hidden=(3,)), norm=True)
    assert len({SmallConv(), SmallConv(), VGG16()}) == 2


def test_resnets_are_the_papers():
    with torch.device("meta"):
        twenty, eighteen = ResNet().build((3, 32, 32), 10), ResNet(blocks=(2, 2, 2, 2), width=64).build((3, 32, 32), 10)
    for network, layers in ((twenty, 20), (eighteen, 18)):
        weights = [m for n, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and "short" not in n]
        assert len(weights) == layers
    assert size(twenty) == 272_474  # 0.27 million in the paper, and the shortcuts' convolutions
    assert widths(twenty, nn.Linear) == [(10, 64)] and widths(eighteen, nn.Linear) == [(10, 512)]
    assert twenty.features(torch.zeros(1, 3, 32, 32, device="meta")).shape == (1, 64)


def test_modules_of_a_resnet():
    net = ResNet(width=4).build((3, 8, 8), 10)
    dfa.convert(net, dfa.HybridDFA())
    cut = [n for n, m in net.named_modules() if "feedback" in m._modules]
    stages = [[f"features.{s}.{b}.conv{c}" for b in range(3) for c in (1, 2)] for s in (3, 4, 5)]
    assert cut == [*stages[0], *stages[1][1:], *stages[2][1:]]
