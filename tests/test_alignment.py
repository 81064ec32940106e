import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchdfa as dfa
from cases import NETS, RULES, fingerprint, fresh, pairs, squared
from torchdfa.alignment import angle


def loss_of(net):
    return lambda out, y: F.mse_loss(net.logits(out), y)


@pairs
def test_angles_are_those_between_the_two_gradients(rule, net, double):
    model = fresh(net, rule)
    x = net.x()
    with torch.no_grad():
        y = torch.randn_like(net.logits(model(x)))
    if not any(p.requires_grad for p in model.parameters()):
        with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
            dfa.alignment(model, loss_of(net), x, y)
        return
    random = torch.get_rng_state()
    found = dfa.alignment(model, loss_of(net), x, y)
    names = [n for n, p in model.named_parameters() if p.requires_grad and ".feedback." not in n]
    assert list(found) == names

    grads = []
    for plain in (False, True):
        twin = copy.deepcopy(model)
        torch.set_rng_state(random)  # the same dropout for both, and the one that alignment saw
        if plain:
            dfa.revert(twin)
            for name, p in twin.named_parameters():
                p.requires_grad_(name in names)
        loss_of(net)(twin(x), y).backward()
        grads.append({n: p.grad.flatten() for n, p in twin.named_parameters() if p.requires_grad})
    for name in names:
        a, b = grads[0][name], grads[1][name]
        if a.norm() == 0 or b.norm() == 0:
            assert math.isnan(found[name])
        elif a.norm() > 1e-9 and b.norm() > 1e-9:  # before a norm a bias's gradient is 0 but for rounding
            expected = math.degrees(math.acos(max(-1.0, min(1.0, (a @ b / a.norm() / b.norm()).item()))))
            assert found[name] == pytest.approx(expected, abs=1e-5), name


@pytest.mark.parametrize("rule", [None, dfa.BP(), dfa.FA(init="product")], ids=["unconverted", "BP", "FA"])
def test_angles_of_back_propagation_are_zero(rule, double):
    net = NETS["mlp"]
    found = dfa.alignment(fresh(net, rule), loss_of(net), net.x(), torch.randn(5, 4))
    assert len(found) == 6
    assert max(found.values()) < 1e-6


def test_hidden_layers_under_random_feedback_are_not_aligned():
    net = NETS["mlp"]
    found = dfa.alignment(fresh(net, dfa.DFA()), loss_of(net), net.x(), torch.randn(5, 4))
    assert found["net.4.weight"] < 1e-3
    assert 20 < found["net.2.weight"] < 160
    assert 20 < found["net.0.weight"] < 160


@pytest.mark.parametrize("rule", [pytest.param(r, id=i) for i, r in RULES.items() if NETS["conv"].has(r)])
def test_nothing_is_disturbed(rule):
    net = NETS["conv"]
    model, x, y = fresh(net, rule), net.x(), torch.randn(5, 4)
    loss_of(net)(model(x), y).backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    before, random = fingerprint(model), torch.get_rng_state()
    with torch.no_grad():
        first, second = (dfa.alignment(model, loss_of(net), x, y) for _ in range(2))
    assert first == pytest.approx(second, nan_ok=True)
    assert fingerprint(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    for name, grad in grads.items():
        assert torch.equal(model.get_parameter(name).grad, grad)


def test_a_zero_gradient_has_no_angle():
    model = dfa.convert(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), dfa.DFA())
    nn.init.constant_(model[0].bias, -1e3)
    found = dfa.alignment(model, lambda out, y: squared(out), torch.randn(5, 3), None)
    assert math.isnan(found["0.weight"])
    assert found["2.bias"] == pytest.approx(0, abs=1e-4)


def test_an_unused_parameter_has_no_angle():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model.register_parameter("spare", nn.Parameter(torch.ones(2)))
    found = dfa.alignment(dfa.convert(model, dfa.DFA()), lambda out, y: squared(out), torch.randn(5, 3), None)
    assert math.isnan(found["spare"])


@pytest.mark.parametrize(
    ("a", "b", "degrees"),
    [
        ([1.0, 0], [0, 2.0], 90),
        ([1.0, 0], [1.0, 1.0], 45),
        ([1.0, 0], [-3.0, 0], 180),
        ([1.0, 0], [1.0, 1e-9], math.degrees(1e-9)),
        ([1e-100, 0], [1e100, 1e100], 45),
        ([1.0, 0], [0.0, 0], math.nan),
        ([1.0, 0], [math.inf, 0], math.nan),
    ],
)
def test_angle(a, b, degrees, double):
    assert angle(torch.tensor(a), torch.tensor(b)) == pytest.approx(degrees, rel=1e-9, nan_ok=True)
    assert math.isnan(angle(None, torch.tensor(b)))


def test_a_model_around_a_converted_one_has_its_angles():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    dfa.convert(inner, dfa.DFA())
    x, y = torch.randn(5, 4), torch.randint(0, 3, (5,))
    alone = dfa.alignment(inner, nn.functional.cross_entropy, x, y)
    within = dfa.alignment(nn.Sequential(nn.Identity(), inner), nn.functional.cross_entropy, x, y)
    assert alone["0.weight"] > 1 and within == {f"1.{name}": value for name, value in alone.items()}


@pytest.mark.parametrize("wrap", [lambda a, b: (a, b), lambda a, b: {"a": a, "b": b}])
def test_a_model_of_two_inputs_has_its_angles(wrap):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, a, b):
            return self.head(torch.tanh(self.left(a) - self.right(b)))

    torch.manual_seed(0)
    model = dfa.convert(Two(), dfa.DFA())
    x, y = wrap(torch.randn(5, 4), torch.randn(5, 4)), torch.randint(0, 3, (5,))
    found = dfa.alignment(model, nn.functional.cross_entropy, x, y)
    assert found["left.weight"] > 1 and found["right.weight"] > 1 and found["head.weight"] == 0
