"""The online head: it learns what autograd and SGD would have taught it, and what it can't take it refuses."""

import copy
import itertools
import json
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import torchdfa as dfa
from cases import RULES, fingerprint
from torchdfa.models import VGG16
from torchdfa.online import NonFiniteLossError, OnlineHead
from torchdfa.online.sgd import gradient_norm, update_bias

SIZES = (6, 9, 8, 4)
FIXED = (dfa.BP, dfa.FA, dfa.DFA, dfa.BDFA, dfa.WeightMirror)  # CDFA and CBDFA are DFA and BDFA
LEARNING = {i: r for i, r in RULES.items() if isinstance(r, FIXED)}
learning = pytest.mark.parametrize("rule", LEARNING.values(), ids=LEARNING.keys())
OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "decay": {"weight_decay": 0.03},
    "both": {"momentum": 0.9, "weight_decay": 0.03},
    "rates": {"momentum": 0.9, "lr": (0.01, 0.03, 0.2)},
    "clip": {"momentum": 0.9, "weight_decay": 0.03, "clip": 0.2},
    "classes": {"momentum": 0.9, "class_weights": (1.0, 3.0, 0.5, 0.0)},
    "dropout": {"momentum": 0.9, "weight_decay": 0.03, "dropout": 0.4},
    "leaky": {"activation": "leaky_relu", "dropout": 0.2},
    "tanh": {"activation": "tanh", "dropout": 0.4, "momentum": 0.5},
    "sigmoid": {"activation": "sigmoid", "weight_decay": 0.03, "dropout": 0.2},
}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def stream(steps, sizes=SIZES, batches=(1, 5, 2), dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    for _, n in zip(range(steps), itertools.cycle(batches), strict=False):
        x = torch.randn(n, sizes[0], generator=generator, dtype=torch.float64).to(dtype)
        yield x, torch.randint(0, sizes[-1], (n,), generator=generator)


def by_autograd(net, rule, batches, *, lr=0.1, momentum=0.0, weight_decay=0.0, clip=None, class_weights=None, seed=0):
    """Train a network by the ordinary way; return the losses."""
    if rule is not None:
        dfa.convert(net, rule)
    linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
    rates = lr if isinstance(lr, tuple) else (lr,) * len(linear)
    groups = [{"params": list(m.parameters(recurse=False)), "lr": r} for m, r in zip(linear, rates, strict=True)]
    optimizer = torch.optim.SGD(groups, momentum=momentum, weight_decay=weight_decay)
    torch.manual_seed(seed)
    losses = []
    for x, y in batches:
        loss = F.cross_entropy(net(x), y, reduction="none")
        if class_weights is not None:
            loss = loss * torch.tensor(class_weights, dtype=x.dtype)[y]
        optimizer.zero_grad()
        loss.mean().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        losses.append(loss.mean().item())
    return losses


def twins(rule, dtype=torch.float32, sizes=SIZES, **options):
    """Return a head, and a network with the same weights that nothing was done to."""
    made = {k: options.pop(k) for k in ("activation", "dropout") if k in options}
    plain = OnlineHead(sizes, lr=0.0, seed=3, dtype=dtype, **made).net
    net = copy.deepcopy(plain)
    return OnlineHead(net, rule=rule, seed=3, **{"lr": 0.1, **options}), plain


def agree(head, net, tolerance):
    for (name, mine), other in zip(head.net.named_parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine, other, **tolerance, msg=lambda m, name=name: f"{name}: {m}")


# ------------------------------------------------------------------------------------- what autograd and SGD would do


@options
@learning
def test_a_head_learns_what_autograd_and_sgd_teach_the_converted_network(rule, options):
    kept = {k: v for k, v in options.items() if k not in ("activation", "dropout")}
    head, plain = twins(rule, torch.float64, **options)
    before = [p.clone() for p in plain.parameters()]
    losses = [head.step(x, y) for x, y in stream(40, dtype=torch.float64)]
    expected = by_autograd(plain, rule, stream(40, dtype=torch.float64), seed=3, **kept)
    assert losses == pytest.approx(expected, rel=1e-9)
    agree(head, plain, {"rtol": 1e-9, "atol": 1e-11})
    assert all((a - b).norm() > 1e-3 for a, b in zip(before, plain.parameters(), strict=True))  # something was learned


@options
@pytest.mark.parametrize("rule", [dfa.BP(), dfa.DFA(), dfa.BDFA(init="product")], ids=["BP", "DFA", "BDFA"])
def test_in_float32_it_agrees_to_rounding(rule, options):
    kept = {k: v for k, v in options.items() if k not in ("activation", "dropout")}
    head, plain = twins(rule, sizes=(40, 60, 50, 4), **{**options, "lr": 0.01})
    batches = list(stream(60, (40, 60, 50, 4), (1, 16)))
    for x, y in batches:
        head.step(x, y)
    by_autograd(plain, rule, batches, seed=3, **{**kept, "lr": 0.01})
    agree(head, plain, {"rtol": 1e-4, "atol": 2e-6})


@pytest.mark.parametrize("name", [i for i, r in RULES.items() if not isinstance(r, (*FIXED, dfa.Frozen))])
def test_rules_of_other_feedback_are_refused(name):
    net = OnlineHead(SIZES, lr=0.1).net
    with pytest.raises(ValueError, match=r"expected BP, FA|Expected a rule of fixed feedback|cuts nothing|convert: "):
        OnlineHead(net, rule=RULES[name], lr=0.1)
    dfa.convert(net, dfa.DFA())  # and nothing is left of the attempt


@pytest.mark.parametrize("rule", [dfa.BP(), dfa.DFA(), dfa.BDFA()], ids=["BP", "DFA", "BDFA"])
@pytest.mark.parametrize("available", [True, False], ids=["oneDNN", "no-oneDNN"])
def test_large_products_agree_too(monkeypatch, rule, available):
    if not available:
        monkeypatch.setattr("torchdfa.ops.dense._onednn", None)
    sizes, n = (300, 260, 270, 10), 32
    head, plain = twins(rule, sizes=sizes, lr=0.01, momentum=0.9, weight_decay=0.01)
    batches = list(stream(10, sizes, (n,)))
    for x, y in batches:
        head.step(x, y)
    by_autograd(plain, rule, batches, lr=0.01, momentum=0.9, weight_decay=0.01)
    agree(head, plain, {"rtol": 1e-4, "atol": 2e-6})
    x = batches[0][0]
    with torch.no_grad():
        torch.testing.assert_close(head.logits(x), plain(x), rtol=1e-4, atol=1e-4)


def test_the_rules_differ():
    trained = {}
    for name, rule in LEARNING.items():
        head, _ = twins(rule)
        for x, y in stream(10):
            head.step(x, y)
        trained[name] = head.layers[0].weight.detach()
    for name in trained.keys() - {"BP"}:
        assert (trained[name] - trained["BP"]).norm() > 1e-2


def test_layers_may_be_given_rules_of_their_own_and_be_frozen():
    rule = {"0": dfa.Frozen(), "2": dfa.BP(), "4": dfa.BDFA()}
    sizes, settings = (6, 9, 8, 4), {"momentum": 0.9, "weight_decay": 0.01}
    head, plain = twins(rule, torch.float64, sizes, **settings)
    before = [p.clone() for p in head.layers[0].parameters(recurse=False)]
    for x, y in stream(20, dtype=torch.float64):
        head.step(x, y)
    by_autograd(plain, rule, stream(20, dtype=torch.float64), **settings)
    agree(head, plain, {"rtol": 1e-9, "atol": 1e-11})
    assert all(torch.equal(a, b) for a, b in zip(before, head.layers[0].parameters(recurse=False), strict=True))


def test_only_biases_may_learn_or_nothing_at_all():
    head, plain = twins(dfa.DFA(), torch.float64, momentum=0.9, clip=0.05)
    for net in (head.net, plain):
        for name, p in net.named_parameters():
            p.requires_grad_(name.endswith("bias"))
    for x, y in stream(20, dtype=torch.float64):
        head.step(x, y)
    by_autograd(plain, dfa.DFA(), stream(20, dtype=torch.float64), momentum=0.9, clip=0.05)
    agree(head, plain, {"rtol": 1e-9, "atol": 1e-11})
    head.net.requires_grad_(False)
    before = copy.deepcopy(head.net.state_dict())
    assert head.step(torch.ones(6), 1) > 0
    assert all(torch.equal(v, head.net.state_dict()[k]) for k, v in before.items())


def test_settings_may_change_between_steps():
    head, plain = twins(dfa.DFA(), torch.float64, momentum=0.9)
    batches = list(stream(20, dtype=torch.float64))
    for i, (x, y) in enumerate(batches):
        head.lr, head.weight_decay = (0.1, 0.0) if i < 10 else (0.02, 0.1)
        head.step(x, y)
    dfa.convert(plain, dfa.DFA())
    optimizer = torch.optim.SGD(plain.parameters(), momentum=0.9)
    for i, (x, y) in enumerate(batches):
        optimizer.param_groups[0].update(lr=0.1 if i < 10 else 0.02, weight_decay=0.0 if i < 10 else 0.1)
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()
    agree(head, plain, {"rtol": 1e-9, "atol": 1e-11})


def test_no_gradient_is_ever_stored():
    # Wide layers and a batch of one: a tensor as large as a weight can be nothing but a gradient or a copy of one.
    head = OnlineHead((300, 310, 305, 300), rule=dfa.DFA(), lr=0.1, momentum=0.9, weight_decay=0.01, clip=1.0)
    x = torch.randn(1, 300)
    head.step(x, 0)  # makes the momentum

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for new in [out] if isinstance(out, torch.Tensor) else []:
                old = [a for a in args if isinstance(a, torch.Tensor)]
                if all(new.untyped_storage().data_ptr() != a.untyped_storage().data_ptr() for a in old):
                    self.found = max(self.found, new.numel())
            return out

    with Largest() as largest:
        head.step(x, 0)
    assert 0 < largest.found < 1000
    assert all(p.grad is None for p in head.net.parameters())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_bias_is_updated_by_the_formula(momentum):
    b, v, error = torch.randn(13), torch.randn(13), torch.randn(3, 13)
    expected_v = momentum * v + error.sum(0) + 0.3 * b
    expected_b = b - 0.7 * expected_v
    update_bias(b, v if momentum else None, error, lr=0.7, momentum=momentum, decay=0.3)
    torch.testing.assert_close(b, expected_b)
    if momentum:
        torch.testing.assert_close(v, expected_v)


def test_the_norm_of_the_gradient_is_that_of_the_gradient():
    errors = [torch.randn(3, 5), torch.randn(3, 2)]
    inputs = [torch.randn(3, 7), torch.randn(3, 5)]
    products = [e.T @ x for e, x in zip(errors, inputs, strict=True)]
    sums = [e.sum(0) for e in errors]
    for weights, biases in [([True, True], [True, True]), ([False, True], [True, False])]:
        kept = [p for p, use in zip(products + sums, weights + biases, strict=True) if use]
        expected = torch.cat([p.flatten() for p in kept]).norm()
        assert gradient_norm(errors, inputs, weights, biases).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "samples", "size", "clip"),
    [
        (torch.float16, 32, 10, 1.0),
        (torch.float16, 4, 10, 0.1),
        (torch.float16, 1, 10, 0.1),
        (torch.bfloat16, 32, 10, 1.0),
        (torch.float32, 4, 1e20, 0.1),
        (torch.float32, 4, 1e30, 1.0),
        (torch.float64, 4, 1e100, 1.0),
    ],
)
def test_gradients_too_long_for_their_type_are_clipped_as_torch_clips_them(dtype, samples, size, clip):
    # The momentum after a step that moves nothing is the gradient.
    head = OnlineHead((1280, 64, 10), rule=dfa.BP(), lr=0.0, momentum=0.9, clip=clip, dtype=dtype, seed=1)
    plain = copy.deepcopy(head.net).double()
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(samples, 1280, generator=generator, dtype=torch.float64) * size).to(dtype)
    y = torch.randint(10, (samples,), generator=generator)
    head.step(x, y)
    F.cross_entropy(plain(x.double()), y).backward()
    nn.utils.clip_grad_norm_(plain.parameters(), clip)
    found = {name: value.double() for name, value in head.state_dict().items() if name.startswith("momentum.")}
    tolerance = {2: 0.02, 4: 1e-5, 8: 1e-12}[dtype.itemsize] * clip
    for name, p in plain.named_parameters():
        assert p.grad is not None
        assert (found[f"momentum.{name}"] - p.grad).norm() < tolerance, name


def test_one_long_sample_does_not_hide_a_short_one():
    errors, inputs = torch.tensor([[1e-38], [1.0]]), torch.tensor([[1e30, 0.0], [0.0, 1.0]])
    assert gradient_norm([errors], [inputs], [True], [False]).item() == pytest.approx(1.0)


def test_a_gradient_whose_norm_is_not_finite_is_refused():
    settings = {"momentum": 0.9, "clip": 1.0, "class_weights": [1e3] * 4, "dtype": torch.float16}
    head = OnlineHead((6, 9, 4), rule=dfa.DFA(scale=1e3), lr=0.1, **settings)
    before = {k: v.clone() for k, v in head.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match=r"norm is (inf|nan), .* nothing was updated"):
        head.step(torch.ones(6), 1)
    assert all(torch.equal(v, head.state_dict()[k]) for k, v in before.items())


# ------------------------------------------------------------------------------- out of a trained network, and back


def test_a_head_is_trained_where_it_is_in_a_network():
    torch.manual_seed(0)
    vgg = VGG16(width=0.1).build((3, 32, 32), 10)
    x, y = torch.randn(4, 3, 32, 32), torch.full((4,), 7)
    trunk = {k: v.clone() for k, v in vgg.get_submodule("features").state_dict().items()}
    vgg.eval()
    head = OnlineHead(vgg.get_submodule("classifier"), rule=dfa.BDFA(init="product"), lr=0.01)
    with torch.no_grad():
        features = vgg.get_submodule("features")(x)
        first = F.cross_entropy(vgg(x), y).item()
        for _ in range(20):
            head.step(features, y)
        assert F.cross_entropy(vgg(x), y).item() < 0.5 * first  # the network itself has learned
        torch.testing.assert_close(head.logits(features), vgg(x))
    assert all(torch.equal(v, vgg.get_submodule("features").state_dict()[k]) for k, v in trunk.items())
    dfa.revert(vgg.get_submodule("classifier"))
    assert not any("feedback" in name for name in vgg.state_dict())


@pytest.mark.parametrize("rule", [dfa.CBDFA(), dfa.CDFA(init="product"), dfa.FA()], ids=["CBDFA", "CDFA", "FA"])
def test_feedback_of_a_network_around_is_kept(rule):
    torch.manual_seed(0)
    vgg = VGG16(width=0.1, head=(20, 30)).build((3, 32, 32), 10).eval()
    if rule.local:
        rule = {"classifier.*": rule}
    dfa.convert(vgg, rule)
    whole = copy.deepcopy(vgg)
    x, y = torch.randn(4, 3, 32, 32), torch.arange(4)
    head = OnlineHead(vgg.get_submodule("classifier"), lr=0.1, momentum=0.9)
    optimizer = torch.optim.SGD(whole.get_submodule("classifier").parameters(), lr=0.1, momentum=0.9)
    with torch.no_grad():
        features = vgg.get_submodule("features")(x)
    for _ in range(5):
        head.step(features, y)
        optimizer.zero_grad()
        F.cross_entropy(whole(x), y).backward()
        optimizer.step()
    agree(head, whole.get_submodule("classifier"), {"rtol": 1e-4, "atol": 1e-6})
    with pytest.raises(ValueError, match="these layers have feedback of a rule on the network around them"):
        OnlineHead(vgg.get_submodule("classifier"), rule=dfa.DFA(), lr=0.1)
    with pytest.raises(ValueError, match="reset_feedback: the feedback belongs to the network around"):
        head.reset_feedback()
    with pytest.raises(ValueError, match="save: the feedback belongs to the network around"):
        head.save("never-written.safetensors")


def test_feedback_of_a_network_whose_output_is_another_is_refused():
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4)), nn.ReLU(), nn.Linear(4, 3))
    dfa.convert(net, dfa.DFA())
    with pytest.raises(ValueError, match=r"feedback at '2' goes from 3 to 5 entries, expected 4 to 5"):
        OnlineHead(net[0], lr=0.1)


def test_within_backprop_a_head_learns_by_back_propagation():
    head, plain = twins(dfa.BDFA(), torch.float64)
    with dfa.backprop(head.net):
        for x, y in stream(5, dtype=torch.float64):
            head.step(x, y)
    by_autograd(plain, None, stream(5, dtype=torch.float64))
    agree(head, plain, {"rtol": 1e-9, "atol": 1e-11})


def test_layers_in_nested_parts_dropout_on_the_input_and_no_bias():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Dropout(0.3), nn.Linear(6, 9, bias=False), nn.ReLU(inplace=True)),
        nn.Identity(),
        nn.Sequential(nn.Dropout(0.2), nn.Linear(9, 4)),
    ).double()
    plain = copy.deepcopy(net)
    head = OnlineHead(net, rule=dfa.DFA(), lr=0.1, momentum=0.9, seed=5)
    for x, y in stream(20, dtype=torch.float64):
        head.step(x, y)
    by_autograd(plain, dfa.DFA(), stream(20, dtype=torch.float64), momentum=0.9, seed=5)
    agree(head, plain, {"rtol": 1e-9, "atol": 1e-11})
    x = torch.randn(3, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(head.logits(x), plain.eval()(x))


def test_what_a_network_flattens_its_head_flattens():
    heads = [OnlineHead(nn.Sequential(nn.Flatten(), *OnlineHead((8, 6, 3), lr=0.1).net), lr=0.1) for _ in range(2)]
    x, y = torch.randn(5, 2, 2, 2), torch.arange(5) % 3
    assert heads[0].step(x, y) == heads[1].step(x.flatten(1), y)
    torch.testing.assert_close(heads[0].logits(x), heads[0].net(x).detach())
    for other in (heads[0], OnlineHead((8, 6, 3), lr=0.1)):
        with pytest.raises(ValueError, match="features of shape"):
            other.step(torch.randn(5, 2, 2, 3), y)


def test_a_dropout_of_all_leaves_the_biases_to_learn():
    head = OnlineHead(nn.Sequential(nn.Dropout(1.0), nn.Linear(3, 2)), lr=0.1)
    weight = head.layers[0].weight.clone()
    head.step(torch.ones(3), 0)
    assert torch.equal(head.layers[0].weight, weight)


REFUSED = {
    "norm": (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), "'1', a BatchNorm1d"),
    "gelu": (nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)), "'1', a GELU"),
    "softmax": (nn.Sequential(nn.Linear(3, 2), nn.Softmax(1)), "the head's loss takes logits"),
    "relu-last": (nn.Sequential(nn.Linear(3, 2), nn.ReLU()), "something behind the last one, '0'"),
    "dropout-last": (nn.Sequential(nn.Linear(3, 2), nn.Dropout()), "something behind the last one, '0'"),
    "relu-first": (nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), "'0', a ReLU"),
    "dropout-before-relu": (nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.ReLU(), nn.Linear(4, 2)), "'2', a ReLU"),
    "conv": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)), "'0', a Conv2d"),
    "empty": (nn.Sequential(), "no Linear layer"),
    "one-output": (nn.Sequential(nn.Linear(3, 1)), "has one output"),
    "widths": (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(5, 2)), "takes 5 features where '0' puts out 4"),
    "slope": (nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(-0.1), nn.Linear(4, 2)), "negative slope"),
    "linear": (nn.Linear(3, 2), None),
}


@pytest.mark.parametrize(("net", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_other_networks_are_refused_by_name(net, message):
    if message is None:
        OnlineHead(nn.Sequential(net), lr=0.1)  # as the error says
        return
    with pytest.raises(ValueError, match=message):
        OnlineHead(net, lr=0.1)


def test_shared_and_computed_weights_are_refused():
    layer = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="'2', which is used twice or shares its weight"):
        OnlineHead(nn.Sequential(layer, nn.ReLU(), layer), lr=0.1)
    twin = nn.Linear(4, 4)
    twin.weight = layer.weight
    with pytest.raises(ValueError, match="'2', which is used twice or shares its weight"):
        OnlineHead(nn.Sequential(layer, nn.ReLU(), twin), lr=0.1)
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="found '0'"):
        OnlineHead(nn.Sequential(spectral), lr=0.1)


def test_settings_out_of_range_are_refused():
    for settings, message in [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"lr": (0.1, 0.1)}, r"lr=\(0.1, 0.1\), expected a number of 0 or more, or 3 of them"),
        ({"lr": np.array([0.1, 0.1])}, r"lr=array\(\[0.1, 0.1\]\), expected a number of 0 or more, or 3 of them"),
        ({"lr": "fast"}, "lr='fast', expected a number"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"momentum_dtype": torch.float64}, "momentum_dtype=torch.float64, expected one of .*bfloat16"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"class_weights": (1.0, 2.0)}, "class_weights"),
        ({"class_weights": (1.0, 2.0, -1.0, 0.0)}, "class_weights"),
        ({"class_weights": (1.0, float("inf"), 1.0, 0.0)}, "class_weights"),
        ({"activation": "gelu"}, "activation='gelu'"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"rule": dfa.DFA(), "net": (3, 2)}, "cuts nothing"),
        ({"net": (3,)}, r"sizes=\(3,\)"),
        ({"net": (3, 0, 2)}, r"sizes=\(3, 0, 2\)"),
        ({"net": nn.Sequential(nn.Linear(3, 2)), "dropout": 0.5}, "dropout is for a head made from sizes"),
    ]:
        with pytest.raises(ValueError, match=message):
            OnlineHead(**{"net": SIZES, "lr": 0.1, **settings})


# ---------------------------------------------------------------------------------------------------- samples, bad ones


def test_a_setting_that_is_refused_is_not_kept():
    head = OnlineHead(SIZES, lr=0.1, class_weights=(1.0, 2.0, 3.0, 4.0))
    with pytest.raises(ValueError, match="class_weights"):
        head.class_weights = (-1.0, 1.0, 1.0, 1.0)
    assert head.class_weights is not None and head.class_weights.tolist() == [1, 2, 3, 4]
    for name, wrong in {"momentum": 1.0, "weight_decay": -1.0, "clip": 0.0}.items():
        before = getattr(head, name)
        with pytest.raises(ValueError, match=name):
            setattr(head, name, wrong)
        assert getattr(head, name) == before


def test_arrays_are_taken_as_tensors_are():
    a, b = (OnlineHead(SIZES, rule=dfa.DFA(), lr=lr, seed=1) for lr in (np.array([0.1, 0.2, 0.3]), (0.1, 0.2, 0.3)))
    x, y = torch.randn(3, 6, dtype=torch.float64), torch.tensor([0, 2, 1])
    assert a.step(x.numpy(), y.numpy()) == b.step(x, y)
    assert torch.equal(a.predict(x.numpy()), b.predict(x))
    assert torch.equal(a.predict_proba(x[0].numpy()), b.predict_proba(x[0]))
    with pytest.raises(ValueError, match=r"features of shape \(3, 6\) and type torch.int64"):
        a.step(x.long().numpy(), y)


@pytest.mark.parametrize(
    ("name", "value"),
    [("clip", -1.0), ("clip", 0.0), ("clip", math.nan), ("weight_decay", math.nan), ("weight_decay", -0.1),
     ("momentum", 2.0), ("momentum", -0.5), ("momentum", math.nan)],
)  # fmt: skip
def test_settings_are_checked_between_steps_too(name, value):
    head = OnlineHead(SIZES, lr=0.1, momentum=0.9, weight_decay=0.01, clip=1.0)
    kept = getattr(head, name)
    with pytest.raises(ValueError, match=f"{name}={value}, expected"):
        setattr(head, name, value)
    assert getattr(head, name) == kept


def test_numbers_of_any_kind_are_settings_and_are_saved(tmp_path):
    head = OnlineHead(
        np.array([6, 9, 4]),
        lr=np.float32(0.5),
        momentum=np.float32(0.5),
        weight_decay=torch.tensor(0.25),  # type: ignore[arg-type]
        clip=np.float64(2.0),
    )
    other = saved(head, tmp_path)
    assert other.sizes == (6, 9, 4)
    assert (other.lr, other.momentum, other.weight_decay, other.clip) == ((0.5, 0.5), 0.5, 0.25, 2.0)


def test_one_sample_may_come_without_a_batch():
    a, b = (OnlineHead(SIZES, rule=dfa.DFA(), lr=0.1, seed=1) for _ in range(2))
    x = torch.randn(6)
    assert a.step(x, 2) == b.step(x.unsqueeze(0), torch.tensor([2]))
    assert a.predict(x).item() == b.predict(x.unsqueeze(0))[0].item()
    assert a.logits(x).shape == a.predict_proba(x).shape == (4,)
    torch.testing.assert_close(a.predict_proba(x).sum(), torch.tensor(1.0))
    torch.testing.assert_close(a.logits(torch.stack([x, -x]))[0], a.logits(x))


def test_two_classes_learn_from_two_logits():
    head = OnlineHead((2, 8, 8, 2), rule=dfa.BDFA(init="product", center=True), lr=0.2, momentum=0.9)
    x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    for _ in range(200):
        head.step(x, torch.tensor([0, 1, 1, 0]))
    assert head.predict(x).tolist() == [0, 1, 1, 0]


def test_a_class_weight_counts_for_a_single_sample():
    light, heavy = (OnlineHead(SIZES, lr=0.1, class_weights=(w, 1.0, 1.0, 1.0)) for w in (1.0, 3.0))
    x = torch.ones(6)
    before = light.layers[2].weight.clone()
    assert heavy.step(x, 0) == pytest.approx(3 * light.step(x, 0))
    moved = [h.layers[2].weight - before for h in (light, heavy)]
    torch.testing.assert_close(moved[1], 3 * moved[0])


def test_bad_samples_are_refused_and_nothing_is_lost():
    head = OnlineHead(SIZES, rule=dfa.DFA(), lr=0.1, momentum=0.9)
    head.step(torch.ones(6), 1)
    before = {k: v.clone() for k, v in head.state_dict().items()}
    for x, y, kind, message in [
        (torch.ones(2, 5), torch.tensor([0, 1]), ValueError, r"features of shape \(2, 5\)"),
        (torch.ones(2, 6).long(), torch.tensor([0, 1]), ValueError, r"type torch.int64"),
        (torch.ones(0, 6), torch.tensor([], dtype=torch.int64), ValueError, r"features of shape \(0, 6\)"),
        (torch.ones(2, 6), torch.tensor([0]), ValueError, r"labels of shape \(1,\)"),
        (torch.ones(2, 6), torch.tensor([0.0, 1.0]), ValueError, "torch.float32, expected 2 class indices"),
        (torch.ones(2, 6), torch.tensor([0, 4]), ValueError, "labels from 0 to 4, expected 0 to 3"),
        (torch.ones(2, 6), torch.tensor([0, -1]), ValueError, "labels from -1 to 0, expected 0 to 3"),
        (torch.full((6,), math.nan), 1, NonFiniteLossError, "the loss is nan, so nothing was updated"),
        (torch.full((6,), math.inf), 1, NonFiniteLossError, "nothing was updated"),
    ]:
        with pytest.raises(kind, match=message):
            head.step(x, y)
    after = head.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


def test_other_types_of_features_and_labels_and_autocast_are_taken():
    a, b = (OnlineHead(SIZES, rule=dfa.DFA(), lr=0.1) for _ in range(2))
    x, y = torch.randn(3, 6), torch.tensor([0, 1, 2])
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        loss = a.step(x.double(), y.to(torch.uint8))
    assert loss == b.step(x, y)
    agree(a, b.net, {"rtol": 0, "atol": 0})


# ------------------------------------------------------------------------------------------------------ feedback, state


def test_feedback_is_taken_anew_after_a_layer_began_anew():
    head = OnlineHead(SIZES, rule=dfa.BDFA(init="product"), lr=0.1)
    old = head.layers[1].feedback.dense().clone()
    nn.init.normal_(head.layers[-1].weight, std=0.01)
    assert torch.equal(head.layers[1].feedback.dense(), old)
    head.reset_feedback()
    product = (head.layers[2].weight @ head.layers[1].weight).detach()
    torch.testing.assert_close(head.layers[1].feedback.dense(), product.sign() * product.abs().mean())
    twin = copy.deepcopy(dfa.revert(copy.deepcopy(head.net)))
    other = OnlineHead(twin, rule=dfa.BDFA(init="product"), lr=0.1)
    for x, y in stream(5):  # the hooks use the new feedback: autograd too
        head.step(x, y)
        other.step(x, y)
    agree(head, other.net, {"rtol": 0, "atol": 0})


def test_feedback_that_cannot_be_made_leaves_the_old_one():
    head = OnlineHead(SIZES, rule={"0": dfa.Frozen(), "*": dfa.BDFA(init="product")}, lr=0.1)
    nn.init.zeros_(head.layers[-1].weight)
    before = fingerprint(head.net)
    with pytest.raises(ValueError, match="is zero"):
        head.reset_feedback()
    assert fingerprint(head.net) == before


def test_a_head_without_feedback_has_none_to_reset():
    head = OnlineHead(SIZES, lr=0.1)
    head.reset_feedback()
    assert not any("feedback" in name for name in head.state_dict())


def test_a_network_of_another_type_needs_new_momentum():
    head = OnlineHead(SIZES, lr=0.1, momentum=0.9, momentum_dtype=torch.float32)
    head.step(torch.ones(6), 0)
    head.net.double()
    before = copy.deepcopy(head.net.state_dict())
    with pytest.raises(ValueError, match=r"is torch.float32 on cpu, expected torch.float64 .* reset_momentum\(\)"):
        head.step(torch.ones(6), 0)
    assert all(torch.equal(v, before[k]) for k, v in head.net.state_dict().items())
    head.reset_momentum()
    head.step(torch.ones(6), 0)


def test_momentum_can_be_forgotten():
    head, fresh = (OnlineHead(SIZES, rule=dfa.DFA(), lr=0.1, momentum=0.9) for _ in range(2))
    head.step(torch.ones(6), 0)
    fresh.net.load_state_dict(head.net.state_dict())
    head.reset_momentum()
    for each in (head, fresh):
        each.step(torch.ones(6), 1)
    agree(head, fresh.net, {"rtol": 0, "atol": 0})


def test_bytes_are_those_of_parameters_momentum_and_feedback():
    head = OnlineHead((16, 32, 8), rule=dfa.BDFA(), lr=0.1, momentum=0.9)
    parameters = 4 * (16 * 32 + 32 + 32 * 8 + 8)
    feedback = 8 * 32 // 8 + 4
    assert head.nbytes == 2 * parameters + feedback
    head.step(torch.ones(16), 0)
    assert head.nbytes == 2 * parameters + feedback
    head.momentum = 0.0
    head.reset_momentum()
    assert head.nbytes == parameters + feedback


def test_momentum_in_bfloat16_takes_half_and_learns_alike(tmp_path):
    heads = [
        OnlineHead((16, 32, 8), rule=dfa.BDFA(), lr=0.05, momentum=0.9, momentum_dtype=dtype)
        for dtype in (None, torch.float32, torch.bfloat16)
    ]
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 16, generator=generator), torch.randint(8, (64,), generator=generator)
    losses = [[head.step(x, y) for _ in range(60)] for head in heads]
    assert losses[0] == losses[1]
    assert losses[2] != losses[0]
    assert losses[2][-1] == pytest.approx(losses[0][-1], rel=0.01)
    assert losses[0][-1] < 0.5 * losses[0][0]
    assert heads[0].nbytes - heads[2].nbytes == 2 * (16 * 32 + 32 * 8)
    heads[2].save(tmp_path / "head")
    other = OnlineHead.load(tmp_path / "head")
    assert other.momentum_dtype is torch.bfloat16
    assert [other.step(x, y) for _ in range(3)] == [heads[2].step(x, y) for _ in range(3)]


def saved(head, tmp_path):
    head.save(tmp_path / "head.safetensors")
    return OnlineHead.load(tmp_path / "head.safetensors")


def unpickled(head, tmp_path):
    return pickle.loads(pickle.dumps(head))


def copied(head, tmp_path):
    return copy.deepcopy(head)


def restated(head, tmp_path):
    other = OnlineHead(
        SIZES, rule=dfa.BDFA(init="product"), lr=head.lr, momentum=0.9, weight_decay=0.01, clip=1.0, dropout=0.5, seed=9
    )
    other.class_weights = head.class_weights
    other.load_state_dict({k: v.clone() for k, v in head.state_dict().items()})
    return other


@pytest.mark.parametrize("way", [saved, unpickled, copied, restated])
def test_a_head_that_was_kept_goes_on_as_it_would_have(way, tmp_path):
    head = OnlineHead(
        SIZES,
        rule=dfa.BDFA(init="product"),
        lr=(0.1, 0.2, 0.3),
        momentum=0.9,
        weight_decay=0.01,
        clip=1.0,
        class_weights=(1, 2, 3, 4),
        dropout=0.5,
    )
    batches = list(stream(20))
    for x, y in batches[:10]:
        head.step(x, y)
    state = torch.get_rng_state()
    other = way(head, tmp_path)
    if way is saved:
        assert torch.equal(torch.get_rng_state(), state)
    for x, y in batches[10:]:
        assert head.step(x, y) == other.step(x, y)
    agree(head, other.net, {"rtol": 0, "atol": 0})
    dfa.revert(other.net)  # converted in its own right


def test_a_head_is_loaded_whatever_its_memory_held(tmp_path, monkeypatch):
    head = OnlineHead(SIZES, rule=dfa.BDFA(init="product"), lr=0.1)
    take = nn.Module.to_empty

    def zeroed(net, device):
        for parameter in take(net, device=device).parameters():
            nn.init.zeros_(parameter)
        return net

    monkeypatch.setattr(nn.Module, "to_empty", zeroed)
    other = saved(head, tmp_path)
    assert head.step(torch.ones(6), 2) == other.step(torch.ones(6), 2)
    agree(head, other.net, {"rtol": 0, "atol": 0})


@learning
def test_every_rule_is_saved_and_loaded(rule, tmp_path):
    head = OnlineHead(SIZES, rule=rule, lr=0.1, activation="leaky_relu", dtype=torch.float64)
    head.step(torch.ones(6), 1)
    other = saved(head, tmp_path)
    assert head.step(torch.ones(6), 2) == other.step(torch.ones(6), 2)
    agree(head, other.net, {"rtol": 0, "atol": 0})
    assert repr(other.net) == repr(head.net)


def test_equal_heads_are_equal_files(tmp_path):
    for name in "ab":
        OnlineHead(SIZES, rule=dfa.DFA(), lr=0.1).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_files_that_are_no_heads_are_refused(tmp_path):
    head = OnlineHead(SIZES, lr=0.1)
    torch.save(head.state_dict(), tmp_path / "pickle.pt")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no head that OnlineHead\.save wrote, which are safetensors files"):
        OnlineHead.load(tmp_path / "pickle.pt")
    for name in ("empty", "missing"):
        with pytest.raises(ValueError, match=f"{name} is no head"):
            OnlineHead.load(tmp_path / name)
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors is no head"):
        OnlineHead.load(tmp_path / "other.safetensors")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    ("net", "state", "message"),
    [
        (["Sequential", {"0": ["Identity", {}]}], {}, "its network has no weights"),
        (
            ["Sequential", {"0": ["Linear", {"in_features": 0, "out_features": 2, "bias": False}]}],
            {"net.0.weight": torch.ones(2, 0)},
            r"0.weight of shape \(2, 0\) is empty",
        ),
    ],
    ids=["no weights", "no width"],
)
def test_files_of_networks_that_no_head_has_are_refused(net, state, message, tmp_path):
    from safetensors.torch import save_file

    about = {"format": 1, "version": "0", "net": net, "rules": None, "settings": {"lr": 0.1}}
    state = {**state, "generator": torch.Generator().get_state()}
    save_file(state, tmp_path / "head", {"torchdfa.OnlineHead": json.dumps(about)})
    with pytest.raises(ValueError, match=f"describes no head .*{message}"):
        OnlineHead.load(tmp_path / "head")


def test_a_rule_of_ones_own_must_be_given_to_load(tmp_path, monkeypatch):
    class Mine(dfa.DFA):
        pass

    OnlineHead(SIZES, rule=Mine(), lr=0.1).save(tmp_path / "mine")
    with pytest.raises(ValueError, match="by the rule 'Mine', which is none of torchdfa's"):
        OnlineHead.load(tmp_path / "mine")
    assert OnlineHead.load(tmp_path / "mine", rule=Mine()).step(torch.ones(6), 0) > 0


def test_the_state_of_another_head_is_refused_and_changes_nothing():
    head = OnlineHead(SIZES, rule=dfa.DFA(), lr=0.1, momentum=0.9)
    before = {k: v.clone() for k, v in head.state_dict().items()}
    for other, message in [
        (OnlineHead((6, 9, 7, 4), rule=dfa.DFA(), lr=0.1), r"net.2.weight \(here \(8, 9\), there \(7, 9\)\)"),
        (OnlineHead(SIZES, lr=0.1), r"feedback.weight \(here \(4, 9\), there none\)"),
        (OnlineHead(SIZES, rule=dfa.BDFA(), lr=0.1), r"packed_signs \(here none, there \(4, 2\)\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            head.load_state_dict(other.state_dict())
    assert all(torch.equal(v, head.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize("broken", [torch.Tensor.float, torch.zeros_like], ids=["of another type", "no state"])
def test_a_state_with_a_broken_generator_is_refused_and_changes_nothing(broken):
    head, other = (OnlineHead(SIZES, lr=0.1, seed=seed) for seed in (0, 1))
    before = {k: v.clone() for k, v in head.state_dict().items()}
    state = other.state_dict()
    with pytest.raises(ValueError, match="load_state_dict: the generator's state is none"):
        head.load_state_dict({**state, "generator": broken(state["generator"])})
    assert all(torch.equal(v, head.state_dict()[k]) for k, v in before.items())


def test_seeds_decide_weights_and_dropout_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    a, b, c = (OnlineHead(SIZES, rule=dfa.DFA(), lr=0.1, dropout=0.5, seed=s) for s in (0, 0, 1))
    losses = [[head.step(torch.ones(6), 0) for _ in range(3)] for head in (a, b, c)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_an_infinite_feature_that_an_activation_hides_is_refused():
    head = dfa.OnlineHead((4, 8, 3), rule=dfa.DFA(), lr=0.1, activation="tanh")
    before = {name: value.clone() for name, value in head.state_dict().items()}
    x = torch.randn(4)
    x[1] = torch.inf
    with pytest.raises(NonFiniteLossError, match="features are not finite"):
        head.step(x, 1)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_a_head_of_another_device_loads_but_for_its_generator():
    head, other = (dfa.OnlineHead((4, 8, 3), rule=dfa.BDFA(), lr=0.1, seed=seed) for seed in (0, 1))
    state = head.state_dict()
    state["generator"] = torch.zeros(16, dtype=torch.uint8)  # as a GPU's is
    other.load_state_dict(state)
    assert all(torch.equal(v, state[n]) for n, v in other.state_dict().items() if n != "generator")
