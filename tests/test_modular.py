"""Module-wise rules: which modules are found, what their feedback is, gradients against formulas."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchdfa as dfa
from cases import NETS, Block, Stages, away, fresh, gradients, same
from torchdfa.convert import conversion_of
from torchdfa.feedback import BinaryConvFeedback, ConvFeedback, Geometry
from torchdfa.functional import reference_broadcast
from torchdfa.models import VGG16, NoklandConv
from torchdfa.structure import LAYERS, Paths, find_parts
from torchdfa.structure.kernels import Wanted, compose


def parts(model, patterns=None):
    layers = [n for n, m in model.named_modules() if isinstance(m, LAYERS)]
    return [p.begin if p.begin == p.end else (p.begin, p.end) for p in find_parts(model, layers, patterns)]


def cuts(model):
    return [n for n, m in model.named_modules() if "feedback" in m._modules]


# ---------------------------------------------------------------- finding modules


def test_vgg_is_cut_at_its_poolings():
    vgg = VGG16(width=0.1).build((3, 32, 32), 10)
    blocks = [(0, 3), (7, 10), (14, 20), (24, 30), (34, 40)]
    assert parts(vgg) == [*((f"features.{a}", f"features.{b}") for a, b in blocks), ("classifier.0", "classifier.4")]
    assert parts(vgg, ["features.*"]) == [(f"features.{a}", f"features.{b}") for a, b in blocks]
    assert parts(vgg, ["features", "classifier.[24]"]) == [
        ("features.0", "features.40"),
        ("classifier.2", "classifier.4"),
    ]
    assert parts(vgg, ["features.0", "features.[37]", "classifier.2"]) == [
        "features.0",
        *("features.3", "features.7"),
        "classifier.2",
    ]


def test_residual_stages_and_what_stands_alone():
    model = Stages()
    assert parts(model) == [("features.0", "features.3"), ("features.6.0", "features.6.1"), "mix", "head"]
    assert parts(model, ["*.6.?"]) == ["features.6.0", "features.6.1"]
    assert parts(nn.Sequential(Block(2, 4), nn.ReLU(), Block(4, 4), Block(4, 6, 2))) == [("0", "2"), "3"]
    lone = nn.Sequential(nn.Conv2d(1, 2, 3), Block(2, 2), nn.Flatten(), nn.Linear(2, 2), nn.LSTM(2, 2), nn.Linear(2, 2))
    assert parts(lone) == ["0", "1.conv1", "1.conv2", "3", "4", "5"]


def test_blocks_of_a_transformer_are_modules():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    assert parts(model) == ["layers.0", "layers.1"]


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match=r"modules='body\.\*' matches no module; there are 'features', 'features\.0'"):
        dfa.convert(Stages(), dfa.HybridDFA(modules="body.*"))


def test_a_network_without_modules_of_several_layers_is_refused():
    with pytest.raises(
        ValueError, match=r"cuts nothing in Residual.*modules are 'stem', 'up', 'down', 'head'.*modules="
    ):
        dfa.convert(NETS["residual"].build(), dfa.HybridDFA())


def test_which_inputs_are_cut():
    model = Stages()
    inner = ["features.3", "features.6.0.conv2", "features.6.1.conv1", "features.6.1.conv2"]
    assert cuts(dfa.convert(model, dfa.HybridDFA())) == inner
    dfa.revert(model)
    entries = ["features.6.0.conv1", "features.6.0.short", "mix", "head"]
    assert sorted(cuts(dfa.convert(model, dfa.ModuleDFA()))) == sorted(inner + entries)
    dfa.revert(model)
    x = NETS["stages"].x(2)
    entered = ["features.6.0", "mix", "head"]
    assert cuts(dfa.convert(model, dfa.HybridDFA(direct="between"), example=x)) == entered
    dfa.revert(model)
    assert sorted(cuts(dfa.convert(model, dfa.ModuleDFA(source="network"), example=x))) == sorted(inner + entered)
    dfa.revert(model)
    with pytest.raises(ValueError, match=r"input of 'features\.6\.0', whose shape is not known.*example="):
        dfa.convert(model, dfa.HybridDFA(direct="between"))


def test_a_mixture_per_module():
    model = Stages()
    dfa.convert(model, {"features.[0-5]": dfa.HybridDFA(groups=2), "features.6": dfa.ModuleDFA(binary=True)})
    first, second = model.features[3].feedback, model.features[6][1].conv1.feedback
    assert isinstance(first, ConvFeedback) and first.geometry.groups == 2
    assert isinstance(second, BinaryConvFeedback) and second.geometry.groups == 1
    assert not hasattr(model.head, "feedback")
    model(NETS["stages"].x()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# ---------------------------------------------------------------- geometry and products


class Standardised(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Scaled(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(torch.randn(channels))

    def forward(self, x):
        torch._assert(x.ndim == 4, "expected maps")
        torch._assert(x.dim() == 4, "expected maps")
        return 0.5 * x * self.gain.view(-1, 1, 1)


class Excited(nn.Module):
    """Squeeze-and-excitation: each channel times a number made of the whole map."""

    def __init__(self, channels, pool=None):
        super().__init__()
        self.pool = pool or nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1)

    def forward(self, x):
        return self.fc2(self.fc1(self.pool(x)).relu()).sigmoid() * x


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3), keepdim=True)


class Joined(nn.Module):
    """Branches side by side, as in GoogLeNet; one does not depend on the map, and counts its channels alone."""

    def __init__(self, channels):
        super().__init__()
        self.a = nn.Conv2d(channels, 3, 1)
        self.b = nn.Conv2d(channels, 2, 3, padding=1, bias=False)

    def forward(self, x):
        pooled = F.avg_pool2d(x, 3, stride=1, padding=1)
        return torch.cat([self.a(x), x, self.b(x), pooled], 1)


class Dense(nn.Module):
    """As in DenseNet: each layer sees the channels of all before it."""

    def __init__(self, channels):
        super().__init__()
        self.before, self.norm = nn.Conv2d(channels, 5, 1), nn.BatchNorm2d(channels)
        self.conv, self.last = nn.Conv2d(5, 2, 3, padding=1), nn.Conv2d(channels + 7, 4, 1)

    def forward(self, x):
        given = self.norm(x.relu())
        h = self.before(x)
        return self.last(torch.concat((given, h, self.conv(h)), dim=-3))


class Shuffled(nn.Module):
    """As in ShuffleNet: half of the channels pass by, the other half through a convolution; then they are mixed."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels // 2, channels // 2, 3, padding=1)

    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        x = torch.cat((a, self.conv(b)), dim=1)
        n, channels, height, width = x.size()
        x = x.view(n, 2, channels // 2, height, width)
        return torch.transpose(x, 1, 2).contiguous().view(n, channels, height, width)


class Ghost(nn.Module):
    """As in GhostNet: cheap maps beside others, and as many of all as are asked for."""

    def __init__(self, channels):
        super().__init__()
        self.cheap = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x):
        found = torch.cat([x, self.cheap(x)], 1)[:, : 2 * x.shape[1] - 1, :, :]
        first, last = torch.channel_shuffle(found[:, 1:], 2).split([3, 2 * x.shape[1] - 5], 1)
        return torch.cat([last, first], 1)


class Compositions:
    """Chains of convolutions and pooling in every geometry of VGG, ResNets and Nøkland's network, and odder ones."""

    cases = {  # noqa: RUF012
        "vgg": [nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)],
        "valid": [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)],
        "strided": [nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Conv2d(6, 8, 3, padding=1)],
        "strided late": [nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)],
        "strided twice": [nn.Conv2d(4, 6, 3, stride=2), nn.Conv2d(6, 8, 5, stride=(1, 3), padding=1)],
        "5 x 5": [nn.Conv2d(4, 8, 5, padding=2)],
        "pooled": [nn.Conv2d(4, 6, 5, padding=2), nn.AvgPool2d(3, 2, padding=1), nn.Conv2d(6, 8, 5, padding=2)],
        "1 x 1": [nn.Conv2d(4, 8, 1), nn.Dropout2d(), nn.Conv2d(8, 8, 1, stride=2)],
        "even": [nn.Conv2d(4, 8, 2, padding=1), nn.Conv2d(8, 8, 4)],
        "same": [nn.Conv2d(4, 8, 4, padding="same"), nn.Conv2d(8, 8, 3, padding="same", dilation=2)],
        "grouped": [nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.Conv2d(8, 4, 3, padding=1, groups=2)],
        "scaled": [Standardised(4, 6, 3, padding=1), Scaled(6), nn.Conv2d(6, 8, 3)],
        "gated": [nn.Conv2d(4, 6, 3, padding=1), Excited(6), nn.Conv2d(6, 8, 3), Excited(8, Mean())],
        "joined": [nn.Conv2d(4, 6, 3, padding=1), Joined(6), nn.Conv2d(17, 8, 3, stride=2)],
        "joined twice": [nn.Conv2d(4, 2, 3), Joined(2), nn.ReLU(), Joined(9), nn.Conv2d(23, 4, 1)],
        "shuffled": [nn.Conv2d(4, 6, 3), Shuffled(6), nn.ReLU(), Shuffled(6), nn.Conv2d(6, 8, 1)],
        "shuffled last": [nn.Conv2d(4, 6, 3, padding=1), Shuffled(6), Shuffled(6), nn.Conv2d(6, 8, 3), Shuffled(8)],
        "sliced": [nn.Conv2d(4, 6, 3), Ghost(6), nn.Conv2d(10, 8, 3, stride=2)],
        "1-d": [nn.Conv1d(4, 8, 3, padding=1), nn.Conv1d(8, 4, 3, stride=2, padding=1)],
        "3-d": [nn.Conv3d(4, 2, 3, padding=1), nn.Conv3d(2, 4, 3, padding=1)],
    }


def linear(layers):
    """Return the layers with what eq. 7 ignores left out."""
    kept = [
        m
        for m in layers
        if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.AvgPool2d, Scaled, Joined, Shuffled, Ghost))
    ]
    return nn.Sequential(*kept)


def product(path, geometry, like):
    """Return the kernels of one path at the taps of any geometry, in a pass of its own."""
    return compose(path, {path.inner: Wanted(path, geometry)}, like)[path.inner]


compositions = pytest.mark.parametrize("layers", Compositions.cases.values(), ids=Compositions.cases.keys())
SIZES = {1: [(9,), (12,)], 2: [(9, 8), (12, 11)], 3: [(4, 5, 6)]}


def jacobian(layers, size):
    """Return the matrix of the composed linear map by brute force, shape (entries of the output, of the input)."""
    model = linear(layers).double()
    entries = torch.Size((4, *size)).numel()
    units = torch.eye(entries, dtype=torch.float64).view(entries, 4, *size)
    return (model(units) - model(torch.zeros_like(units))).flatten(1).T.detach()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@compositions
def test_the_whole_composition_is_the_product_of_the_matrices(layers):
    """With every tap of the receptive field the feedback is the composition itself, but for padding between layers."""
    model = nn.Sequential(*layers).double()
    path = Paths(model).path("0")
    geometry = path.geometry(1, "matched", "transposed")
    full = Geometry(
        tuple(r.extent for r in path.reach),
        tuple(r.stride for r in path.reach),
        (1,) * len(path.reach),
        tuple((r.left, r.right) for r in path.reach),
    )
    weight = product(path, full, torch.zeros((), dtype=torch.float64))
    for size in SIZES[len(path.reach)]:
        expected = jacobian(layers, size)
        found = ConvFeedback(weight, full).matrix(size)
        assert found.shape == expected.shape
        # Rows of outputs whose receptive field lies inside the map.
        shape = (path.outputs, *full.output(size))
        inside = torch.zeros(shape, dtype=torch.bool)
        ranges = [
            [o for o in range(m) if o * r.stride - r.left >= 0 and o * r.stride - r.left + r.extent <= n]
            for r, m, n in zip(path.reach, shape[1:], size, strict=True)
        ]
        grid = torch.cartesian_prod(*(torch.tensor(r, dtype=torch.long) for r in ranges)).view(-1, len(size))
        for place in grid.tolist():
            inside[(slice(None), *place)] = True
        rows = inside.flatten()
        torch.testing.assert_close(found[rows], expected[rows], rtol=1e-10, atol=1e-12)
        assert ConvFeedback(torch.zeros(path.outputs, 4, *geometry.kernel), geometry).geometry.output(size) == shape[1:]


@compositions
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dilation", ["matched", 1, 3])
@pytest.mark.parametrize("upsample", ["transposed", "nearest"])
def test_carrying_an_error_is_the_matrix(layers, groups, dilation, upsample):
    path = Paths(nn.Sequential(*layers)).path("0")
    geometry = path.geometry(groups, dilation, upsample)
    real = ConvFeedback(torch.randn(path.outputs, path.inputs // groups, *geometry.kernel), geometry).double()
    binary = BinaryConvFeedback(real.weight > 0, torch.tensor(0.3), geometry).double()
    assert binary.nbytes == path.outputs * -(-real.weight[0].numel() // 8) + 8
    for feedback in (real, binary):
        for size in SIZES[len(path.reach)]:
            hidden = torch.Size((3, path.inputs, *size))
            e = torch.randn(3, path.outputs, *geometry.output(size), dtype=torch.float64)
            feedback.check(e.shape, hidden)
            found = feedback.carry(e, hidden)
            torch.testing.assert_close(found.flatten(1), e.flatten(1) @ feedback.matrix(size), rtol=1e-10, atol=1e-12)
            # Products by brute force: entries of the map's matrix that a tap gives, the borders' padding included.
            one = feedback.products(e[:1].shape, hidden[:1])
            assert one >= (feedback.matrix(size) != 0).sum() or upsample == "nearest"
    torch.testing.assert_close(binary.kernel(torch.float64).abs().unique().item(), 0.3, rtol=1e-6, atol=0)


def test_channels_that_are_joined_with_others(double):
    """The error of the channels that come another way reaches no convolution of this one."""
    dense = Dense(4)
    path = Paths(nn.Sequential(dense)).path("0.before")
    assert (path.inputs, path.outputs) == (4, 4) and path.reach[0].extent == 3
    found = product(path, path.geometry(1, 1, "transposed"), torch.zeros(()).double())
    last, conv, before = (m.weight.detach() for m in (dense.last, dense.conv, dense.before))
    expected = torch.einsum("ok,kcxy,ci->oixy", last[:, 9:, 0, 0], conv, before[:, :, 0, 0])
    expected[:, :, 1, 1] += last[:, 4:9, 0, 0] @ before[:, :, 0, 0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


class Beside(nn.Module):
    """What a layer makes, beside what it does not depend on."""

    def __init__(self):
        super().__init__()
        self.first, self.a = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 3, padding=1)
        self.b, self.c = nn.Conv2d(4, 3, 1), nn.Conv2d(2, 2, 1, groups=2)

    def forward(self, x):
        a = self.a(self.first(x))
        return torch.cat([a, self.b(x), self.c(a)], 1)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("init", ["random", "product"])
def test_errors_of_channels_that_do_not_depend_on_a_layer_are_not_sent_to_it(init, binary, double):
    net = Beside()
    dfa.convert(nn.Sequential(net), dfa.HybridDFA(modules="0", init=init, binary=binary))
    feedback = net.a.feedback
    assert feedback.geometry.channels.spans == ((0, 2), (5, 7)) and feedback.errors == 7
    assert feedback.dense().shape == (4, 6, 3, 3) and feedback.nbytes_float32 == 4 * feedback.dense().numel()
    x, e = torch.randn(3, 4, 5, 5), torch.randn(3, 7, 5, 5)
    net(x).backward(e)
    sent = F.conv_transpose2d(torch.cat([e[:, :2], e[:, 5:]], 1), feedback.dense(), padding=1)
    expected = torch.einsum("nohw,nihw->oi", sent, x)
    torch.testing.assert_close(net.first.weight.grad[:, :, 0, 0], expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(feedback.carry(e, sent.shape).flatten(1), e.flatten(1) @ feedback.matrix((5, 5)))
    assert feedback.project(sent[0]).shape == (7, 5, 5)
    assert feedback.products(e.shape, sent.shape) == 3 * 25 * 4 * 6 * 9
    if init == "product" and not binary:
        own = net.a.weight.flatten(1)
        expected = torch.cat([own, net.c.weight.view(2, 1) * own])
        torch.testing.assert_close(feedback.dense().flatten(1), expected, rtol=1e-12, atol=1e-14)


class Shared(nn.Module):
    """A convolution that is called twice, between others."""

    def __init__(self):
        super().__init__()
        self.a, self.twice, self.b = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x):
        return self.b(self.twice(self.twice(self.a(x))))


class Halves(nn.Module):
    """Above ``a`` a convolution in groups, of which one alone gets what ``a`` makes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.both, self.last = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 1, groups=2)

    def forward(self, x):
        return self.last(self.both(torch.cat([self.a(x), self.b(x)], 1)))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("make", "alone"),
    [
        # One pass serves all above a convolution: what is beside it has its own,
        (lambda: nn.Sequential(Block(4, 6, 2), Block(6, 6), Block(6, 8, 2)), ["0.conv1", "0.short"]),
        (lambda: nn.Sequential(Dense(4), nn.Conv2d(4, 6, 3)), ["0.before"]),
        (Beside, ["first", "b"]),
        # what leads to more outputs than the path does,
        (Halves, ["a", "b", "both"]),
        # and what is called twice can't be asked for.
        (Shared, ["a"]),
    ],
    ids=["blocks", "dense", "beside", "halves", "shared"],
)
def test_kernels_that_come_with_others_are_their_own(make, alone, groups, double):
    part = make()
    names = [n for n, m in part.named_modules() if isinstance(m, nn.Conv2d) and n != "twice"]
    shape, like = (groups, "matched", "transposed"), torch.zeros(())
    paths, passes = Paths(part), []
    for name in names:
        path = paths.path(name)
        if path.inputs % groups or path.outputs % groups:
            with pytest.raises(ValueError, match="groups=2"):
                path.kernels(shape, like, sampled=False)
            continue
        geometry = path.geometry(*shape)
        if not any(ready.get(name) is not None for ready in paths.ready.values()):
            passes.append(name)
        found = path.kernels(shape, like, sampled=False)
        assert found.shape == (path.outputs, path.inputs // groups, *geometry.kernel)
        torch.testing.assert_close(found, product(path, geometry, like), rtol=1e-12, atol=1e-14)
    assert passes == alone or groups == 2


def test_dilation_is_the_number_of_layers_that_are_skipped():
    vgg = dfa.convert(VGG16(width=0.1).build((3, 32, 32), 10), dfa.ModuleDFA(scale="nokland"))
    found = {n: m.feedback.geometry.dilation[0] for n, m in vgg.features.named_children() if hasattr(m, "feedback")}
    assert found == dict(
        zip(map(str, (3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)), (1, 2, 1, *(3, 2, 1) * 3), strict=True)
    )


def test_noklands_network_as_one_module():
    net = NoklandConv(channels=(4, 6, 8), head=(9,)).build((3, 20, 20), 5)
    dfa.convert(net, {"features": dfa.HybridDFA(modules="features"), "classifier.*": dfa.BP()})
    middle, last = net.features[3].feedback, net.features[6].feedback
    # 5 x 5, pooling 3/2, 5 x 5: receptive field 1 + 4 + 2 + 8 = 15, of three taps at a distance of 7.
    assert (middle.geometry.stride, middle.geometry.dilation) == ((2, 2), (7, 7))
    assert (last.geometry.stride, last.geometry.dilation) == ((1, 1), (2, 2))
    F.cross_entropy(net(torch.randn(4, 3, 20, 20)), torch.arange(4)).backward()
    assert all(p.grad.norm() > 0 for p in net.parameters())


@pytest.mark.parametrize("groups", [1, 2])
def test_product_of_two_convolutions_by_hand(groups, double):
    """``W2 ⋆ W1`` at every second tap, channels of other groups left out."""
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)]
    model = nn.Sequential(*layers)
    dfa.convert(model, dfa.HybridDFA(init="product", groups=groups))
    w1, w2 = layers[1].weight.detach(), layers[2].weight.detach()
    composed = torch.zeros(8, 4, 5, 5)
    for u, v, a, b in torch.cartesian_prod(*[torch.arange(3)] * 4).tolist():
        composed[:, :, u + a, v + b] += w2[:, :, u, v] @ w1[:, :, a, b]
    taps = composed[:, :, ::2, ::2]
    kept = torch.cat(
        [taps[o : o + 1, i : i + 4 // groups] for o in range(8) for i in [o // (8 // groups) * (4 // groups)]]
    )
    torch.testing.assert_close(model[1].feedback.weight, kept, rtol=1e-10, atol=1e-12)
    own = w2 if groups == 1 else torch.cat([w2[:4, :3], w2[4:, 3:]])
    torch.testing.assert_close(model[2].feedback.weight, own, rtol=1e-12, atol=1e-14)
    signs = dfa.convert(dfa.revert(model), dfa.HybridDFA(init="product", groups=groups, binary=True))[1].feedback
    torch.testing.assert_close(signs.dense(), kept.sign() * kept.abs().mean(), rtol=1e-10, atol=1e-12)


def test_a_residual_block_counts_its_skip(double):
    block = Block(4, 4)
    part = nn.Sequential(block)
    path = Paths(part).path("0.conv1")
    assert path.reach[0].extent == 5 and path.geometry(1, "matched", "transposed").dilation == (2, 2)
    stage = nn.Sequential(Block(4, 4), Block(4, 4))
    through = Paths(stage).path("0.conv2")
    assert through.reach[0].extent == 7
    centre = product(through, through.geometry(1, 1, "transposed"), torch.zeros(()).double())
    units = torch.zeros(4, 4, 13, 13)
    units[torch.arange(4), torch.arange(4), 6, 6] = 1
    a, b, c = stage[0].conv2, stage[1].conv1, stage[1].conv2
    free = lambda m, x: F.conv2d(x, m.weight, padding=1)  # noqa: E731
    y = free(a, units)
    y = y + free(c, free(b, y))
    torch.testing.assert_close(y[:, :, 5:8, 5:8].flip(2, 3).transpose(0, 1), centre, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("init", ["random", "product"])
@pytest.mark.parametrize("binary", [False, True])
def test_scale_of_a_feedback_convolution(init, binary):
    net = lambda: nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 32), (32, 32), (32, 48))))  # noqa: E731
    torch.manual_seed(3)
    plain = net()
    rule = dfa.HybridDFA(init=init, binary=binary, groups=2)
    sizes = {}
    for scale in ("matched", "unit", "nokland", 3.0):
        sizes[scale] = (
            dfa.convert(plain, dataclasses.replace(rule, scale=scale))[1].feedback.dense().abs().mean().item()
        )
        dfa.revert(plain)
    composed = dfa.convert(plain, dfa.HybridDFA(init="product", groups=2))[1].feedback.weight.abs().mean().item()
    assert sizes["matched"] == pytest.approx(composed, rel=0.06)
    assert sizes["unit"] == pytest.approx(1, rel=0.06)
    assert sizes["nokland"] == pytest.approx(0.5 / (16 * 9) ** 0.5, rel=0.06)
    assert sizes[3.0] == pytest.approx(3 * sizes["matched"], rel=1e-5)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    "rule", [dfa.HybridDFA(groups=2), dfa.ModuleDFA(binary=True, dilation=1)], ids=["hybrid", "module"]
)
def test_gradients_of_two_modules_by_hand(rule, double):
    """Two modules of three convolutions with tanh, a pooling between them; written out with explicit matrices."""
    convs = [nn.Conv2d(a, 4, 3, padding=1) for a in (2, 4, 4, 4, 4, 4)]
    tanh = nn.Tanh()
    model = nn.Sequential(
        *(convs[0], tanh, convs[1], nn.Tanh(), convs[2], nn.Tanh(), nn.AvgPool2d(2)),
        *(convs[3], nn.Tanh(), convs[4], nn.Tanh(), convs[5], nn.Flatten()),
    )
    dfa.convert(model, rule)
    x, e = torch.randn(3, 2, 6, 6), torch.randn(3, 36)
    model(x).backward(e)

    with torch.no_grad():
        free = lambda m, h: F.conv2d(h, m.weight, m.bias, padding=1)  # noqa: E731
        inputs, sums = [], []
        h = x
        for i, conv in enumerate(convs):
            inputs.append(h)
            sums.append(free(conv, h))
            h = sums[-1].tanh()
            if i == 2:
                h = F.avg_pool2d(h, 2)
        slope = lambda z: 1 - z.tanh() ** 2  # noqa: E731
        back = lambda i, error: (error.flatten(1) @ convs[i].feedback.matrix(inputs[i].shape[2:])).view_as(inputs[i])  # noqa: E731
        errors = {5: e.view(3, 4, 3, 3)}
        errors[4] = back(5, errors[5]) * slope(sums[4])
        errors[3] = back(4, errors[5]) * slope(sums[3])
        if isinstance(rule, dfa.ModuleDFA):
            entered = back(3, errors[5])
        else:
            entered = F.conv_transpose2d(errors[3], convs[3].weight, padding=1)
        errors[2] = entered.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4 * slope(sums[2])
        errors[1] = back(2, errors[2]) * slope(sums[1])
        errors[0] = back(1, errors[2]) * slope(sums[0])
        for i, conv in enumerate(convs):
            expected = torch.nn.grad.conv2d_weight(inputs[i], conv.weight.shape, errors[i], padding=1)
            torch.testing.assert_close(conv.weight.grad, expected, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(conv.bias.grad, errors[i].sum((0, 2, 3)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", [dfa.HybridDFA(), dfa.ModuleDFA(), dfa.ModuleDFA(binary=True, groups=2)], ids=repr)
def test_gradients_are_not_those_of_back_propagation(rule):
    net = NETS["stages"]
    model, x = fresh(net, rule), net.x()
    found = gradients(model, net, x)
    with dfa.backprop(model):
        true = gradients(model, net, x)
    for name in ("features.0.weight", "features.6.0.conv1.weight"):
        assert away(found[name], true[name]) > 0.3
    assert all(g.norm() > 0 for g in found.values())


def test_the_product_of_one_layer_is_back_propagation_at_first(double):
    """A module of two layers skips one: with its weights for the feedback, the gradients are the true ones."""
    run = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3, stride=2, padding=1))
    model = nn.Sequential(run, nn.Flatten())
    x, e = torch.randn(2, 2, 8, 8), torch.randn(2, 54)
    model(x).backward(e)
    true = {n: p.grad.clone() for n, p in model.named_parameters()}
    dfa.convert(model, dfa.HybridDFA(init="product", modules="0")).zero_grad()
    model(x).backward(e)
    same({n: p.grad for n, p in model.named_parameters()}, true)
    assert cuts(model) == ["0.2"]


def test_sparse_feedback_has_its_density():
    model = nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 21))
    dfa.convert(model, dfa.HybridDFA(density=0.25))
    b = model[2].feedback.dense()
    assert b.shape == (21, 40)
    assert set((b != 0).sum(1).tolist()) == {10}
    assert (b != 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert set((b != 0).sum(0).tolist()) <= {5, 6}
    w, v = model[4].weight.detach().double(), model[2].weight.detach().double()
    product = dfa.convert(dfa.revert(model), dfa.HybridDFA(density=0.25, init="product"))[2].feedback.dense()
    kept = product != 0
    torch.testing.assert_close(product[kept].double(), (w @ v)[kept], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": 0}, "groups=0, expected a whole number of 1 or more"),
        ({"groups": 2.0}, "groups=2.0"),
        ({"dilation": "wide"}, "dilation='wide'"),
        ({"dilation": 0}, "dilation=0"),
        ({"upsample": "bilinear"}, "'transposed', 'nearest'"),
        ({"density": 0}, "density=0, expected 1 / n"),
        ({"density": 0.3}, "density=0.3, expected 1 / n"),
        ({"density": 2.0}, "density=2.0"),
    ],
)
@pytest.mark.parametrize("rule", [dfa.ModuleDFA, dfa.HybridDFA])
def test_wrong_fields(rule, fields, message):
    with pytest.raises(ValueError, match=message):
        rule(**fields)
    assert rule(density=1 / 3).density == 1 / 3


def test_wrong_sources():
    with pytest.raises(ValueError, match="'module', 'network'"):
        dfa.ModuleDFA(source="layer")
    with pytest.raises(ValueError, match="'inside', 'between'"):
        dfa.HybridDFA(direct="both")


@pytest.mark.parametrize("pool", [None, Mean()])
def test_layers_of_a_gate_keep_autograd(pool, double):
    """A gate's values are ignored on the way of a feedback convolution; its own layers' error is autograd's."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), Excited(4, pool), nn.Conv2d(4, 5, 1))
    model, gate, x = nn.Sequential(inner), inner[2], torch.randn(2, 3, 7, 7)
    dfa.convert(model, dfa.HybridDFA(modules="0"), example=x)
    assert cuts(model) == ["0.1", "0.3"]
    kept = []

    def keep(_, given, made):
        made.retain_grad()
        kept.append(made)

    for layer in (inner[1], gate):
        layer.register_forward_hook(keep)
    y = model(x)
    e = torch.randn_like(y)
    y.backward(e)
    sums, excited = kept
    assert torch.allclose(excited.grad, inner[3].feedback.carry(e, excited.shape))
    s, parameters = sums.detach().requires_grad_(), list(gate.parameters())
    found = [sums.grad, *(p.grad for p in parameters)]
    made = gate.forward(s)
    for ours, true in zip(found, torch.autograd.grad(made, [s, *parameters], excited.grad), strict=True):
        assert torch.allclose(ours, true)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, h):
        return h + self.down(self.up(h).tanh())


class Decoder(Residual):
    """A block as language models have it: keywords, a cache that it changes, more than one output."""

    def forward(self, states, *, place, cache):
        assert len(cache) == place, "the cache is that of an earlier forward"
        cache.append(states)
        return super().forward(states), cache


class Blocks(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList(block() for _ in range(2))

    def forward(self, x):
        h, cache = self.stem(x), []
        for i, block in enumerate(self.blocks):
            h = block(states=h, place=i, cache=cache)[0] if type(block) is Decoder else block(h)
        return self.head(h)


@pytest.mark.parametrize("rule", [dfa.HybridDFA(), dfa.HybridDFA(direct="between"), dfa.ModuleDFA()], ids=repr)
def test_blocks_may_take_keywords_change_a_cache_and_return_a_tuple(rule, double):
    x, plain, keyed = torch.randn(5, 3), Blocks(Residual), Blocks(Decoder)
    keyed.load_state_dict(plain.state_dict())
    for model in (plain, keyed):
        model(x).square().sum().backward()
    true = [p.grad.clone() for p in plain.parameters()]
    for model in (plain, keyed):
        dfa.convert(model, rule, example=x)
        model.zero_grad()
        model(x).square().sum().backward()
    assert cuts(plain) == cuts(keyed) != []
    assert any(not torch.allclose(p.grad, t) for p, t in zip(plain.parameters(), true, strict=True))
    for (name, p), (_, q) in zip(plain.named_parameters(), keyed.named_parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


def test_named_blocks_of_unknown_layers_get_the_networks_error(double):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.gains = nn.ParameterList([torch.randn(4, 4)])

        def forward(self, h):
            return h @ self.gains[0]

    x, model = torch.randn(5, 3), Blocks(lambda: nn.Sequential(Scaled(), nn.Tanh()))
    rule = dfa.HybridDFA(direct="between", modules="blocks.?.0")
    dfa.convert(model, {"head": rule}, example=x)
    assert cuts(model) == ["blocks.0.0", "blocks.1.0"]
    y = model(x)
    e = torch.randn_like(y)
    (given,) = torch.autograd.grad(y, model.stem.bias, e)
    sent = e @ model.blocks[0][0].feedback.dense()
    assert torch.allclose(given, sent.sum(0)), "the stem's error is the network's, sent to the first block's input"


def test_a_block_that_returns_no_tensor_is_refused_by_name():
    class Told(Residual):
        def forward(self, h):
            return {"hidden": super().forward(h)}

    model = nn.Sequential(nn.Linear(3, 4), Told())
    with pytest.raises(
        ValueError, match=r"the module '1', a Told, returns a dict with the keys \['hidden'\].*modules="
    ):
        dfa.convert(model, {"1.*": dfa.HybridDFA(modules="1")}, example=torch.randn(2, 3))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        h = self.a(x)
        return self.b(h) * h.sigmoid()


class Cropped(nn.Module):
    def __init__(self, mix=False):
        super().__init__()
        self.a, self.b, self.c, self.mix = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1), mix

    def forward(self, x):
        y = self.b(self.a(x))
        if self.mix:
            n, channels, height, width = y.shape
            return self.c(y.view(channels, n, height, width).transpose(0, 1).view(n, channels, height, width))
        return self.c(y[:, :, 1:])


class Unknown(nn.Module):
    def __init__(self, along):
        super().__init__()
        self.first, self.a, self.along = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, padding=1), along

    def forward(self, x):
        return torch.cat([x.flip(1), self.a(self.first(x))], self.along)


REFUSED = {
    "groups": (
        lambda: nn.Sequential(nn.Conv2d(2, 6, 3), nn.Conv2d(6, 4, 3)),
        {"groups": 4},
        "groups=4 at '1'.*4 channels.*6",
    ),
    "gate": (lambda: nn.Sequential(Gated()), {"modules": "0"}, "feedback to '0.b', a Conv2d.*'mul' lies between"),
    "joined, of unknown width": (
        lambda: nn.Sequential(Unknown(1)),
        {"modules": "0"},
        "above '0.a' channels are joined, and how many 'flip' has can't be told",
    ),
    "joined along rows": (
        lambda: nn.Sequential(Unknown(2)),
        {"modules": "0"},
        "feedback to '0.a', a Conv2d.*'cat' lies between",
    ),
    "rows left out": (
        lambda: nn.Sequential(Cropped()),
        {"modules": "0"},
        "feedback to '0.b', a Conv2d.*'getitem' lies between",
    ),
    "channels of samples mixed": (
        lambda: nn.Sequential(Cropped(mix=True)),
        {"modules": "0"},
        "feedback to '0.b', a Conv2d.*'view_1' lies between",
    ),
    "reshape": (
        lambda: nn.Sequential(nn.Sequential(nn.Conv2d(2, 6, 3), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4, 3))),
        {"modules": "0"},
        "'2' is a Flatten, which no convolution stands for",
    ),
    "density": (
        lambda: nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 3)),
        {"density": 0.25},
        "density=0.25 at '1': its 3 × 8",
    ),
}


@pytest.mark.parametrize(("build", "fields", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_by_name(build, fields, message):
    with pytest.raises(ValueError, match=message):
        dfa.convert(build(), dfa.HybridDFA(**fields))


def test_another_resolution_is_fine_and_another_shape_refused():
    model = dfa.convert(VGG16(width=0.1).build((3, 32, 32), 10)[0], dfa.HybridDFA(groups=1))
    for size in (32, 64):
        model(torch.randn(2, 3, size, size)).sum().backward()
    feedback = model[3].feedback
    with pytest.raises(ValueError, match="expects 6 channels there"):
        feedback.check(torch.Size((2, 6, 8, 8)), torch.Size((2, 5, 8, 8)))


def test_the_reference_agrees_on_stages(double):
    net = NETS["stages"]
    for rule in (dfa.ModuleDFA(init="product", upsample="nearest", groups=2), dfa.HybridDFA(binary=True)):
        model, x = fresh(net, rule), net.x()
        found = gradients(model, net, x)
        for scope in conversion_of(model).scopes:
            scope.node = reference_broadcast
        same(found, gradients(model, net, x))
