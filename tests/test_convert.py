"""Putting a rule on a model and taking it off: what learns from what, what is refused, what stays untouched."""

import copy
import dataclasses
import io
import itertools
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import torchdfa as dfa
from cases import (
    NETS,
    RULES,
    Residual,
    Returning,
    as_dict,
    as_tuple,
    fingerprint,
    fresh,
    gradients,
    pairs,
    rules,
    same,
)
from torchdfa.convert import _MARK, conversion_of, is_converted

FEEDING = {i: r for i, r in RULES.items() if not isinstance(r, (dfa.BP, dfa.Frozen))}
feeding = pytest.mark.parametrize("rule", FEEDING.values(), ids=FEEDING.keys())
DIRECT = {i: r for i, r in FEEDING.items() if not (r.local or r.modular)}
direct = pytest.mark.parametrize("rule", DIRECT.values(), ids=DIRECT.keys())


def mlp(*sizes):
    sizes = sizes or (5, 7, 6, 4)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def cut_layers(model):
    return [n for n, m in model.named_modules() if "feedback" in m._modules]


# ---------------------------------------------------------------- what convert, revert and backprop do to a model


@pairs
def test_revert_leaves_no_trace_and_the_gradients_are_the_plain_ones(rule, net):
    x, plain, model = net.x(), fresh(net), fresh(net)
    before = fingerprint(model)
    assert net.convert(model, rule) is model
    assert is_converted(model)
    assert dfa.revert(model) is model
    assert fingerprint(model) == before
    assert not is_converted(model)
    assert _MARK not in model.__dict__
    found = gradients(model, net, x)
    same(found, gradients(plain, net, x), rtol=0, atol=0)


@pairs
def test_convert_keeps_names_types_values_modes_and_randomness(rule, net):
    model, example = fresh(net).train(), net.x(2)
    if hasattr(model, "features"):
        model.features.eval()
    before, types = fingerprint(model), {n: type(m) for n, m in model.named_modules()}
    names = [n for n, _ in model.named_parameters()]
    random = torch.get_rng_state()
    dfa.convert(model, rule, output=net.output, example=example)
    assert torch.equal(torch.get_rng_state(), random)
    after = fingerprint(model)
    own = {n for n, _ in model.named_parameters() if ".feedback." in n}
    assert [n for n, _ in model.named_parameters() if n not in own] == names
    assert bool(own) == isinstance(rule, dfa.KolenPollack)
    state = {k: v for k, v in after["state"].items() if ".feedback." not in k}
    assert state == before["state"]
    assert list(state) == list(before["state"])
    assert {n: after["modules"][n][:2] for n in types} == {n: v[:2] for n, v in before["modules"].items()}
    if isinstance(rule, dfa.Frozen):
        linear = {f"{n}.{p}" for n, m in model.named_modules() if isinstance(m, nn.Linear) for p in ("weight", "bias")}
        assert {n for n, learns in after["learns"].items() if not learns} == linear & set(names)
    else:
        assert {n: v for n, v in after["learns"].items() if n not in own} == before["learns"]
        assert bool(cut_layers(model)) == (not isinstance(rule, dfa.BP))


@pairs
def test_within_backprop_gradients_are_the_true_ones(rule, net, double):
    x, model = net.x(), fresh(net, rule)
    if isinstance(rule, dfa.Frozen):
        return
    by_rule = gradients(model, net, x)
    with dfa.backprop(model):
        with dfa.backprop(model):
            pass
        true = gradients(model, net, x)
    same(gradients(model, net, x), by_rule, rtol=0, atol=0)
    same(true, gradients(fresh(net), net, x), rtol=1e-12)


@rules
def test_backprop_ends_with_an_exception_too(rule):
    model = fresh(NETS["mlp"], rule)
    with pytest.raises(KeyError), dfa.backprop(model):
        raise KeyError
    assert all(scope.enabled for scope in conversion_of(model).scopes)


@pytest.mark.parametrize("rule", [pytest.param(r, id=i) for i, r in RULES.items() if NETS["conv"].has(r)])
def test_nothing_is_cut_without_gradients(rule):
    net = NETS["conv"]
    model, x = fresh(net, rule).eval(), net.x()
    plain = fresh(net).eval()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(model(x), plain(x))
    assert all(not scope.forward.cuts and not scope.forward.recording for scope in conversion_of(model).scopes)


# ---------------------------------------------------------------- a dict of rules


def test_the_first_pattern_that_matches_decides():
    model = dfa.convert(mlp(5, 6, 6, 6, 4), {"2": dfa.FA(), "[24]": dfa.BDFA(), "[46]": dfa.DFA()})
    kinds = {n: type(r).__name__ for n, r in conversion_of(model).rules.items()}
    assert kinds == {"0": "BP", "2": "FA", "4": "BDFA", "6": "DFA"}
    assert cut_layers(model) == ["2", "4", "6"]


def test_trunk_by_bp_head_by_bdfa():
    net = NETS["conv"]
    model = fresh(net, {"features.*": dfa.BP(), "classifier.*": dfa.BDFA()})
    assert cut_layers(model) == ["classifier.0", "classifier.4", "classifier.6"]
    x = net.x()
    same(gradients(model, net, x), gradients(fresh(net, dfa.CBDFA()), net, x))


def test_frozen_beside_direct_feedback():
    net = NETS["conv"]
    model = fresh(net, {"features.*": dfa.Frozen(), "classifier.*": dfa.DFA()})
    found = gradients(model, net, net.x())
    assert found and all(n.startswith("classifier") for n in found)
    assert all(p.requires_grad for p in dfa.revert(model).parameters())


def test_revert_leaves_frozen_what_the_user_froze():
    model = mlp()
    model[0].weight.requires_grad_(False)
    dfa.revert(dfa.convert(model, dfa.Frozen()))
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["0.weight"]


@pytest.mark.parametrize("rule", [pytest.param(r, id=i) for i, r in DIRECT.items() if NETS["conv"].has(r)])
def test_a_trunk_frozen_by_the_user_needs_no_error(rule):
    net = NETS["conv"]
    model = fresh(net)
    model.features.requires_grad_(False)
    net.convert(model, rule)
    found = gradients(model, net, net.x())
    names = {n for n, p in model.classifier.named_parameters(prefix="classifier")}
    # The head's first layer needs to send no error down, so that feedback there, if it learns, has nothing to learn.
    assert set(found) == names - {"classifier.0.feedback.weight"}
    assert not any(p.requires_grad for p in model.features.parameters())
    expected = gradients(fresh(net, rule), net, net.x())
    same(found, {n: g for n, g in expected.items() if n in found})


def test_weights_under_a_parametrization():
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(*(norm(nn.Linear(4, 4, bias=bias)) for bias in (True, False, True)))
    dfa.convert(model, dfa.DFA())
    assert cut_layers(model) == ["1", "2"]
    model(torch.randn(2, 4)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("example", [None, torch.zeros(2, 4)], ids=["traced", "run"])
@pytest.mark.parametrize("rule", [dfa.DFA(), dfa.BDFA(init="product"), dfa.SignSymmetry()], ids=repr)
def test_conversion_takes_no_step_of_a_power_iteration(rule, example):
    """Reading a weight under spectral_norm does, in training mode."""
    norm = nn.utils.parametrizations.spectral_norm
    model = nn.Sequential(norm(nn.Linear(4, 5)), nn.Tanh(), norm(nn.Linear(5, 4)), nn.Tanh(), norm(nn.Linear(4, 3)))
    before = fingerprint(model)
    dfa.convert(model, rule, example=example)
    assert fingerprint(dfa.revert(model)) == before


# ---------------------------------------------------------------- which layers, which output


class Branches(nn.Module):
    """A head, and a second one that doesn't lead to it."""

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.side, self.aux = (nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(6, 6), nn.Linear(6, 3))

    def forward(self, x):
        h = self.stem(x).tanh()
        return self.head(h), self.aux(self.side(h).tanh())


@pytest.mark.parametrize("example", [None, torch.zeros(2, 5)], ids=["traced", "run"])
def test_layers_that_do_not_lead_to_the_output_keep_bp(example, double):
    example = None if example is None else example.double()
    model = dfa.convert(Branches(), dfa.DFA(), output=0, example=example)
    assert cut_layers(model) == ["head"]
    x = torch.randn(3, 5)
    model(x)[1].square().sum().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with dfa.backprop(model):
        model(x)[1].square().sum().backward()
    true = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    # the head's node passes on a zero error, where back-propagation passes nothing
    same({n: found[n] for n in true}, true)


@pytest.mark.parametrize(
    "end", [nn.Sigmoid(), nn.LogSoftmax(1), nn.Softmax(1), nn.Tanh(), nn.ReLU(inplace=True)], ids=repr
)
@pytest.mark.parametrize("example", [None, torch.zeros(2, 5)], ids=["traced", "run"])
def test_the_error_is_taken_before_the_last_activation(end, example, double):
    model = dfa.convert(nn.Sequential(*mlp(), end), dfa.DFA(), example=None if example is None else example.double())
    logits = dfa.convert(mlp(), dfa.DFA())
    logits.load_state_dict(model.state_dict())
    x = torch.randn(3, 5)
    model(x).square().sum().backward()
    out = logits(x)
    through = end(out.clone())
    out.backward(torch.autograd.grad(through, out, 2 * through)[0])
    for name, p in logits.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, p.grad)


class Opaque(nn.Module):
    """A forward that can't be traced."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x, *, twice=False):
        h = self.a(x).tanh()
        if bool((h.sum() > 1e9).item()):
            return h
        return {"y": self.c(self.b(h).tanh() * (2 if twice else 1))}


@pytest.mark.parametrize("example", [torch.zeros(2, 5), (torch.zeros(2, 5),), {"x": torch.zeros(2, 5), "twice": True}])
@direct
def test_an_untraceable_model_is_run_on_an_example(rule, example):
    if rule.init == "product":
        with pytest.raises(dfa.NoProductError, match="can't be traced"):
            dfa.convert(Opaque(), rule, output="y", example=example)
        return
    model = dfa.convert(Opaque(), rule, output="y", example=example)
    assert cut_layers(model) == ["b", "c"]
    model(torch.randn(3, 5))["y"].neg().sum().backward()
    assert all(p.grad.norm() > 0 for p in model.parameters())


@feeding
def test_with_and_without_an_example_a_chain_is_cut_alike(rule):
    a, b = (dfa.convert(fresh(NETS["mlp"]), rule, example=x) for x in (None, torch.zeros(3, 5)))
    same(a.state_dict(), b.state_dict(), rtol=0, atol=0)


def test_convert_takes_back_what_a_trace_leaves_behind():
    class Leaving(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count += 1
            self.last = x
            self.register_buffer("made", torch.zeros(2))
            return self.b(self.a(x) + torch.randn(4))

    for example in (None, torch.zeros(2, 4)):
        model, random = Leaving(), torch.get_rng_state()
        dfa.convert(model, dfa.DFA(), example=example)
        assert torch.equal(random, torch.get_rng_state())
        assert model.count == 0
        assert not hasattr(model, "last")
        assert not hasattr(model, "made")


def test_modules_of_torch_are_looked_into_with_an_example():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(4, 8), encoder, nn.Linear(8, 3))
    rule = {"*.linear?": dfa.DFA(), "2": dfa.DFA()}
    with pytest.raises(ValueError, match=r"'1\.linear1'.*example="):
        dfa.convert(model, rule)
    dfa.convert(model, rule, example=torch.zeros(2, 3, 4))
    assert cut_layers(model) == ["1.linear1", "1.linear2", "2"]
    model(torch.randn(2, 3, 4)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# ---------------------------------------------------------------- what is refused


def conv_net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4))


def owner():
    model = mlp()
    model[2].feedback = "mine"
    return model


def zero_head():
    model = mlp()
    nn.init.zeros_(model[4].weight)
    return model


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.mix, self.head = nn.Linear(4, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

    def forward(self, x):
        h = self.stem(x)
        return self.head(self.mix(h, h, h)[0])


class Twice(nn.Module):
    """One layer on two sizes of input."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        h = self.stem(x).tanh()
        return self.head(self.mix(h).mean(1) + self.mix(h.mean(1)))


class Squashed(nn.Module):
    """A softmax that follows no Linear layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x):
        h = self.a(x)
        return F.log_softmax(h + self.b(h), 1)


DFA, PRODUCT = dfa.DFA(), dfa.DFA(init="product")
X, MAP = torch.zeros(2, 5), torch.zeros(2, 1, 6, 6)
REFUSALS = {
    "pattern": (mlp, {"head.*": DFA}, {}, "'head.*' matches no layer.*'0' \\(Linear\\)"),
    "no layer": (lambda: nn.Sequential(nn.LSTM(3, 4)), DFA, {}, "DFA fits no layer of Sequential.*LSTM"),
    "CDFA without Linear": (lambda: conv_net()[:3], dfa.CDFA(), {}, "CDFA fits no layer"),
    "pattern of others": (conv_net, {"[02]": dfa.CDFA()}, {}, "CDFA fits none.*'\\[02\\]'.*Conv2d"),
    "nothing to cut": (lambda: nn.Sequential(nn.Linear(3, 4)), DFA, {}, "DFA cuts nothing.*'0'"),
    "conv without example": (conv_net, DFA, {}, "'2', a Conv2d.*example="),
    "width unknown": (Squashed, {"b": DFA}, {"output": "a"}, "cuts nothing"),
    "product through conv": (conv_net, PRODUCT, {"example": MAP}, "product.*'2'.*'2' is a Conv2d"),
    "product through skip": (Residual, PRODUCT, {"example": X}, "product.*'up'.*'add' lies between"),
    "product through tied": (NETS["tied"].build, PRODUCT, {"example": X}, "product.*'again' is called 2 times"),
    "product of zeros": (zero_head, PRODUCT, {}, "'2'.*is zero"),
    "FA product of zeros": (zero_head, dfa.FA(init="product"), {}, "'4'.*is zero"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)), DFA, {}, "'0' is lazy"),
    "DataParallel": (lambda: nn.DataParallel(mlp()), DFA, {}, "wrapped in DataParallel"),
    "compiled": (lambda: torch.compile(mlp()), DFA, {}, "wrapped in OptimizedModule"),
    "attention": (
        Attending,
        DFA,
        {},
        "'mix.out_proj' is never called.*MultiheadAttention.*{'mix': torchdfa.BP..,",
    ),
    "attentions": (lambda: several(2), DFA, {}, "{'0.mix': torchdfa.BP.., '1.mix': torchdfa.BP.., ...}"),
    "many attentions": (lambda: several(4), DFA, {}, "BP: {'\\*mix': torchdfa.BP.., ...}"),
    "rows": (
        lambda: Merged(),
        DFA,
        {"example": torch.zeros(2, 3, 5)},
        "'b' takes inputs of shape \\(6, 4\\).*2 samples",
    ),
    "own forward": (lambda: Derived(), PRODUCT, {}, "product.*'1' is a Halved, with a forward of its own"),
    "unused layer": (lambda: Unused(), DFA, {}, "'spare' is never called"),
    "tuple": (lambda: Returning(as_tuple), DFA, {}, "a tuple of 2, expected a tensor.*output="),
    "dict": (lambda: Returning(as_dict), DFA, {"example": X}, "keys \\['hidden', 'logits'\\], expected a tensor"),
    "wrong key": (lambda: Returning(as_dict), DFA, {"output": "logit"}, "no part 'logit'.*'hidden', 'logits'"),
    "wrong position": (lambda: Returning(as_tuple), DFA, {"output": 2}, "no part 2.*tuple of 2"),
    "key run": (Opaque, DFA, {"output": "z", "example": X}, "no part 'z'.*'y'"),
    "uncalled output": (lambda: Unused(), dfa.CDFA(), {"output": "spare"}, "never calls 'spare'"),
    "untraceable": (Opaque, DFA, {"output": "y"}, "can't be traced.*example="),
    "softmax": (Squashed, DFA, {}, "comes out of a softmax"),
    "softmax run": (Squashed, DFA, {"example": torch.zeros(2, 4)}, "comes out of a softmax"),
    "two shapes": (Twice, DFA, {"example": torch.zeros(2, 3, 5)}, "'mix' is called with inputs of different shapes"),
    "scalar": (lambda: Scalar(), DFA, {"example": X}, "of shape \\(\\), expected a tensor"),
    "own feedback": (owner, DFA, {}, "'2' has an attribute `feedback`"),
}


def several(count):
    return nn.Sequential(*(Attending() for _ in range(count)))


class Merged(nn.Module):
    """One that takes positions for samples."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(12, 3)

    def forward(self, x):
        return self.c(self.b(self.a(x).flatten(0, 1)).view(len(x), 12))


class Halved(nn.Linear):
    def forward(self, input):
        return F.linear(input, 0.5 * self.weight)


class Derived(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(5, 4), Halved(4, 4), nn.Linear(4, 3))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.spare = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x):
        return self.b(self.a(x).tanh())


class Scalar(Unused):
    def forward(self, x):
        return super().forward(x).mean()


@pytest.mark.parametrize(("build", "rule", "more", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refused_by_name_and_left_untouched(build, rule, more, message):
    model = build()
    lazy = isinstance(model, nn.Sequential) and isinstance(model[0], nn.LazyLinear)
    before = None if lazy else fingerprint(model)
    with pytest.raises(ValueError, match=message) as refusal:
        dfa.convert(model, rule, **more)
    assert str(refusal.value).startswith("convert: ")
    assert isinstance(refusal.value, dfa.NoProductError) == message.startswith(("product", "'2'.*is zero", "'4'"))
    assert not is_converted(model)
    if not lazy:
        assert fingerprint(model) == before


@pytest.mark.parametrize("rule", [dfa.DFA, "DFA", None, {"*": "DFA"}, [dfa.DFA()]])
def test_no_rule_is_a_type_error(rule):
    with pytest.raises(TypeError, match=r"expected a rule such as torchdfa\.DFA\(\)"):
        dfa.convert(mlp(), rule)


@rules
def test_converting_twice_is_refused(rule):
    model = dfa.convert(mlp(), rule)
    before = fingerprint(model)
    for outer, where in ((model, "this Sequential"), (nn.Sequential(nn.Linear(5, 5), model), "its module '1'")):
        with pytest.raises(ValueError, match=f"{where} is converted already.*revert"):
            dfa.convert(outer, rule)
    assert fingerprint(model) == before


@pytest.mark.parametrize("use", [dfa.revert, dfa.summary, lambda m: dfa.backprop(m).__enter__()])
def test_an_unconverted_model_is_refused(use):
    with pytest.raises(ValueError, match="this Sequential is not converted"):
        use(mlp())
    with pytest.raises(ValueError, match="this Linear is not converted"):
        use(dfa.convert(mlp(), dfa.DFA())[0])


# ---------------------------------------------------------------- what is refused at run time


def run(model, x):
    model(x).sum().backward()


class Following(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.a, self.b, self.c, self.change = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4), change

    def forward(self, x):
        h = self.a(x).tanh() * 1
        y = self.b(h)
        return self.c(y + self.change(h))


def test_an_input_changed_in_place_is_refused():
    run(dfa.convert(Following(torch.relu), dfa.DFA(), example=X), torch.randn(3, 5))
    with pytest.raises(RuntimeError, match="the input of 'b' was changed in place"):
        run(dfa.convert(Following(torch.relu_), dfa.DFA(), example=X), torch.randn(3, 5))


@direct
def test_a_layer_called_outside_the_forward_is_refused(rule):
    model = dfa.convert(mlp(), rule)
    h = model[1](model[0](torch.randn(3, 5)))
    with pytest.raises(RuntimeError, match=r"'[24]' is cut, and is called outside the forward"):
        model[4](model[3](model[2](h)))
    with dfa.backprop(model):
        run(model[2], h)
    with torch.no_grad():
        model[2](h)
    run(model, torch.randn(3, 5))


def fail(*_):
    raise KeyError


@feeding
def test_a_forward_that_failed_leaves_nothing_behind(rule, double):
    model, x = dfa.convert(mlp(), rule), torch.randn(3, 5)
    run(model, x)
    expected = [p.grad for p in model.parameters()]
    for i in (1, 3):
        model.zero_grad()
        handle = model[i].register_forward_hook(fail)
        with pytest.raises(KeyError):
            model(x)
        handle.remove()
        assert all(not scope.forward.cuts for scope in conversion_of(model).scopes)
        if not rule.local:
            with pytest.raises(RuntimeError, match=r"'4' is cut, and is called outside the forward"):
                model[4](torch.randn(3, 6, requires_grad=True))
        run(model, x)
        for p, gradient in zip(model.parameters(), expected, strict=True):
            assert torch.equal(p.grad, gradient)


@feeding
def test_one_thread_may_train_a_model_that_another_evaluates(rule, double):
    model, x = dfa.convert(mlp(), rule), torch.randn(3, 5)
    run(model, x)
    expected = [p.grad for p in model.parameters()]
    model.zero_grad()

    def evaluate(*_):
        with torch.no_grad():
            model(x)

    def elsewhere(*_):
        handle.remove()
        for use in (evaluate, lambda: run(model, 2 * x)):
            thread = threading.Thread(target=use)
            thread.start()
            thread.join()
        model.zero_grad()

    handle = model[1].register_forward_hook(elsewhere)  # in the middle of this thread's forward
    run(model, x)
    for p, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.equal(p.grad, gradient)


def test_sequence_first_inputs_are_refused():
    net = NETS["pooled"]
    model = fresh(net, dfa.DFA())
    run(model, net.x(4))
    for shape in ((4, 2, 5), (4, 6, 5)):
        with pytest.raises(ValueError, match=r"'mix'.*the scope's output has shape"):
            run(model, torch.randn(shape))
    run(model, net.x(4))  # a forward that failed leaves nothing behind


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):  # (T, N, D)
        return self.head(self.b(self.a(x)).tanh().mean(0))


@pytest.mark.parametrize("shape", [(3, 2, 5), (2, 3, 5)])
def test_samples_in_the_second_dimension_are_refused(shape):
    with pytest.raises(ValueError, match=r"'b' takes inputs of shape .* can't be sent to \d rows"):
        dfa.convert(SequenceFirst(), dfa.DFA(), example=torch.zeros(shape))
    # As many steps as samples: the shapes tell nothing.
    with pytest.raises(ValueError, match="'b' can't be cut: at its input samples lie along another dimension"):
        dfa.convert(SequenceFirst(), dfa.DFA(), example=torch.zeros(3, 3, 5))


def test_another_image_size_is_refused():
    model = dfa.convert(nn.Sequential(*conv_net()[:3], nn.AdaptiveAvgPool2d(2), *conv_net()[3:]), DFA, example=MAP)
    run(model, torch.randn(3, 1, 6, 6))
    with pytest.raises(ValueError, match="'2'"):
        run(model, torch.randn(3, 1, 8, 8))


# ---------------------------------------------------------------- copies and saved states


@pairs
def test_copies_are_independent_and_keep_their_feedback(rule, net, double):
    x, model = net.x(), fresh(net, rule)
    if isinstance(rule, dfa.Frozen):
        x.requires_grad_()
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    expected = gradients(model, net, x)
    for twin in copies:
        same(gradients(twin, net, x), expected, rtol=0, atol=0)
    # Spoiling the original's feedback, or switching it off, does nothing to the copies.
    for name in cut_layers(model):
        for tensor in model.get_submodule(name).feedback.state_dict().values():
            tensor.zero_()
    with dfa.backprop(model):
        model(x)
        for twin in copies:
            same(gradients(twin, net, x), expected, rtol=0, atol=0)
    for twin in copies:
        dfa.revert(twin)
        assert not is_converted(twin)
    assert is_converted(model)


def test_a_copy_made_within_a_forward_starts_afresh():
    model = dfa.convert(mlp(), dfa.DFA())
    copies = []
    model[3].register_forward_hook(lambda *_: copies.append(copy.deepcopy(conversion_of(model))))
    model(torch.randn(3, 5))
    (scope,) = copies[0].scopes
    assert not scope.forward.cuts and not scope.forward.recording


@pairs
def test_feedback_travels_with_the_state(rule, net, double):
    other = rule if isinstance(rule, (dfa.BP, dfa.Frozen)) else dataclasses.replace(rule, seed=9)
    x, model, target = net.x(), fresh(net, rule), fresh(net, other, seed=5)
    if isinstance(rule, dfa.Frozen):
        x.requires_grad_()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    expected = gradients(model, net, x)
    model.zero_grad()
    target.load_state_dict(torch.load(file, weights_only=True))
    same(gradients(target, net, x), expected, rtol=0, atol=0)


# ---------------------------------------------------------------- checkpointing of activations


class Checkpointed(nn.Module):
    def __init__(self, inner, **options):
        super().__init__()
        self.inner, self.options = inner, options

    def forward(self, x):
        return checkpoint(self.inner, x, **self.options)


class PartCheckpointed(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.bottom, self.part, self.top = nn.Linear(5, 6), nn.Sequential(nn.Tanh(), mlp(6, 7, 6, 6)), nn.Linear(6, 4)
        self.options = options

    def forward(self, x):
        h = self.bottom(x).tanh()
        h = checkpoint(self.part, h, **self.options) if self.options else self.part(h)
        return self.top(h.tanh())


@feeding
def test_checkpointing_the_whole_model(rule, double):
    model = dfa.convert(mlp(), rule)
    outer, x = Checkpointed(model, use_reentrant=False), torch.randn(3, 5)
    found = []
    for m in (model, outer):
        outer.zero_grad()
        m(x).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def checkpointed_part(rule, **options):
    torch.manual_seed(4)
    model = PartCheckpointed(**options)
    return dfa.convert(model, rule, example=torch.zeros(2, 5))


# No product leads through a forward that can't be traced; FA needs none but its own layer's.
@pytest.mark.parametrize(
    "rule", [pytest.param(r, id=i) for i, r in FEEDING.items() if r.init == "random" or not r.wide]
)
def test_checkpointing_a_part(rule, double):
    x, found = torch.randn(3, 5), []
    for options in ({}, {"use_reentrant": False}):
        model = checkpointed_part(rule, **options)
        losses = [model(x).square().sum() for _ in range(2)]  # two pending forwards
        losses[0].backward()
        losses[1].backward()
        found.append({n: p.grad for n, p in model.named_parameters()})
        assert rule.local or rule.modular or all(not scope.forward.cuts for scope in conversion_of(model).scopes)
    same(*found)


@pytest.mark.parametrize("rule", [pytest.param(r, id=i) for i, r in DIRECT.items() if r.init == "random"])
def test_reentrant_checkpointing_of_a_part_is_refused(rule):
    model = checkpointed_part(rule, use_reentrant=True)
    loss = model(torch.randn(3, 5)).sum()
    with pytest.raises(RuntimeError, match=r"'part\.1\.\d' is cut.*use_reentrant=True.*use_reentrant=False"):
        loss.backward()


def test_frozen_reaches_what_a_parametrized_weight_is_made_of():
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)))
    dfa.convert(net, dfa.Frozen())
    assert not any(p.requires_grad for p in net.parameters())
    dfa.revert(net)
    assert all(p.requires_grad for p in net.parameters())


def test_feedback_is_drawn_on_the_processor_whatever_the_default_device():
    def build():
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))

    for rule in (dfa.DFA(), dfa.BDFA(), dfa.BDFA(storage="seeded"), dfa.HybridDFA(density=0.5, binary=True)):
        plain = build()
        other = copy.deepcopy(plain)
        dfa.convert(plain, rule)
        with torch.device("meta"):
            dfa.convert(other, rule)
        for a, b in zip(plain.buffers(), other.buffers(), strict=True):
            assert torch.equal(a, b)


class Fed(nn.Module):
    """A module that passes its input to another in the way that a test wants."""

    def __init__(self, give):
        super().__init__()
        self.stem, self.block, self.give = nn.Linear(3, 4), Taking(), give

    def forward(self, x):
        return self.block(**self.give(self.stem(x)))


class Taking(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, hidden=None, others=None):
        return self.down(self.up(others if hidden is None else hidden[0] if type(hidden) is list else hidden))


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda h: {"others": h}, "'block' is cut at its input, and is called without it: with others.*hidden="),
        (lambda h: {"hidden": [h]}, "'block' is cut at its input, which is a list of 1, expected a tensor"),
    ],
)
def test_a_module_whose_input_is_no_tensor_is_refused_by_name(give, message):
    rule = dfa.HybridDFA(direct="between", modules=["block"])
    with pytest.raises(ValueError, match=message):
        dfa.convert(Fed(give), {"block.*": rule}, example=torch.randn(2, 3))


def test_a_hidden_layer_that_was_replaced_is_told():
    x = torch.randn(4, 6)
    for rule in (dfa.DFA(), dfa.FA()):
        model = dfa.convert(mlp(6, 8, 8, 3), rule)
        model(x).sum().backward()
        model[2] = nn.Linear(8, 8)
        with pytest.raises(RuntimeError, match=r"'2' was cut when the model was converted, and is no longer"):
            model(x)
        with torch.no_grad():
            model(x)
        with dfa.backprop(model):
            model(x).sum().backward()
        dfa.convert(dfa.revert(model), rule)(x).sum().backward()


def test_a_layer_that_is_not_reached_or_has_an_adapter_is_not_taken_for_replaced():
    class Adapted(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.change = base, nn.Linear(base.in_features, base.out_features)

        def forward(self, x):
            return self.base(x) + self.change(x)

    x = torch.randn(4, 6)
    model = dfa.convert(mlp(6, 8, 8, 3), dfa.DFA())
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    model(x).sum().backward()  # nothing to learn below the second layer: its input gets no error
    model[2] = Adapted(model[2])
    model(x).sum().backward()
    assert model[2].change.weight.grad.abs().sum() > 0


def test_a_head_that_was_replaced_is_told():
    x = torch.randn(3, 5)
    model = dfa.convert(mlp(), DFA)
    model[4] = nn.Linear(6, 4)
    # The error is taken of what the model returns, whatever makes it; but the new head's would come down its weights.
    with pytest.raises(RuntimeError, match=r"'4' was cut when the model was converted, and is no longer"):
        run(model, x)
    model = dfa.convert(NETS["dict"].build(), DFA, output="logits")
    model.net[4] = nn.Linear(model.net[4].in_features, 4)
    with pytest.raises(RuntimeError, match=r"'net.2' is cut, and the forward ended without the output"):
        model(x)
    with torch.no_grad():
        model(x)
    with dfa.backprop(model):
        model(x)["logits"].sum().backward()
    dfa.convert(dfa.revert(model), DFA, output="logits")
    model(x)["logits"].sum().backward()


class Losing(nn.Module):
    """A model that makes its own loss, as those of Hugging Face do."""

    def __init__(self, plain, opaque):
        super().__init__()
        self.trunk, self.head = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 4)
        self.plain, self.opaque = plain, opaque

    def forward(self, x, labels):
        if self.opaque and x.sum() > 1e9:  # which no trace gets past
            raise AssertionError
        logits = self.head(self.trunk(x)) if self.plain else self.head(self.trunk(x)) + 0.0
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("opaque", [False, True])
def test_a_loss_made_inside_the_model_sends_its_error(opaque, double):
    x, labels = torch.randn(3, 5), torch.tensor([0, 3, 1])
    model = dfa.convert(Losing(True, opaque), DFA, output="logits", example=(x, labels) if opaque else None)
    model(x, labels)["loss"].backward()
    inside = [p.grad for p in model.parameters()]
    model.zero_grad()
    F.cross_entropy(model(x, labels)["logits"], labels).backward()
    for p, gradient in zip(model.parameters(), inside, strict=True):
        assert gradient.any() and torch.equal(p.grad, gradient)


def test_a_loss_that_sends_none_is_told():
    x, labels = torch.randn(3, 5), torch.tensor([0, 3, 1])
    model = dfa.convert(Losing(False, False), DFA, output="logits", example=(x, labels))
    with pytest.warns(UserWarning, match=r"a scalar 'loss' beside 'logits'.*sends no error"):
        model(x, labels)
    model = dfa.convert(Losing(False, False), DFA, output="head", example=(x, labels))
    model(x, labels)["loss"].backward()
    assert all(p.grad.any() for p in model.parameters())


def test_layers_of_derived_classes_are_cut_without_an_example():
    model = dfa.convert(Derived(), DFA)
    assert [n for n, m in model.named_modules() if "feedback" in m._modules] == ["1", "2"]


def test_layers_of_unknown_types_are_told():
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 3), nn.Tanh(), nn.LayerNorm((3, 6, 6)), nn.Conv2d(3, 4, 3))
    for rule in (DFA, dfa.FA(), dfa.HybridDFA(direct="between")):
        with pytest.warns(UserWarning, match=r"does not know '0' \(ConvTranspose2d\): .* keep back-propagation"):
            dfa.convert(copy.deepcopy(model), rule, example=torch.zeros(1, 2, 4, 4))
    head = nn.Sequential(model, nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 2))
    dfa.convert(head, dfa.CDFA())  # which takes the Linear layers alone: no warning


def test_a_replaced_layer_is_told_while_an_exception_is_handled_too():
    model = dfa.convert(mlp(6, 8, 8, 3), dfa.DFA())
    model[2] = nn.Linear(8, 8)
    try:
        raise MemoryError
    except MemoryError:  # a second attempt
        with pytest.raises(RuntimeError, match="'2' was cut when the model was converted, and is no longer"):
            model(torch.randn(4, 6))


def test_a_model_is_reverted_though_a_layer_at_rest_was_replaced():
    model = dfa.convert(mlp(6, 8, 8, 3), {"0": dfa.Frozen(), "2": dfa.Frozen(), "4": dfa.DFA()})
    model[2] = nn.Identity()
    dfa.revert(model)
    assert model[0].weight.requires_grad and model[4]._modules.get("feedback") is None


@pytest.mark.parametrize("error", [UnicodeDecodeError("utf-8", b"a", 0, 1, "no"), ValueError("no")])
def test_whatever_a_model_raises_on_its_example_is_handed_on(error):
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(4, 5, 3)

        def forward(self, x):
            raise error

    with pytest.raises(ValueError, match=r"convert: .*no") as raised:
        dfa.convert(Failing(), dfa.DFA(), example=torch.zeros(2, 4))
    assert type(raised.value) is ValueError


def test_a_block_fed_a_packed_sequence_is_refused():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.block = nn.LSTM(3, 4), Inner()

        def forward(self, x):
            return self.block(self.first(nn.utils.rnn.pack_sequence([x, x]))[0])

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.below, self.above = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, packed):
            return self.above(torch.tanh(self.below(packed.data)))

    rule = {"block.*": dfa.HybridDFA(modules=["block"], direct="between")}
    with pytest.raises(ValueError, match="'block' is cut at its input, which is a PackedSequence"):
        dfa.convert(Packed(), rule, example=torch.randn(5, 3))


class Sorted(nn.Module):
    """Samples are put in another order inside, as for packed sequences, and back at the end."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x[order]))))[order.argsort()])


class Graph(Sorted):
    """Each node's output depends on its neighbours, and its own error is its own."""

    def forward(self, x):
        near = torch.eye(len(x)) + torch.eye(len(x)).roll(1, 0)
        return self.c(torch.tanh(near @ self.b(torch.tanh(near @ self.a(x)))))


def test_samples_in_other_rows_are_refused():
    torch.manual_seed(0)
    x = torch.randn(6, 5)
    with pytest.raises(ValueError, match="'b' can't be cut: at its input samples lie in other rows"):
        dfa.convert(Sorted(), dfa.DFA(), example=x)
    with pytest.raises(ValueError, match="above it selects rows, which may move samples"):
        dfa.convert(Sorted(), dfa.DFA())
    dfa.convert(Sorted(), {"c": dfa.DFA(), "b": dfa.FA()}, example=x)


def test_samples_that_share_rows_are_let_be():
    model = dfa.convert(Graph(), dfa.DFA(), example=torch.randn(6, 5))
    assert "feedback" in model.b._modules and "feedback" in model.c._modules


class Twins(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc = mlp(5, 8, 8, 3)

    def forward(self, a, b):
        return self.enc(a), self.enc(b)


def test_a_shared_encoder_is_converted_by_itself():
    a, b = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)
    message = r"'enc.0' can't be cut: of its 2 calls in a forward 1 don't lead to the output"
    for output in (0, (0, 1)):
        with pytest.raises(ValueError, match=message):
            dfa.convert(Twins(), dfa.DFA(), output=output, example=(a, b))
    model = Twins()
    dfa.convert(model.enc, dfa.DFA())
    model(a, b)[1].sum().backward()
    assert a.grad is None or not a.grad.any()
    with pytest.raises(ValueError, match="its module 'enc' is: pass that"):
        dfa.summary(model)


def test_feedback_that_a_functional_call_lends_is_refused():
    torch.manual_seed(0)
    models = [dfa.convert(mlp(5, 8, 8, 3), dfa.DFA(seed=seed)) for seed in range(2)]
    parameters, buffers = torch.func.stack_module_state(models)
    x = torch.randn(4, 5)

    def loss(parameters, buffers):
        return torch.func.functional_call(models[0], (parameters, buffers), (x,)).square().sum()

    with pytest.raises(RuntimeError, match="functional_call"):
        torch.func.vmap(torch.func.grad(loss))(parameters, buffers)
    with pytest.raises(RuntimeError, match="functional_call"):
        loss(dict(models[1].named_parameters()), dict(models[1].named_buffers())).backward()
    found = torch.func.vmap(lambda p: torch.func.grad(loss)(p, {}))(parameters)
    for i, model in enumerate(models):
        model.load_state_dict({**model.state_dict(), **{n: b for n, b in models[0].named_buffers()}})
        model.zero_grad()
        model(x).square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name][i], parameter.grad)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_made_within_backprop_trains_by_the_rule(copied):
    model = dfa.convert(mlp(5, 8, 8, 3), dfa.DFA())
    with dfa.backprop(model):
        other = copied(model)
    x, y = torch.randn(4, 5), torch.randint(0, 3, (4,))
    found = dfa.alignment(other, nn.functional.cross_entropy, x, y)
    assert found == dfa.alignment(model, nn.functional.cross_entropy, x, y) and found["0.weight"] > 1


def test_what_was_compiled_before_takes_up_the_rule():
    x, y = torch.randn(4, 5), torch.randint(0, 3, (4,))
    model = mlp(5, 8, 8, 3)
    compiled = torch.compile(model, backend="eager")
    for rule in (dfa.DFA(seed=1), dfa.DFA(seed=2)):
        nn.functional.cross_entropy(compiled(x), y).backward()
        dfa.convert(model, rule)
        for part in (compiled, model):
            model.zero_grad()
            nn.functional.cross_entropy(part(x), y).backward()
            part.found = model[0].weight.grad
        torch.testing.assert_close(compiled.found, model.found)
        with dfa.backprop(model):
            model.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            assert not torch.allclose(model[0].weight.grad, model.found)
        dfa.revert(model)


def test_patterns_that_decide_nothing_are_refused():
    with pytest.raises(ValueError, match="the pattern '4' decides nothing"):
        dfa.convert(mlp(5, 8, 8, 3), {"*": dfa.BP(), "4": dfa.DFA()})
    with pytest.raises(ValueError, match="names no pattern"):
        dfa.convert(mlp(5, 8, 8, 3), {})


@pytest.mark.parametrize("rule", [dfa.DFA(), dfa.BDFA(init="product"), dfa.BDFA(storage="seeded")])
def test_weights_that_are_not_finite_make_no_feedback(rule):
    model = mlp(5, 8, 8, 3)
    model[4].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"the feedback of '[24]' is not finite"):
        dfa.convert(model, rule)


@pytest.mark.parametrize("rule", [dfa.DFA(), dfa.FA(), dfa.CDFA()])
def test_a_single_layer_has_nothing_to_send_errors_to(rule):
    with pytest.raises(ValueError, match="the model is a single Linear, with no layer below it"):
        dfa.convert(nn.Linear(3, 2), rule)
