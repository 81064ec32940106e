"""Networks of several heads, whose errors are sent together to the layers that they share."""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchdfa as dfa

X = torch.linspace(-1, 1, 30, dtype=torch.float64).view(5, 6)
LABELS, TARGETS = torch.tensor([0, 3, 1, 1, 2]), torch.linspace(-1, 1, 5, dtype=torch.float64).view(5, 1)


class ActorCritic(nn.Module):
    """Layers a and b lead to both outputs, c and policy to the first, value to the second."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 7), nn.Linear(7, 8), nn.Linear(8, 5)
        self.policy, self.value = nn.Linear(5, 4), nn.Linear(8, 1)

    def forward(self, x):
        h = self.b(self.a(x).tanh()).tanh()
        return self.policy(self.c(h).relu()), self.value(h)


class Opaque(ActorCritic):
    """No trace gets past its forward."""

    def forward(self, x):
        assert x.sum() < 1e9
        return super().forward(x)


def losses(out):
    return F.cross_entropy(out[0], LABELS), F.mse_loss(out[1], TARGETS)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind, example", [(ActorCritic, None), (ActorCritic, X), (Opaque, X)])
@pytest.mark.parametrize("rule", [dfa.DFA(), dfa.BDFA()], ids=repr)
def test_gradients_are_the_hand_formulas(rule, kind, example, double):
    model = dfa.convert(kind(), rule, output=(0, 1), example=example)
    logits, value = model(X)
    found = gradients(model, sum(losses((logits, value))))
    b = {n: m.feedback.dense() for n, m in model.named_modules() if "feedback" in m._modules}
    assert {n: tuple(m.shape) for n, m in b.items()} == {"b": (5, 7), "c": (4, 8), "policy": (4, 5), "value": (1, 8)}
    e_policy = (logits.softmax(1) - F.one_hot(LABELS, 4)) / 5
    e_value = 2 * (value - TARGETS) / 5
    h1 = model.a(X).tanh()
    h2 = F.linear(h1, model.b.weight, model.b.bias).tanh()
    u = F.linear(h2, model.c.weight, model.c.bias).relu()
    at_c = e_policy @ b["policy"] * (u > 0)
    at_b = (e_policy @ b["c"] + e_value @ b["value"]) * (1 - h2**2)
    at_a = torch.cat([e_policy, e_value], 1) @ b["b"] * (1 - h1**2)
    by_hand = {"policy": (e_policy, u), "value": (e_value, h2), "c": (at_c, h2), "b": (at_b, h1), "a": (at_a, X)}
    for name, (error, h) in by_hand.items():
        torch.testing.assert_close(found[f"{name}.weight"], error.T @ h)
        torch.testing.assert_close(found[f"{name}.bias"], error.sum(0))
    with dfa.backprop(model):
        true = gradients(model, sum(losses(model(X))))
    assert all(torch.equal(found[n], true[n]) == n.startswith(("policy", "value")) for n in found)


def test_the_product_is_of_each_way_down(double):
    model = dfa.convert(ActorCritic(), dfa.DFA(init="product"), output=(0, 1))
    w = {n: m.weight for n, m in model.named_children()}
    torch.testing.assert_close(
        model.b.feedback.dense(), torch.cat([w["policy"] @ w["c"] @ w["b"], w["value"] @ w["b"]]), check_dtype=False
    )
    torch.testing.assert_close(model.c.feedback.dense(), w["policy"] @ w["c"], check_dtype=False)
    torch.testing.assert_close(model.value.feedback.dense(), w["value"].detach(), check_dtype=False)
    with pytest.raises(dfa.NoProductError, match="can't be traced"):
        dfa.convert(Opaque(), dfa.DFA(init="product"), output=(0, 1), example=X)


def test_a_loss_of_one_part_sends_that_part_s_error(double):
    model = dfa.convert(ActorCritic(), dfa.DFA(), output=(0, 1))
    both, one, other = (
        gradients(model, loss) for loss in (sum(losses(model(X))), *(losses(model(X))[i] for i in (0, 1)))
    )
    assert one["a.weight"].any() and other["a.weight"].any()
    for name, gradient in both.items():
        nothing = torch.zeros_like(gradient)
        torch.testing.assert_close(gradient, one.get(name, nothing) + other.get(name, nothing))
        if name.startswith(("policy", "c")):
            assert not other.get(name, nothing).any()


class Pair(NamedTuple):
    logits: torch.Tensor
    value: torch.Tensor


@dataclass
class Made:
    logits: torch.Tensor
    value: torch.Tensor
    features: torch.Tensor


class Returning(ActorCritic):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(*super().forward(x))


@pytest.mark.parametrize(
    "make, parts, pick",
    [
        (lambda a, b: {"logits": a, "value": b}, ("logits", "value"), lambda out: (out["logits"], out["value"])),
        (lambda a, b: [None, a, b], [1, -1], lambda out: (out[1], out[2])),
        (Pair, ("value", "logits"), tuple),
        (lambda a, b: Made(a, b, a.detach()), ("logits", "value"), lambda out: (out.logits, out.value)),
        (lambda a, b: (a, b.squeeze(1)), (0, 1), lambda out: (out[0], out[1].unsqueeze(1))),
        (lambda a, b: (a.view(5, 2, 2), b), (0, 1), lambda out: (out[0].flatten(1), out[1])),
    ],
    ids=["dict", "list", "named tuple, turned", "data class", "value a number a sample", "logits in two dimensions"],
)
def test_parts_of_any_kind_and_shape(make, parts, pick, double):
    reference = dfa.convert(ActorCritic(), dfa.DFA(), output=(1, 0) if parts == ("value", "logits") else (0, 1))
    model = dfa.convert(Returning(make), dfa.DFA(), output=parts, example=X)
    model.load_state_dict(reference.state_dict())
    out = model(X)
    assert type(out) is type(make(*ActorCritic()(X)))
    found = gradients(model, sum(losses(pick(out))))
    expected = gradients(reference, sum(losses(reference(X))))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


class Tokens(nn.Module):
    """Two outputs at every position."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(9, 6), nn.Linear(6, 7)
        self.tag, self.word = nn.Linear(7, 3), nn.Linear(7, 9)

    def forward(self, x):
        h = self.mix(self.embed(x)).tanh()
        return {"tag": self.tag(h), "word": self.word(h)}


class Maps(nn.Module):
    """A map and a class."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.mask, self.kind = nn.Conv2d(4, 2, 1), nn.Linear(4, 3)

    def forward(self, x):
        h = self.body(self.stem(x).relu()).relu()
        return self.mask(h), self.kind(h.mean((2, 3)))


def test_positions_and_maps():
    model = dfa.convert(Tokens(), dfa.DFA(), output=("tag", "word"))
    assert {n: tuple(getattr(model, n).feedback.dense().shape) for n in ("mix", "tag", "word")} == {
        "mix": (12, 6),
        "tag": (3, 7),
        "word": (9, 7),
    }
    out = model(torch.arange(8).view(2, 4))
    (out["tag"].square().sum() + out["word"].square().sum()).backward()
    assert all(p.grad.any() for p in model.parameters())
    model = dfa.convert(Maps(), dfa.BDFA(), output=(0, 1), example=torch.zeros(1, 1, 4, 4))
    assert (model.body.feedback.errors, model.mask.feedback.errors, model.kind.feedback.errors) == (35, 32, 3)
    mask, kind = model(torch.randn(3, 1, 4, 4))
    assert mask.shape == (3, 2, 4, 4) and kind.shape == (3, 3)
    (mask.relu_().square().sum() + kind.square().sum()).backward()  # parts may be changed in place
    assert all(p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    "rule", [dfa.FA(), dfa.KolenPollack(), dfa.CDFA(), dfa.HybridDFA(modules="c", direct="between")]
)
def test_other_rules(rule, double):
    model = dfa.convert(ActorCritic(), rule, output=(0, 1), example=X)
    found = gradients(model, sum(losses(model(X))))
    assert all(found[n].any() for n, p in model.named_parameters())
    with dfa.backprop(model):
        true = gradients(model, sum(losses(model(X))))
    assert not torch.allclose(found["a.weight"], true["a.weight"])
    angles = dfa.alignment(model, lambda out, _: sum(losses(out)), X, LABELS)
    assert angles["policy.weight"] == 0 and 0 < angles["a.weight"] < 180


# Of torch, which asks whether what enters a compiled hook has a gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_copied_and_in_mixed_precision():
    x = X.float()
    model = dfa.convert(ActorCritic(), dfa.BDFA(), output=(0, 1))
    twin = copy.deepcopy(model)

    def square(out):
        return sum(part.float().square().sum() for part in out)

    expected = gradients(model, square(model(x)))
    for name, gradient in gradients(twin, square(torch.compile(twin, fullgraph=True, backend="aot_eager")(x))).items():
        torch.testing.assert_close(gradient, expected[name])
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    assert {part.dtype for part in out} == {torch.bfloat16}
    gradients(model, square(out))


@pytest.mark.parametrize(
    "kind, rule, parts, message",
    [
        (ActorCritic, dfa.DRTP(), (0, 1), "'b' leads to the parts 0, 1 of the output, and DRTP reads the targets off"),
        (ActorCritic, dfa.DFA(), (), r"output=\(\) names no part"),
        (ActorCritic, dfa.DFA(), (0, 2), "no part 2: it is a tuple of 2"),
        (ActorCritic, dfa.DFA(), ("policy", "value"), "no part 'policy': it is a tuple of 2"),
        (
            lambda: Returning(lambda a, b: (a, [b])),
            dfa.DFA(),
            (0, 1),
            "the scope's output is a list of 1, expected a tensor",
        ),
        (lambda: Returning(lambda a, b: (a, b.sum())), dfa.DFA(), (0, 1), r"a Tensor of shape \(\), expected a tensor"),
        (
            lambda: Returning(lambda a, b: (a, b.mT)),
            dfa.DFA(),
            (0, 1),
            r"shapes \[\(5, 4\), \(1, 5\)\], expected a row",
        ),
        (lambda: Returning(lambda a, b: (a.softmax(1), b)), dfa.DFA(), (0, 1), "comes out of a softmax"),
    ],
)
def test_what_is_refused(kind, rule, parts, message, double):
    model = kind()
    with pytest.raises(ValueError, match=message):
        dfa.convert(model, rule, output=parts, example=X)
    dfa.convert(model, dfa.FA())  # it was left as it was


def test_a_width_that_is_not_known_without_an_example_is_said():
    model = Returning(lambda a, b: (a, b.exp()))
    with pytest.raises(ValueError, match=r"not known, since in its part 1 'exp' lies between.*example=x"):
        dfa.convert(model, dfa.DFA(), output=(0, 1))
