"""Language models, and block-level direct feedback on a transformer."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchdfa as dfa
from cases import away, same
from torchdfa.convert import conversion_of
from torchdfa.functional import reference_broadcast
from torchdfa.language import GPT, RecurrentLM

TOKENS = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(0))


def gpt(**options):
    torch.manual_seed(1)
    return GPT(layers=3, heads=2, width=12, context=8, **options).build(11)


def loss_of(net, x=TOKENS):
    y = net(x)
    y = y[0] if isinstance(y, tuple) else y
    return F.cross_entropy(y[:, :-1].flatten(0, 1), x[:, 1:].flatten())


def gradients(net):
    net.zero_grad()
    loss_of(net).backward()
    return {n: p.grad.clone() for n, p in net.named_parameters()}


def test_gpt_sees_no_later_token():
    net = gpt()
    other = TOKENS.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 11
    torch.testing.assert_close(net(TOKENS)[:, :5], net(other)[:, :5])
    assert away(net(TOKENS)[:, 5:], net(other)[:, 5:]) > 0.01
    assert net(TOKENS[:, :3]).shape == (3, 3, 11)
    with pytest.raises(ValueError, match="width=10, expected a multiple of heads=4"):
        GPT(width=10)
    with pytest.raises(ValueError, match="the input has 9 tokens, expected at most context=8"):
        net(TOKENS.new_zeros(1, 9))


@pytest.mark.parametrize("name, value", [("layers", 0), ("width", 0), ("dropout", 1.0), ("heads", 0), ("context", 0)])
def test_wrong_sizes_are_refused(name, value):
    for kind in (GPT, RecurrentLM) if hasattr(RecurrentLM(), name) else (GPT,):
        with pytest.raises(ValueError, match=f"^{kind.__name__}: {name}={value}, expected "):
            kind(**{name: value})


def test_an_unknown_kind_of_layer_is_refused():
    with pytest.raises(ValueError, match=r"^RecurrentLM: kind='foo', expected one of .*lstm.*gru.*rnn"):
        RecurrentLM(kind="foo")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_recurrent_models_hand_their_state_on(kind):
    net = RecurrentLM(kind=kind, width=6).build(11)
    whole, _ = net(TOKENS)
    first, state = net(TOKENS[:, :3])
    second, _ = net(TOKENS[:, 3:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)


def test_block_level_dfa_by_hand(double):
    """Every block back-propagates the error ``e @ B`` that enters at its output; the last also hands on the head's."""
    net = gpt()
    dfa.convert(net, {"blocks.*": dfa.HybridDFA(direct="between"), "head": dfa.DFA()}, example=TOKENS[:1])
    assert [n for n, m in net.named_modules() if "feedback" in m._modules] == [
        "blocks.0",
        "blocks.1",
        "blocks.2",
        "head",
    ]
    found = gradients(net)

    plain = gpt()
    inputs = [plain.embedding(TOKENS) + plain.position]
    with torch.no_grad():
        for block in plain.blocks:
            inputs.append(block(inputs[-1].detach()))
        normed = plain.norm(inputs[3])
        logits = plain.head(normed)
        e = torch.zeros_like(logits)
        e[:, :-1] = (logits.softmax(-1)[:, :-1] - F.one_hot(TOKENS[:, 1:], 11)) / 21
    for i, block in enumerate(plain.blocks):
        if i < 2:
            error = e @ net.blocks[i + 1].feedback.dense()
        else:
            last = inputs[3].detach().requires_grad_()
            (error,) = torch.autograd.grad(plain.norm(last), last, e @ net.head.feedback.dense())
        block(inputs[i].detach()).backward(error)
    plain.norm(inputs[3].detach()).backward(e @ net.head.feedback.dense())
    plain.head(normed).backward(e)
    inputs[0].backward(e @ net.blocks[0].feedback.dense())
    same(found, {n: p.grad for n, p in plain.named_parameters()})


RULES = {
    "between": dfa.HybridDFA(direct="between"),
    "between-binary": dfa.HybridDFA(direct="between", binary=True, density=0.5),
    "inside": dfa.HybridDFA(),
    "module": dfa.ModuleDFA(density=0.5),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_rules_on_a_transformer(rule, double):
    net = dfa.convert(gpt(), rule, example=TOKENS[:1])
    found = gradients(net)
    assert all(g.norm() > 0 for g in found.values())
    with dfa.backprop(net):
        true = gradients(net)
    same(true, gradients(gpt()))
    assert away(found["blocks.0.qkv.weight"], true["blocks.0.qkv.weight"]) > 0.1
    same({"head": found["head.weight"]}, {"head": true["head.weight"]})
    for scope in conversion_of(net).scopes:
        scope.node = reference_broadcast
    same(found, gradients(net))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_compiled(rule):
    torch._dynamo.reset()
    net = dfa.convert(gpt(), rule, example=TOKENS[:1])
    expected = gradients(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    found = {n.removeprefix("_orig_mod."): g for n, g in gradients(compiled).items()}
    same(found, expected, rtol=1e-4, atol=1e-6)
    torch._dynamo.reset()


def test_the_layers_of_a_block_get_the_blocks_error():
    net = dfa.convert(gpt(), dfa.HybridDFA(modules="blocks.?"), example=TOKENS[:1])
    cut = [n for n, m in net.named_modules() if "feedback" in m._modules]
    assert cut == [f"blocks.{i}.{n}" for i in range(3) for n in ("mix", "up", "down")]
    assert net.blocks[0].down.feedback.dense().shape == (12, 48)


@pytest.mark.parametrize("rule", [RULES["between"], RULES["inside"], dfa.DFA(), dfa.BDFA()], ids=repr)
def test_training_lowers_the_loss(rule):
    net = dfa.convert(gpt(), rule, example=TOKENS[:1])
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    first = loss_of(net).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()
    assert loss_of(net).item() < 0.6 * first


def test_torchs_own_transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    net = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 3))
    x = torch.randn(2, 5, 4)
    dfa.convert(net, dfa.HybridDFA(direct="between"), example=x)
    assert [n for n, m in net.named_modules() if "feedback" in m._modules] == ["1.layers.0", "1.layers.1", "2"]
    net(x).square().sum().backward()
    assert all(p.grad.norm() > 0 for p in net.parameters())
