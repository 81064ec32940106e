"""The rules within what people train with: losses, scaling, accumulation, autocast, compile, functional transforms."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import torchdfa as dfa
from cases import BETWEEN, NETS, RULES, fresh, gradients, pairs, rules, same, squared
from torchdfa.convert import conversion_of
from torchdfa.functional import reference_broadcast

MLP, CONV = NETS["mlp"], NETS["conv"]
FEEDING = {i: r for i, r in RULES.items() if not isinstance(r, (dfa.BP, dfa.Frozen))}
feeding = pytest.mark.parametrize("rule", FEEDING.values(), ids=FEEDING.keys())
# All rules but those with products through convolutions. (An all-Linear net would learn nothing when frozen.)
ON_CONV = {i: r for i, r in {**RULES, **BETWEEN}.items() if CONV.has(r)}
on_conv = pytest.mark.parametrize("rule", ON_CONV.values(), ids=ON_CONV.keys())


def grads_of(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


LOSSES = {
    "mse": lambda y: F.mse_loss(y, torch.ones_like(y)),
    "cross-entropy": lambda y: F.cross_entropy(y, torch.arange(len(y)) % 4),
    "bce": lambda y: F.binary_cross_entropy_with_logits(y, torch.full_like(y, 0.3)),
    "custom": lambda y: (y.sin() * y.exp()).sum() + y[0, 1] ** 3,
    "one output": lambda y: y[:, 2].sum(),
    "margin": lambda y: F.multi_margin_loss(y, torch.arange(len(y)) % 4, reduction="sum"),
}


@feeding
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_any_loss(rule, loss, double):
    model, x = fresh(MLP, rule), MLP.x()
    found = gradients(model, MLP, x, loss)
    # DRTP sends nothing where no entry of the error is a target's.
    assert isinstance(rule, dfa.DRTP) or all(g.norm() > 0 for g in found.values())
    for scope in conversion_of(model).scopes:
        scope.node = reference_broadcast
    same(found, gradients(model, MLP, x, loss))


@pairs
def test_gradients_scale_with_the_loss_exactly(rule, net):
    model, x = fresh(net, rule), net.x()
    if isinstance(rule, dfa.Frozen):
        x.requires_grad_()
    one = gradients(model, net, x)
    eight = gradients(model, net, x, lambda y: 8 * squared(y))
    same({n: 8 * g for n, g in one.items()}, eight, rtol=0, atol=0)


@on_conv
def test_gradients_accumulate(rule, double):
    model = fresh(CONV, rule).eval()
    batches, apart = [CONV.x(n) for n in (5, 3)], []
    for x in batches:
        apart.append(gradients(model, CONV, x))
    model.zero_grad()
    for x in batches:
        squared(model(x)).backward()
    same({n: apart[0][n] + apart[1][n] for n in apart[0]}, grads_of(model))


@on_conv
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in order", "reversed"])
def test_two_forwards_before_a_backward(rule, order, double):
    model = fresh(CONV, rule).eval()
    batches = [CONV.x(5), CONV.x(4)]
    expected = [gradients(model, CONV, x) for x in batches]
    losses = [squared(model(x)) for x in batches]
    for i in order:
        model.zero_grad()
        losses[i].backward()
        same(grads_of(model), expected[i], rtol=1e-12)


@on_conv
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_short_last_batch(rule, size, double):
    """A batch's gradient is the sum of its samples', whatever its size."""
    model, x = fresh(CONV, rule).eval(), CONV.x(size)
    total = lambda y: y.square().sum()  # noqa: E731
    each = [gradients(model, CONV, x[i : i + 1], total) for i in range(size)]
    same(gradients(model, CONV, x, total), {n: sum(g[n] for g in each) for n in each[0]})


@on_conv
def test_autocast_to_bfloat16(rule):
    model, x = fresh(CONV, rule).eval(), CONV.x(8)
    exact = gradients(model, CONV, x)
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    squared(y.float()).backward()
    found = grads_of(model)
    assert found.keys() == exact.keys()
    for name, g in found.items():
        assert g.dtype == torch.float32
        if exact[name].norm() > 1e-6:
            assert F.cosine_similarity(g.flatten(), exact[name].flatten(), dim=0) > 0.95, name


@on_conv
def test_a_grad_scaler(rule):
    x, found = CONV.x(8), []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**12)):
        model = fresh(CONV, rule).eval()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        loss = squared(model(x))
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        found.append(model.state_dict())
    same(*found, rtol=0, atol=0)


@on_conv
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_fused_and_foreach_optimisers(rule, kind):
    x, found = CONV.x(8), []
    for options in ({}, {"foreach": True}, {"fused": True}):
        model = fresh(CONV, rule).eval()
        optimizer = kind([p for p in model.parameters() if p.requires_grad], lr=0.01, **options)
        for _ in range(3):
            optimizer.zero_grad()
            squared(model(x)).backward()
            optimizer.step()
        found.append(model.state_dict())
    # brSF draws other magnitudes for weights that differ in the last bit, as these optimisers' do.
    for other in found[1:] if getattr(rule, "magnitude", None) != "batch" else []:
        same(found[0], other, rtol=1e-4, atol=1e-5)
    start = fresh(CONV, rule).state_dict()
    kept = all(torch.equal(v, start[n]) for n, v in found[0].items() if ".feedback." in n)
    assert kept == (not isinstance(rule, dfa.KolenPollack))
    assert not torch.equal(found[0]["features.0.weight"], start["features.0.weight"])


# ---------------------------------------------------------------- torch.func


@on_conv
def test_functional_gradients(rule, double):
    model, x = fresh(CONV, rule).eval(), CONV.x(4)
    expected = gradients(model, CONV, x)
    learning = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    same(grad(lambda p: squared(functional_call(model, p, (x,))))(learning), expected)


@on_conv
def test_gradients_of_each_sample(rule, double):
    model, x = fresh(CONV, rule).eval(), CONV.x(4)
    total = lambda y: y.square().sum()  # noqa: E731
    each = [gradients(model, CONV, x[i : i + 1], total) for i in range(4)]
    learning = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def loss(p, sample):
        return total(functional_call(model, p, (sample[None],)))

    found = vmap(grad(loss), in_dims=(None, 0))(learning, x)
    same(found, {n: torch.stack([g[n] for g in each]) for n in each[0]})


@feeding
def test_gradients_of_samples_without_a_batch_dimension(rule, double):
    model, x = fresh(MLP, rule), MLP.x(4)
    total = lambda y: y.square().sum()  # noqa: E731
    learning = {n: p.detach() for n, p in model.named_parameters()}
    found = vmap(grad(lambda p, s: total(functional_call(model, p, (s,)))), in_dims=(None, 0))(learning, x)
    same({n: g.sum(0) for n, g in found.items()}, gradients(model, MLP, x, total))


# ---------------------------------------------------------------- torch.compile

# Third-party noise: torch's own, while it imports or lowers.
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def dynamo_reset():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@quiet
@rules
def test_compiled_after_an_eager_step_then_a_new_batch_then_backprop(rule):
    model, x, y = fresh(MLP, rule), MLP.x(6), MLP.x(3)
    for z in (x, y):
        z.requires_grad_()
    eager = [gradients(model, MLP, z) for z in (x, y)]
    with dfa.backprop(model):
        true = gradients(model, MLP, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for z, expected in ((x, eager[0]), (y, eager[1]), (x, eager[0])):
        assert same(named(gradients(compiled, MLP, z)), expected, rtol=1e-4, atol=1e-6) is None
    with dfa.backprop(model):
        same(named(gradients(compiled, MLP, x)), true, rtol=1e-4, atol=1e-6)
    same(named(gradients(compiled, MLP, x)), eager[0], rtol=1e-4, atol=1e-6)
    assert all(not scope.forward.cuts for scope in conversion_of(model).scopes)


@quiet
@pytest.mark.parametrize("name", ["conv", "tokens", "tied", "dict", "tuple", "record", "frozen-record", "module"])
@pytest.mark.parametrize("rule", [dfa.FA(), dfa.BDFA(storage="seeded")], ids=["FA", "BDFA"])
def test_compiled_from_cold(rule, name):
    net = NETS[name]
    model, x = fresh(net, rule).eval(), net.x(6)
    found = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"), net, x)
    same(named(found), gradients(model, net, x), rtol=1e-4, atol=1e-6)


@quiet
@pytest.mark.parametrize("rule", [dfa.FA(), dfa.CDFA(), dfa.BDFA(storage="seeded")], ids=["FA", "CDFA", "BDFA"])
def test_compiled_by_inductor(rule):
    model, x = fresh(MLP, rule), MLP.x(6)
    found = gradients(torch.compile(model, fullgraph=True), MLP, x)
    same(named(found), gradients(model, MLP, x), rtol=1e-3, atol=1e-5)


def named(found):
    return {n.removeprefix("_orig_mod."): g for n, g in found.items()}


@feeding
def test_training_lowers_the_loss(rule):
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))
    dfa.convert(model, rule)
    x = torch.randn(64, 8)
    labels = x[:, :3].argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
