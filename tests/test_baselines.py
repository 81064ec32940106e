"""Learned feedback, sign-symmetry and DRTP: against formulas, and that the learned ones learn what they should."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchdfa as dfa
from cases import NETS, away, fresh, gradients


def conv_net():
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(24, 8), nn.Tanh(), nn.Linear(8, 3)),
    )


def batch(n=4):
    return torch.randn(n, 2, 6, 6), torch.arange(n) % 3


LEARNING = [dfa.KolenPollack(), dfa.KolenPollack(direct=True), dfa.WeightMirror(), dfa.WeightMirror(direct=True)]
SIGNS = [dfa.SignSymmetry(magnitude=m) for m in ("uniform", "fixed", "batch")]


@pytest.mark.parametrize("rule", [*LEARNING, *SIGNS, dfa.DRTP()], ids=repr)
def test_gradients_are_not_those_of_back_propagation(rule):
    model, (x, y) = conv_net(), batch()
    dfa.convert(model, rule, example=x)
    F.cross_entropy(model(x), y).backward()
    found = [p.grad.clone() for p in (model[0].weight, model[2].weight, model[5].weight)]
    model.zero_grad()
    with dfa.backprop(model):
        F.cross_entropy(model(x), y).backward()
    for a, b in zip(found, (model[0].weight.grad, model[2].weight.grad, model[5].weight.grad), strict=True):
        assert away(a, b) > 0.1


# ---------------------------------------------------------------- Kolen-Pollack


def test_kolen_pollack_gives_feedback_the_gradient_of_the_weights(double):
    model, (x, y) = conv_net(), batch()
    dfa.convert(model, dfa.KolenPollack())
    F.cross_entropy(model(x), y).backward()
    for i in (2, 5, 7):
        torch.testing.assert_close(model[i].feedback.weight.grad, model[i].weight.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("geometry", [{"padding": 2, "padding_mode": "circular"}, {"padding": "same", "dilation": 2}])
def test_kolen_pollack_in_other_convolutions(geometry, double):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3, **geometry))
    dfa.convert(model, dfa.KolenPollack())
    model(torch.randn(2, 2, 8, 8)).square().sum().backward()
    torch.testing.assert_close(model[2].feedback.weight.grad, model[2].weight.grad, rtol=1e-10, atol=1e-12)


def test_weight_decay_makes_feedback_and_weights_equal():
    model, (x, y) = conv_net(), batch(32)
    dfa.convert(model, dfa.KolenPollack())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5, weight_decay=0.05)
    apart = lambda i: (model[i].weight - model[i].feedback.weight).norm().item()  # noqa: E731
    before = [apart(i) for i in (2, 5, 7)]
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    for i, start in zip((2, 5, 7), before, strict=True):
        # (1 - lr · decay / (1 - momentum)) a step, but for the momentum's run-up
        assert apart(i) == pytest.approx(start * 0.99**100, rel=0.02)


def test_direct_kolen_pollack_learns_the_correlation_of_error_and_activation(double):
    net = NETS["mlp"]
    model, x = fresh(net, dfa.KolenPollack(direct=True)), net.x()
    inputs, outputs = {}, {}
    model.net[2].register_forward_pre_hook(lambda _, a: inputs.update(h=a[0]))
    model.net[4].register_forward_hook(lambda _, a, y: (y.retain_grad(), outputs.update(y=y))[0])
    found = gradients(model, net, x)
    expected = outputs["y"].grad.T @ inputs["h"]
    torch.testing.assert_close(found["net.2.feedback.weight"], expected, rtol=1e-10, atol=1e-14)


def test_a_frozen_layer_has_frozen_feedback():
    model = conv_net()
    model[5].requires_grad_(False)
    dfa.convert(model, dfa.KolenPollack())
    assert not model[5].feedback.weight.requires_grad and model[7].feedback.weight.requires_grad


def test_parameters_of_feedback_have_no_angle():
    model, (x, y) = conv_net(), batch()
    names = [n for n, _ in model.named_parameters()]
    assert list(dfa.alignment(dfa.convert(model, dfa.KolenPollack()), F.cross_entropy, x, y)) == names


# ---------------------------------------------------------------- the weight mirror


def angle(a, b):
    return F.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1).acos().rad2deg().item()


def test_the_mirror_finds_the_weights():
    model, (x, _) = conv_net(), batch(64)
    dfa.convert(model, dfa.WeightMirror())
    before = {n: p.clone() for n, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    random = torch.get_rng_state()
    for _ in range(150):
        dfa.mirror(model, x, rate=0.05, generator=generator)
    assert torch.equal(random, torch.get_rng_state())
    for i in (2, 5, 7):
        weight, feedback = model[i].weight.detach(), model[i].feedback.weight
        assert angle(weight, feedback) < 8
        assert (feedback.norm() / weight.norm()).item() == pytest.approx(1, abs=0.05)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())


def test_the_direct_mirror_finds_the_mean_jacobian(double):
    model, (x, _) = conv_net(), batch(64)
    dfa.convert(model, dfa.WeightMirror(direct=True), example=x[:1])
    generator = torch.Generator().manual_seed(1)
    for _ in range(400):
        dfa.mirror(model, x, rate=0.02, noise=0.02, generator=generator)
    with dfa.backprop(model):
        h = model[:5](x).detach()
        jacobian = torch.func.vmap(torch.func.jacrev(lambda v: model[7](model[6](model[5](v)))))(h).mean(0).detach()
    assert angle(jacobian, model[5].feedback.weight) < 12
    assert angle(model[7].weight.detach(), model[7].feedback.weight) < 8


def test_mirroring_is_repeatable_and_disturbs_nothing():
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3)).train()
        dfa.convert(model, dfa.WeightMirror())
        dfa.mirror(model, torch.randn(8, 4))
        found.append(model[3].feedback.weight.clone())
        assert model.training and model[1].num_batches_tracked == 0
    assert torch.equal(*found)


def test_the_mirror_refuses_by_name():
    model = conv_net()
    with pytest.raises(ValueError, match="no layer of the model has the rule"):
        dfa.mirror(dfa.convert(model, dfa.FA()), batch()[0])
    with pytest.raises(ValueError, match=r"rate=0.*expected"):
        dfa.mirror(dfa.convert(dfa.revert(model), dfa.WeightMirror()), batch()[0], rate=0)


# ---------------------------------------------------------------- sign-symmetry


@pytest.mark.parametrize("rule", SIGNS, ids=repr)
def test_signs_are_those_of_the_present_weights(rule, double):
    model, x = conv_net(), batch()[0]
    dfa.convert(model, rule)
    sizes = {}
    for step in range(2):
        model.zero_grad()
        e = torch.randn(4, 3)
        inner, handles = {}, []
        for i, m in enumerate(model):
            keep = lambda _, a, o, i=i, inner=inner: (o.retain_grad(), inner.update({i: o}))[0]  # noqa: E731
            handles.append(m.register_forward_hook(keep))
        model(x).backward(e)
        [h.remove() for h in handles]
        b = model[7].feedback.dense()
        assert torch.equal(b.sign(), model[7].weight.sign())
        torch.testing.assert_close(inner[6].grad, e @ b, rtol=1e-12, atol=1e-14)
        kernel = model[2].feedback.dense()
        assert torch.equal(kernel.sign(), model[2].weight.sign())
        expected = torch.nn.grad.conv2d_input((4, 4, 6, 6), kernel, inner[2].grad, stride=2, groups=2)
        torch.testing.assert_close(inner[1].grad, expected, rtol=1e-12, atol=1e-14)
        sizes[step] = b.abs()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
    same = torch.equal(*sizes.values())
    assert same == (rule.magnitude != "batch")
    assert (sizes[0].std() < 1e-12) == (rule.magnitude == "uniform")


def test_magnitudes_have_the_mean_of_the_scale():
    for rule in SIGNS:
        wide = nn.Sequential(nn.Linear(4, 200), nn.ReLU(), nn.Linear(200, 100))
        b = dfa.convert(wide, rule)[2].feedback.dense().abs()
        assert b.mean().item() == pytest.approx(wide[2].weight.abs().mean().item(), rel=0.02)
        if rule.magnitude != "uniform":
            assert (b / b.mean()).std().item() == pytest.approx(3**-0.5, rel=0.03)  # of U(0, 2)


def test_wrong_fields():
    with pytest.raises(ValueError, match="'uniform', 'fixed', 'batch'"):
        dfa.SignSymmetry(magnitude="random")
    with pytest.raises(ValueError, match="init='product'"):
        dfa.SignSymmetry(init="product")
    with pytest.raises(ValueError, match="'softmax', 'sigmoid'"):
        dfa.DRTP(output="linear")


# ---------------------------------------------------------------- DRTP


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_drtp_sends_the_target(reduction, double):
    model, x, y = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)), torch.randn(6, 5), torch.arange(6) % 4
    dfa.convert(model, dfa.DRTP())
    F.cross_entropy(model(x), y, reduction=reduction).backward()
    with torch.no_grad():
        z = model[0](x)
        target = F.one_hot(y, 4).to(x) / (6 if reduction == "mean" else 1)
        delta = -(target @ model[2].feedback.dense()) * (1 - z.tanh() ** 2)
    torch.testing.assert_close(model[0].weight.grad, delta.T @ x, rtol=1e-9, atol=1e-12)


def test_drtp_with_several_targets_a_sample(double):
    model, x = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)), torch.randn(6, 5)
    target = (torch.rand(6, 4) > 0.5).to(x)
    dfa.convert(model, dfa.DRTP(output="sigmoid"))
    F.binary_cross_entropy_with_logits(model(x), target).backward()
    delta = -(target / 24 @ model[2].feedback.dense()) * (1 - model[0](x).detach().tanh() ** 2)
    torch.testing.assert_close(model[0].weight.grad, delta.T @ x, rtol=1e-9, atol=1e-12)


def test_drtp_of_a_sample_that_is_surely_right_is_finite():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    nn.init.constant_(model[2].bias, 0)
    model[2].bias.data[0] = 1e4
    dfa.convert(model, dfa.DRTP())
    F.cross_entropy(model(torch.randn(3, 2)), torch.zeros(3, dtype=torch.long)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_magnitudes_are_drawn_anew_for_changes_that_cancel():
    model = dfa.convert(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), dfa.SignSymmetry(magnitude="batch"))
    weight, before = model[2].weight, model[2].feedback.dense().abs()
    assert torch.equal(before, model[2].feedback.dense().abs())
    with torch.no_grad():
        weight[0, 0] += 0.25
        weight[0, 1] -= 0.25
    assert not torch.equal(before, model[2].feedback.dense().abs())


def test_learned_kernels_have_a_matrix():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    dfa.convert(model, dfa.KolenPollack(direct=False))
    assert model[2].feedback.matrix((4, 4)).shape == (16, 48)


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_a_sure_target_is_sent_too(output):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    dfa.convert(model, dfa.DRTP(output=output))
    model[2].weight.data.zero_()
    x, targets = torch.randn(9, 4), torch.zeros(9, 3)
    targets[:, 0] = 1
    loss = nn.functional.cross_entropy if output == "softmax" else nn.functional.binary_cross_entropy_with_logits
    found = []
    for sure in (2.0, 15.0, 17.0, 40.0):
        model[2].bias.data[:] = torch.tensor([sure, -1.0, -2.0])
        model.zero_grad()
        loss(model(x), targets).backward()
        found.append(model[0].weight.grad)
    for grad in found[1:]:
        torch.testing.assert_close(grad, found[0], rtol=1e-4, atol=0)
