"""The autograd node against its plain twin, and the work that it saves."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import torchdfa as dfa
from cases import MLP, NETS, RULES, away, fresh, gradients, pairs, rules, same
from torchdfa.convert import conversion_of
from torchdfa.feedback import DenseFeedback
from torchdfa.functional import broadcast, reference_broadcast

FEEDING = {i: r for i, r in RULES.items() if not isinstance(r, (dfa.BP, dfa.Frozen))}
FULL = {i: r for i, r in FEEDING.items() if i.startswith(("FA", "DFA", "BDFA"))}


@pairs
def test_gradients_are_those_of_the_plain_twin(rule, net, double):
    x, model = net.x(), fresh(net, rule)
    if isinstance(rule, dfa.Frozen):
        x.requires_grad_()
    found = gradients(model, net, x)
    for scope in conversion_of(model).scopes:
        scope.node = reference_broadcast
    same(found, gradients(model, net, x))


@pytest.mark.parametrize(
    "rule, net",
    [pytest.param(r, n, id=f"{j}-{i}") for i, r in FULL.items() for j, n in NETS.items() if n.has(r)],
)
def test_hidden_gradients_are_not_those_of_back_propagation(rule, net, double):
    x, model = net.x(), fresh(net, rule)
    if rule.init == "product":  # FA starts at B = W, DFA at the product: they part when the weights move
        for p in model.parameters():
            p.data += 0.5 * torch.randn(p.shape)
    found = gradients(model, net, x)
    with dfa.backprop(model):
        true = gradients(model, net, x)
    assert found.keys() == true.keys()
    hidden = [n for n in found if n.endswith("weight") and not n.startswith(net.last) and true[n].norm() > 1e-9]
    cut_off = [n for n in hidden if away(found[n], true[n]) <= 0.1]
    assert not cut_off
    for kind in ("weight", "bias"):
        torch.testing.assert_close(found[f"{net.last}.{kind}"], true[f"{net.last}.{kind}"], rtol=1e-12, atol=1e-14)


def test_no_chain_product_runs():
    n, a, b, c, k = 32, 64, 256, 256, 10
    x = torch.randn(n, a)

    def flops(rule):
        model = nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c), nn.ReLU(), nn.Linear(c, k))
        loss = dfa.convert(model, rule)(x).square().sum()
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        return counter.get_total_flops()

    updates = 2 * n * (a * b + b * c + c * k)
    through_weights = 2 * n * (b * c + c * k)
    direct = 2 * n * k * (b + c)
    assert flops(dfa.BP()) == updates + through_weights
    assert flops(dfa.FA()) == updates + through_weights
    for rule in (dfa.DFA(), dfa.BDFA(), dfa.BDFA(storage="seeded")):
        assert flops(rule) == updates + direct
    assert direct < through_weights


@rules
def test_one_pass_reaches_every_cut_and_none_is_kept(rule):
    model = fresh(NETS["mlp"], rule)
    x = torch.randn(3, 5, requires_grad=True)
    model(x).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert x.grad is not None
    assert all(not scope.forward.cuts and not scope.forward.recording for scope in conversion_of(model).scopes)


def test_the_node_is_the_identity_forward():
    y, h = torch.randn(4, 3, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    served = broadcast(y, [DenseFeedback(torch.randn(3, 6))], [h])
    assert torch.equal(served, y)
    assert served.grad_fn is not None


def test_the_node_sends_the_error_through_the_feedback():
    y, h = torch.randn(4, 3, requires_grad=True), torch.randn(4, 2, 3, requires_grad=True)
    b, e = torch.randn(3, 6), torch.randn(4, 3)
    broadcast(y, [DenseFeedback(b)], [h]).backward(e)
    assert torch.equal(y.grad, e)
    torch.testing.assert_close(h.grad, (e @ b).view(4, 2, 3))


def test_the_error_takes_the_type_of_the_activation():
    y = torch.randn(4, 3, dtype=torch.bfloat16, requires_grad=True)
    h = torch.randn(4, 6, requires_grad=True)
    broadcast(y, [DenseFeedback(torch.randn(3, 6))], [h]).backward(torch.ones_like(y))
    assert h.grad.dtype == torch.float32


def test_a_shape_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(5, 6\)"):
        broadcast(torch.randn(4, 3), [DenseFeedback(torch.randn(3, 6))], [torch.randn(5, 6)])


@pytest.mark.parametrize("rule", FULL.values(), ids=FULL.keys())
def test_what_follows_may_work_in_place(rule):
    def build(inplace):
        torch.manual_seed(0)
        layers = [nn.Linear(5, 6), nn.ReLU(inplace), nn.Linear(6, 6), nn.ReLU(inplace), nn.Linear(6, 4)]
        return dfa.convert(nn.Sequential(*layers), rule)

    found, x = [], torch.randn(3, 5)
    for model, half in ((build(False), lambda y: y / 2), (build(True), lambda y: y.div_(2))):
        half(model(x)).square().sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters()})
    same(*found)


def test_a_saved_output_that_is_changed_in_place_is_noticed():
    model = dfa.convert(nn.Sequential(MLP(), nn.Linear(4, 4), nn.Tanh()), {"*": dfa.DFA()}, output="2")
    loss = model(torch.randn(3, 5)).mul_(2).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
