"""The rules' gradients against formulas written out in NumPy, and their feedback against the papers' equations."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchdfa as dfa
from cases import NETS, RULES, ConvNet, away, fresh, rules
from torchdfa.feedback.bits import key_of

N, SIZES = 6, (5, 8, 7, 6, 4)
CURVES = {
    "tanh": (nn.Tanh, np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "sigmoid": (nn.Sigmoid, lambda z: 1 / (1 + np.exp(-z)), lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2),
    "relu": (nn.ReLU, lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float)),
}


def build(curve, norm, dropout):
    layers = []
    for i, (before, after) in enumerate(itertools.pairwise(SIZES)):
        layers.append((f"fc{i}", nn.Linear(before, after)))
        if i < len(SIZES) - 2:
            layers += [(f"bn{i}", nn.BatchNorm1d(after))] if norm else []
            layers.append((f"act{i}", CURVES[curve][0]()))
            layers += [(f"drop{i}", nn.Dropout(0.4))] if dropout else []
    model = nn.Sequential()
    for name, layer in layers:
        model.add_module(name, layer)
    for parameter in model.parameters():  # biases and norms away from their trivial start
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return model


def by_hand(model, x, labels, masks, curve, rule, feedback):
    """Return the gradients, written out: forward, e at the output, the errors below, outer products.

    ``feedback`` maps the index of a layer to the matrix that carries the error to its input; those without one hand it
    down through their weights. A local rule's feedback carries the layer's own error, not e; DRTP's the target.
    """
    _, f, slope = CURVES[curve]
    p = {n: v.detach().numpy() for n, v in model.named_parameters()}
    depth = len(SIZES) - 1
    h, sums, tops, normed = [x], [], [], []
    for i in range(depth):
        z = h[-1] @ p[f"fc{i}.weight"].T + p[f"fc{i}.bias"]
        sums.append(z)
        if i == depth - 1:
            break
        if f"bn{i}.weight" in p:
            deviation = np.sqrt(z.var(0) + 1e-5)
            normed.append(((z - z.mean(0)) / deviation, deviation))
            z = p[f"bn{i}.weight"] * normed[i][0] + p[f"bn{i}.bias"]
        tops.append(z)
        h.append(f(z) * masks.get(i, 1.0))
    exponentials = np.exp(z - z.max(1, keepdims=True))
    e = (exponentials / exponentials.sum(1, keepdims=True) - np.eye(SIZES[-1])[labels]) / len(x)

    gradients, delta = {}, e
    sent = -np.eye(SIZES[-1])[labels] / len(x) if isinstance(rule, dfa.DRTP) else e
    for i in reversed(range(depth)):
        gradients[f"fc{i}.weight"], gradients[f"fc{i}.bias"] = delta.T @ h[i], delta.sum(0)
        if i == 0:
            gradients["x"] = delta @ p["fc0.weight"]
            break
        if i in feedback:
            error = (delta if rule.local else sent) @ feedback[i]
            if isinstance(rule, dfa.KolenPollack):
                gradients[f"fc{i}.feedback.weight"] = (delta if rule.local else e).T @ h[i]
        else:
            error = delta @ p[f"fc{i}.weight"]
        error = error * masks.get(i - 1, 1.0) * slope(tops[i - 1])
        if normed:
            unit, deviation = normed[i - 1]
            gradients[f"bn{i - 1}.weight"], gradients[f"bn{i - 1}.bias"] = (error * unit).sum(0), error.sum(0)
            error = error * p[f"bn{i - 1}.weight"]
            error = (error - error.mean(0) - unit * (error * unit).mean(0)) / deviation
        delta = error
    return gradients


@rules
@pytest.mark.parametrize(
    ("curve", "norm", "dropout"),
    [
        ("tanh", False, False),
        ("tanh", True, True),
        ("sigmoid", True, False),
        ("sigmoid", False, True),
        ("relu", False, False),
        ("relu", True, True),
    ],
)
def test_gradients_are_those_of_the_equations(rule, curve, norm, dropout, double):
    model = dfa.convert(build(curve, norm, dropout), rule)
    masks = {}
    for i in range(len(SIZES) - 2):
        if dropout:  # a survivor is scaled by 1 / 0.6
            model.get_submodule(f"drop{i}").register_forward_hook(
                lambda _, a, o, i=i: masks.update({i: ((o != 0) / 0.6).double().numpy()})
            )
    x, labels = torch.randn(N, SIZES[0], requires_grad=True), torch.randint(SIZES[-1], (N,))
    F.cross_entropy(model(x), labels).backward()
    if dropout and curve == "relu":
        # Where ReLU is 0 the mask can't be read off the output, and plays no part: the slope there is 0.
        assert all((m == 0).any() for m in masks.values())
    feedback = {
        i: layer.feedback.dense().numpy()
        for i in range(len(SIZES) - 1)
        if hasattr(layer := model.get_submodule(f"fc{i}"), "feedback")
    }
    assert set(feedback) == (set() if type(rule) in (dfa.BP, dfa.Frozen) else {1, 2, 3})
    expected = by_hand(model, x.detach().numpy(), labels.numpy(), masks, curve, rule, feedback)
    for name, parameter in (*model.named_parameters(), ("x", x)):
        if isinstance(rule, dfa.Frozen) and name.startswith("fc"):
            assert parameter.grad is None
        else:
            np.testing.assert_allclose(parameter.grad.numpy(), expected[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("rule", [r for i, r in RULES.items() if i.startswith(("C", "BP"))])
def test_the_trunk_below_a_head_gets_the_error_of_the_equations(rule, double):
    model = dfa.convert(ConvNet(dropout=0.0).eval(), rule)
    inner = {}
    model.features.register_forward_hook(lambda _, a, o: (o.retain_grad(), inner.update(h=o))[0])
    x, labels = torch.randn(N, 2, 7, 7), torch.randint(4, (N,))
    F.cross_entropy(model(x), labels).backward()

    # The head's forward, in eval mode (BN is a fixed affine map), and e.
    w = {i: (model.classifier[i].weight.detach().numpy(), model.classifier[i].bias.detach().numpy()) for i in (0, 4, 6)}
    bn = model.classifier[1]
    gain = (bn.weight / (bn.running_var + bn.eps).sqrt()).detach().numpy()
    h0 = inner["h"].detach().numpy()
    n1 = (h0 @ w[0][0].T + w[0][1] - bn.running_mean.numpy()) * gain + bn.bias.detach().numpy()
    z2 = np.maximum(n1, 0) @ w[4][0].T + w[4][1]
    z3 = np.maximum(z2, 0) @ w[6][0].T + w[6][1]
    e = (np.exp(z3) / np.exp(z3).sum(1, keepdims=True) - np.eye(4)[labels.numpy()]) / N

    carries = {
        i: model.classifier[i].feedback.dense().numpy() for i in (0, 4, 6) if hasattr(model.classifier[i], "feedback")
    }
    if isinstance(rule, dfa.BP):
        dz2 = e @ w[6][0] * (z2 > 0)
        dz1 = dz2 @ w[4][0] * (n1 > 0) * gain
        error = dz1 @ w[0][0]
    elif rule.trunk == "chain":
        assert set(carries) == {4, 6}
        error = (e @ carries[4] * (n1 > 0) * gain) @ w[0][0]
    else:
        assert set(carries) == {0, 4, 6}
        error = e @ carries[0]
    np.testing.assert_allclose(inner["h"].grad.numpy(), error, rtol=1e-9, atol=1e-13)

    # Below, the convolutions keep back-propagation.
    trunk = [p for p in model.features.parameters()]
    expected = torch.autograd.grad(model.features(x), trunk, torch.from_numpy(error))
    for parameter, gradient in zip(trunk, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-13)


def head():
    return nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 7), nn.Dropout(), nn.Linear(7, 4))


def weights(model):
    return [m.weight.detach().numpy() for m in model if isinstance(m, nn.Linear)]


def test_equation_7_product(double):
    model = dfa.convert(head(), dfa.DFA(init="product"))
    _, w2, w3 = weights(model)
    np.testing.assert_allclose(model[5].feedback.dense().numpy(), w3, rtol=1e-12)
    np.testing.assert_allclose(model[3].feedback.dense().numpy(), w3 @ w2, rtol=1e-12)


def test_equation_7_reaches_the_trunk(double):
    model = ConvNet()
    dfa.convert(model, dfa.CDFA(init="product"))
    w1, w2, w3 = weights(model.classifier)
    np.testing.assert_allclose(model.classifier[0].feedback.dense().numpy(), w3 @ w2 @ w1, rtol=1e-12)


@pytest.mark.parametrize("center", [False, True])
def test_equation_9_signs_of_the_product(center, double):
    model = dfa.convert(head(), dfa.BDFA(init="product", center=center))
    _, w2, w3 = weights(model)
    for layer, product in ((model[5], w3), (model[3], w3 @ w2)):
        entries = product - product.mean(0) if center else product
        expected = np.where(entries >= 0, 1.0, -1.0) * np.abs(product).mean()
        np.testing.assert_allclose(layer.feedback.dense().numpy(), expected, rtol=1e-12)


def test_centered_random_signs_never_agree_for_all_classes():
    plain, centered = (
        dfa.convert(nn.Sequential(nn.Linear(3, 500), nn.ReLU(), nn.Linear(500, 2)), dfa.BDFA(center=c))[2].feedback
        for c in (False, True)
    )
    assert 150 < (plain.signs().sum(0) == 0).sum() < 350
    assert (centered.signs().sum(0) == 0).all()


@pytest.mark.parametrize("rule", [dfa.DFA, dfa.BDFA, dfa.CDFA, dfa.CBDFA, dfa.FA], ids=lambda r: r.__name__)
@pytest.mark.parametrize("init", ["random", "product"])
def test_scale_is_the_mean_absolute_value(rule, init, double):
    plain = nn.Sequential(nn.Linear(9, 80), nn.ReLU(), nn.Linear(80, 60), nn.ReLU(), nn.Linear(60, 40))
    _, w2, w3 = weights(plain)
    product = np.abs(w2 if rule.local else w3 @ w2).mean()
    expected = {"matched": product, "unit": 1.0, "nokland": 0.5 / np.sqrt(80), 0.25: 0.25 * product, 3: 3 * product}
    for scale, size in expected.items():
        model = dfa.convert(plain, rule(init=init, scale=scale))
        found = model[2].feedback.dense().abs().mean().item()
        dfa.revert(model)
        # Uniform entries have the size on average; 2400 of them to about 1.2 %.
        rough = init == "random" and not issubclass(rule, dfa.BDFA)
        assert found == pytest.approx(size, rel=0.06 if rough else 1e-9), scale


def test_matched_scale_falls_back_to_nokland_without_a_product():
    model = fresh(NETS["residual"], dfa.BDFA())
    assert model.up.feedback.scale.item() == pytest.approx(0.5 / 6**0.5)
    zero = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3))
    nn.init.zeros_(zero[2].weight)
    assert dfa.convert(zero, dfa.BDFA())[2].feedback.scale.item() == pytest.approx(0.5 / 9**0.5)


def test_random_feedback_is_uniform_around_zero():
    model = dfa.convert(nn.Sequential(nn.Linear(2, 400), nn.Tanh(), nn.Linear(400, 300)), dfa.DFA(scale="nokland"))
    b = model[2].feedback.dense() * 400**0.5
    assert b.abs().max() <= 1
    assert b.mean().abs() < 0.01
    assert b.var().item() == pytest.approx(1 / 3, rel=0.02)


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(r, id=i)
        for i, r in RULES.items()
        if getattr(r, "init", "product") == "random" and not isinstance(r, dfa.SignSymmetry)
    ],
)
def test_feedback_depends_on_the_seed_and_the_layer_alone(rule):
    make = lambda: nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))  # noqa: E731
    direction = lambda layer: layer.feedback.dense() / layer.feedback.dense().abs().mean()  # noqa: E731
    one, two, other = (dfa.convert(make(), r) for r in (rule, rule, dataclasses.replace(rule, seed=1)))
    torch.testing.assert_close(direction(one[2]), direction(two[2]))
    for a, b in ((one[2], one[3]), (one[2], other[2])):
        assert away(direction(a), direction(b)) > 0.5
    assert key_of(0, "2") != key_of(0, "3") != key_of(1, "2")


@pytest.mark.parametrize(
    ("rule", "fields", "names"),
    [
        (dfa.DFA, {"init": "zeros"}, "'random', 'product'"),
        (dfa.FA, {"init": None}, "'random', 'product'"),
        (dfa.DFA, {"scale": "big"}, "'matched', 'unit', 'nokland'"),
        (dfa.DFA, {"scale": 0.0}, "positive"),
        (dfa.DFA, {"scale": -1}, "positive"),
        (dfa.DFA, {"scale": float("nan")}, "positive"),
        (dfa.DFA, {"scale": float("inf")}, "positive"),
        (dfa.DFA, {"scale": True}, "scale=True"),
        (dfa.DFA, {"scale": None}, "scale=None"),
        (dfa.BDFA, {"scale": [1]}, "scale="),
        (dfa.BDFA, {"storage": "bits"}, "'packed', 'seeded'"),
        (dfa.BDFA, {"storage": "seeded", "init": "product"}, "init='product'"),
        (dfa.CBDFA, {"storage": "seeded", "center": True}, "center=True"),
        (dfa.BDFA, {"generator": "lfsr", "init": "product"}, "generator='lfsr'"),
        (dfa.BDFA, {"generator": "dice"}, "'hash', 'lfsr'"),
        (dfa.CDFA, {"trunk": "bp"}, "'direct', 'chain'"),
        (dfa.DFA, {"seed": 1.5}, "seed=1.5, expected a whole number"),
        (dfa.BDFA, {"seed": "a"}, "seed='a', expected a whole number"),
        (dfa.CBDFA, {"trunk": "bp"}, "'direct', 'chain'"),
    ],
)
def test_wrong_fields_are_refused_by_name(rule, fields, names):
    with pytest.raises(ValueError, match=names) as refusal:
        rule(**fields)
    assert str(refusal.value).startswith(rule.__name__)


@rules
def test_rules_are_values(rule):
    assert copy.deepcopy(rule) == rule
    assert hash(copy.deepcopy(rule)) == hash(rule)
    with pytest.raises(AttributeError):
        rule.seed = 3
