"""Recurrent layers under module-wise rules: values as before, gradients those of the formulas."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import torchdfa as dfa
from cases import away, fingerprint, same
from torchdfa.convert import conversion_of
from torchdfa.feedback.time import TimeFeedback
from torchdfa.functional import reference_broadcast
from torchdfa.functional.cut_runs import cut_runs
from torchdfa.functional.recurrent import weights_of
from torchdfa.ops import dense

KINDS = {"rnn": nn.RNN, "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k), "lstm": nn.LSTM, "gru": nn.GRU}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
RULES = {
    "hybrid": dfa.HybridDFA(),
    "hybrid-chunks": dfa.HybridDFA(chunk=3, decay=0.5, density=0.5),
    "module": dfa.ModuleDFA(decay=0.7),
    "module-chunks": dfa.ModuleDFA(chunk=2, binary=True),
    "between": dfa.HybridDFA(direct="between", source="module", chunk=3, init="product"),
}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


class Net(nn.Module):
    """A Linear layer, a recurrent one, and a Linear one on every step; and on the last states."""

    def __init__(self, make, layers=1, **options):
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.mix = make(4, 6, layers, **options)
        self.head = nn.Linear(12 if options.get("bidirectional") else 6, 5)

    def forward(self, x, state=None):
        y, last = self.mix(self.stem(x).tanh(), state)
        last = last[0] + last[1] if isinstance(last, tuple) else last
        return self.head(y) + 0 * last.mean(), last


def step(net, x, e, state=None):
    net.zero_grad()
    y, last = net(x, state)
    ((y * e).sum() + last.square().sum()).backward()
    return y.detach(), last.detach(), {n: p.grad.clone() for n, p in net.named_parameters()}


@kinds
@rules
@pytest.mark.parametrize(
    ("layers", "options"),
    [
        (1, {}),
        (2, {"batch_first": True}),
        (2, {"bidirectional": True, "bias": False}),
        (3, {"dropout": 0.3, "bidirectional": True}),
    ],
)
def test_values_stay_and_all_learn(kind, rule, layers, options, double):
    torch.manual_seed(1)
    net = Net(kind, layers, **options)
    x, e = torch.randn(2, 7, 3), torch.randn(2, 7, 5)
    if not options.get("batch_first"):
        x, e = x.transpose(0, 1), e.transpose(0, 1)
    torch.manual_seed(2)
    y, last, true = step(net, x, e)
    net.zero_grad()
    before = fingerprint(net)
    dfa.convert(net, rule)
    torch.manual_seed(2)
    if options.get("dropout"):  # drawn for other tensors than torch's kernel draws it
        net.eval()
        assert net(x)[0].shape == y.shape
        dfa.revert(net)
        y, last, true = step(net, x, e)
        dfa.convert(net, rule)
    found = step(net, x, e)
    torch.testing.assert_close(found[0], y)
    torch.testing.assert_close(found[1], last)
    assert all(g.norm() > 0 for g in found[2].values())
    assert away(found[2]["mix.weight_hh_l0"], true["mix.weight_hh_l0"]) > 0.01
    if layers == 1:
        same({n: g for n, g in found[2].items() if "head" in n}, {n: g for n, g in true.items() if "head" in n})
    with dfa.backprop(net):
        same(step(net, x, e)[2], true)
    with torch.no_grad():
        torch.testing.assert_close(net(x)[0], y)
    dfa.revert(net).zero_grad()
    if not options.get("dropout"):
        assert fingerprint(net) == before


def oracle(net, rule, x, state):
    """Run a one-layer network step by step in plain autograd: ``y + hBᵀ - stop(hBᵀ)`` for every state that is cut."""
    w = weights_of(net.mix, "_l0")
    feedback = net.mix.feedback
    time, inward = feedback["time_l0"], feedback["input_l0"] if "input_l0" in feedback else None
    b = time.dense()
    h, c = state
    given = net.stem(x).tanh()
    outputs = []
    length = rule.chunk or len(x)
    for begin in range(0, len(x), length):
        states = []
        for t in range(begin, min(begin + length, len(x))):
            first = t == begin
            cut = {"inner": not first, "first": first, "all": True}[time.steps]
            entering = h.detach() if cut else h
            states.append(h if cut else None)
            i = given[t] if inward is None else given[t].detach()
            gates = F.linear(i, w.inward, w.inward_bias), F.linear(entering, w.across, w.across_bias)
            if w.kind in ("tanh", "relu"):
                h = getattr(torch, w.kind)(sum(gates))
            elif w.kind == "lstm":
                g = sum(gates).chunk(4, -1)
                c = g[1].sigmoid() * c + g[0].sigmoid() * g[2].tanh()
                h = g[3].sigmoid() * c.tanh()
            else:
                (a, d), (p, q), (m, n) = zip(*(s.chunk(3, -1) for s in gates), strict=True)
                r, z = (a + d).sigmoid(), (p + q).sigmoid()
                stay = h if rule.within else entering  # torch's own kernel takes one state for both ways
                h = (1 - z) * (m + r * n).tanh() + z * stay
            plain = h
            for lag, s in enumerate(reversed(states)):
                if s is not None:
                    through = rule.decay**lag * s @ b.T
                    h = h + (through - through.detach())
            if inward is not None:
                through = given[t] @ inward.dense().T
                h = h + (through - through.detach())
            if rule.within:
                outputs.append(h)
                # Inside a module, the next state's receiver is the output before its errors are sent back.
                if t + 1 < min(begin + length, len(x)):
                    h = plain
            else:
                outputs.append(h)
                h = plain if t + 1 < min(begin + length, len(x)) else h
    return net.head(torch.stack(outputs)), h


@kinds
@rules
def test_gradients_are_those_of_plain_autograd_step_by_step(kind, rule, double):
    torch.manual_seed(3)
    net = Net(kind)
    dfa.convert(net, rule)
    x, e = torch.randn(7, 2, 3), torch.randn(7, 2, 5)
    state = torch.randn(2, 2, 6, requires_grad=True)
    hx = (state[:1], state[1:]) if kind is nn.LSTM else state[:1]
    y, _ = net(x, hx)
    (y * e).sum().backward()
    found = {n: p.grad.clone() for n, p in net.named_parameters()} | {"state": state.grad}
    net.zero_grad()
    state.grad = None
    z, _ = oracle(net, rule, x, (state[0], state[1]))
    torch.testing.assert_close(y, z)
    (z * e).sum().backward()
    same(found, {n: p.grad for n, p in net.named_parameters()} | {"state": state.grad})


@kinds
def test_large_float32_layers_learn_what_small_ones_do(kind):
    """Where oneDNN takes the products, with the recurrent weights in an order of its own."""
    torch.manual_seed(5)
    net = nn.Sequential()
    net.add_module("mix", kind(128, 160, 2))
    dfa.convert(net, dfa.HybridDFA(chunk=3))
    x, e = torch.randn(7, 96, 128), torch.randn(7, 96, 160)
    assert dense.faster(x[0], net.mix.weight_hh_l0)
    found = {}
    for dtype in (torch.float32, torch.float64):
        net.to(dtype).zero_grad()
        y, _ = net.mix(x.to(dtype))
        (y * e).sum().backward()
        found[dtype] = {n: p.grad.double() for n, p in net.named_parameters()} | {"y": y.detach().double()}
    same(found[torch.float32], found[torch.float64], rtol=1e-3, atol=1e-3)


def test_outputs_may_be_changed_in_place():
    net = nn.LSTM(3, 4)
    dfa.convert(nn.Sequential(net), dfa.HybridDFA())
    x, gradients = torch.randn(5, 2, 3), []
    for double in (lambda t: t.mul_(2), lambda t: 2 * t):
        net.zero_grad()
        y, (h, c) = net(x)
        sum(double(t).sum() for t in (y, h, c)).backward()
        gradients.append({n: p.grad.clone() for n, p in net.named_parameters()})
    same(*gradients)


def test_a_small_rnn_by_hand(double):
    """``δ_t = (e_t + B Σ_{t' > t} λ^(t' - t - 1) e_t') ⊙ f′`` within a module of steps; written out in NumPy."""
    net = nn.RNN(2, 3)
    decay = 0.6
    dfa.convert(nn.Sequential(net), dfa.HybridDFA(decay=decay))
    x, e = torch.randn(5, 2, 2), torch.randn(5, 2, 3)
    y, _ = net(x)
    (y * e).sum().backward()
    b = net.feedback["time_l0"].dense().numpy()
    y, e, x = y.detach().numpy(), e.numpy(), x.numpy()
    delta = np.zeros_like(e)
    for t in range(5):
        later = sum((decay ** (s - t - 1) * e[s] for s in range(t + 1, 5)), np.zeros((2, 3)))
        delta[t] = (e[t] + later @ b) * (1 - y[t] ** 2)
    before = np.concatenate([np.zeros((1, 2, 3)), y[:-1]])
    np.testing.assert_allclose(net.weight_hh_l0.grad, np.einsum("tnk,tnh->kh", delta, before), rtol=1e-10)
    np.testing.assert_allclose(net.weight_ih_l0.grad, np.einsum("tnk,tnh->kh", delta, x), rtol=1e-10)
    np.testing.assert_allclose(net.bias_hh_l0.grad, delta.sum((0, 1)), rtol=1e-10)


def test_chunks_by_hand(double):
    """Between chunks the error passes the live weights, and then counts as the last step's of its chunk."""
    net = nn.RNN(2, 3)
    dfa.convert(nn.Sequential(net), dfa.HybridDFA(chunk=2))
    x, e = torch.randn(4, 1, 2), torch.randn(4, 1, 3)
    y, _ = net(x)
    (y * e).sum().backward()
    b, w = net.feedback["time_l0"].dense(), net.weight_hh_l0.detach()
    slope = 1 - y.detach() ** 2
    d3 = e[3] * slope[3]
    d2 = (e[2] + e[3] @ b) * slope[2]
    end = e[1] + d2 @ w
    d1 = end * slope[1]
    d0 = (e[0] + end @ b) * slope[0]
    torch.testing.assert_close(net.bias_hh_l0.grad, (d0 + d1 + d2 + d3)[0], rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------- cells


CELLS = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}


class Loop(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.stem, self.cell, self.head = nn.Linear(3, 4), make(4, 6), nn.Linear(6, 5)

    def forward(self, x):
        state, outputs = None, []
        for now in self.stem(x).tanh():
            state = self.cell(now, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return self.head(torch.stack(outputs))


@pytest.mark.parametrize("make", CELLS.values(), ids=CELLS.keys())
def test_a_cell_in_a_loop_is_a_layer_in_chunks_of_one_step(make, double):
    loop, net = Loop(make), Net({nn.RNNCell: nn.RNN, nn.LSTMCell: nn.LSTM, nn.GRUCell: nn.GRU}[make])
    names = {n: n.replace("cell.", "mix.") + ("_l0" if "cell" in n else "") for n, _ in loop.named_parameters()}
    net.load_state_dict({names[n]: v for n, v in loop.state_dict().items()})
    dfa.convert(loop, {"cell": dfa.ModuleDFA(density=0.5)}, example=torch.zeros(2, 1, 3))
    dfa.convert(net, {"mix": dfa.ModuleDFA(density=0.5, chunk=1)})
    for name in ("time", "input"):
        ours, theirs = (m.feedback[f"{name}{s}"] for m, s in ((loop.cell, ""), (net.mix, "_l0")))
        theirs.load_state_dict(ours.state_dict())
    x, e = torch.randn(5, 2, 3), torch.randn(5, 2, 5)
    y = loop(x)
    z, _ = net(x)
    torch.testing.assert_close(y, z)
    (y * e).sum().backward()
    (z * e).sum().backward()
    same({names[n]: p.grad for n, p in loop.named_parameters()}, {n: p.grad for n, p in net.named_parameters()})
    assert loop.cell(torch.randn(4)) is not None  # without a batch


def test_a_cell_alone_has_no_inside():
    with pytest.raises(ValueError, match="cuts nothing in Loop"):
        dfa.convert(Loop(nn.GRUCell), {"cell": dfa.HybridDFA()}, example=torch.zeros(2, 1, 3))


# ---------------------------------------------------------------- packed sequences, forms of input


@kinds
@rules
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_sequences_are_their_sequences_one_by_one(kind, rule, bidirectional, double):
    net = nn.Sequential()
    net.add_module("mix", kind(3, 4, 2, bidirectional=bidirectional))
    sequences = [torch.randn(n, 3) for n in (3, 6, 1, 5)]
    es = [torch.randn(len(s), 8 if bidirectional else 4) for s in sequences]

    def gradients(pack):
        net.zero_grad()
        if pack:
            y, last = net.mix(pack_sequence(sequences, enforce_sorted=False))
            y, lengths = pad_packed_sequence(y)
            assert lengths.tolist() == [3, 6, 1, 5]
            y = [y[:n, i] for i, n in enumerate(lengths)]
        else:
            y, last = zip(*(net.mix(s.unsqueeze(1)) for s in sequences), strict=True)
            y = [v.squeeze(1) for v in y]
            last = tuple(torch.cat(s, 1) for s in zip(*last, strict=True)) if kind is nn.LSTM else torch.cat(last, 1)
        ends = torch.cat(last) if kind is nn.LSTM else last
        (sum((v * e).sum() for v, e in zip(y, es, strict=True)) + ends.square().sum()).backward()
        return [v.detach() for v in y], ends.detach(), {n: p.grad.clone() for n, p in net.named_parameters()}

    plain = gradients(True)
    dfa.convert(net, rule)
    found, apart = gradients(True), gradients(False)
    for (y, ends, _), (z, others, _) in ((found, plain), (found, apart)):
        for a, b in zip(y, z, strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(ends, others)
    same(found[2], apart[2])


@rules
def test_forms_of_input(rule, double):
    net = nn.LSTM(3, 4, batch_first=True)
    x = torch.randn(2, 5, 3)
    state = (torch.randn(1, 2, 4), torch.randn(1, 2, 4))
    plain = net(x, state), net(x[0], (state[0][:, 0], state[1][:, 0]))
    packed = net(pack_padded_sequence(x, [5, 2], batch_first=True))
    dfa.convert(net, rule, output=0, example=x)
    found = net(x, state), net(x[0], (state[0][:, 0], state[1][:, 0]))
    for (y, (h, c)), (z, (g, d)) in zip(found, plain, strict=True):
        for a, b in ((y, z), (h, g), (c, d)):
            torch.testing.assert_close(a, b)
    again = net(pack_padded_sequence(x, [5, 2], batch_first=True))
    torch.testing.assert_close(again[0].data, packed[0].data)
    assert again[0].sorted_indices is None and torch.equal(again[0].batch_sizes, packed[0].batch_sizes)


# ---------------------------------------------------------------- what is made, copies, refusals


def test_feedback_of_two_layers():
    net = dfa.convert(Net(nn.GRU, 2, bidirectional=True), dfa.ModuleDFA(chunk=3, density=0.5, binary=True))
    made = net.mix.feedback
    assert sorted(made) == sorted(f"{k}_l{i}{d}" for k in ("time", "input") for i in (0, 1) for d in ("", "_reverse"))
    assert made["input_l1"].dense().shape == (6, 12) and made["time_l0_reverse"].dense().shape == (6, 6)
    assert (made["time_l0"].dense() != 0).float().mean() == 0.5
    table = dfa.summary(net)
    assert next(r.layer for r in table.rows if r.layer.startswith("mix")) == "mix.time_l0"
    assert table.nbytes == sum(f.nbytes for f in made.values()) + net.head.feedback.nbytes
    costs = {row.layer: row for row in dfa.costs(net, torch.randn(6, 1, 3)).rows}
    # Through time 2 directions of 2 layers, 6 steps of 18 x 6; to the inputs 18 x 4 and 18 x 12.
    assert costs["mix"].bp_products == 2 * 6 * (2 * 18 * 6 + 18 * 4 + 18 * 12)
    sums = 8 * 6 * 6  # of the errors, before the matrix, in four layers' halves
    assert costs["mix"].products == 2 * 6 * (2 * 18 + 12 + 36) + sums // 2


def test_products_of_the_hybrid_with_chunks():
    net = dfa.convert(nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 6)), dfa.HybridDFA(chunk=3, density=0.5))
    (row,) = (r for r in dfa.costs(net, torch.randn(6, 1, 3)).rows if r.layer == "1")
    live = 2 * 24 * 6 + 6 * 24 * 4  # the first step of each chunk, and the input
    assert row.products == live + 4 * 18 + 6 * 6
    assert row.bp_products == 6 * 24 * (6 + 4)


def test_products_of_the_hybrid_with_packed_sequences():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.LSTM(4, 6)

        def forward(self, x):
            sequences = [x[:length] for length in (5, 1, 1, 1)]
            return self.mix(pack_sequence(sequences))[0].data

    net = dfa.convert(nn.Sequential(nn.Linear(3, 4), Packed()), dfa.HybridDFA(density=0.5), example=torch.randn(5, 3))
    (row,) = (r for r in dfa.costs(net, torch.randn(5, 3)).rows if r.layer == "1.mix")
    # The first steps of four samples go to the states before by the weights, all eight rows to the inputs; to the
    # states between, feedback of half of 6 x 6 takes errors of five steps of four samples, padded, to four steps.
    assert row.bp_products == 8 * 24 * (6 + 4)
    assert row.products == 4 * 24 * 6 + 8 * 24 * 4 + 4 * 4 * 18 + 5 * 4 * 6


@kinds
def test_scale_and_product(kind, double):
    net = kind(6, 6)
    part = {nn.LSTM: (12, 0.25, 0.25), nn.GRU: (12, 0.25, 0.5)}.get(kind, (0, 1, 1))
    dfa.convert(nn.Sequential(nn.Linear(2, 6), net), dfa.ModuleDFA(init="product"))
    begin, across, inward = part
    for name, weight, gain in (("time", net.weight_hh_l0, across), ("input", net.weight_ih_l0, inward)):
        expected = gain * weight[begin : begin + 6].detach()
        torch.testing.assert_close(net.feedback[f"{name}_l0"].dense(), expected)


@rules
def test_copies_states_and_the_reference(rule, double):
    net = dfa.convert(Net(nn.GRU, 2), rule)
    x, e = torch.randn(6, 2, 3), torch.randn(6, 2, 5)
    expected = step(net, x, e)[2]
    other = dfa.convert(Net(nn.GRU, 2), rule)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), other):
        assert twin.mix.forward.layer is twin.mix and twin.mix.forward.scope in conversion_of(twin).scopes
        same(step(twin, x, e)[2], expected, rtol=0, atol=0)
    for scope in conversion_of(net).scopes:
        scope.node = reference_broadcast
    same(step(net, x, e)[2], expected)
    eight = step(net, x, e)[2]
    net.zero_grad()
    y, last = net(x)
    (8 * ((y * e).sum() + last.square().sum())).backward()
    same({n: 8 * g for n, g in eight.items()}, {n: p.grad for n, p in net.named_parameters()})


@rules
def test_autocast(rule):
    net = dfa.convert(Net(nn.LSTM), rule)
    x, e = torch.randn(6, 2, 3), torch.randn(6, 2, 5)
    exact = step(net, x, e)[2]
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        y, last = net(x)
    ((y.float() * e).sum() + last.float().square().sum()).backward()
    for name, p in net.named_parameters():
        assert F.cosine_similarity(p.grad.flatten(), exact[name].flatten(), dim=0) > 0.97, name


@pytest.mark.filterwarnings("ignore")
@rules
def test_compiled(rule):
    torch._dynamo.reset()
    net = dfa.convert(Net(nn.GRU), rule)
    x, e = torch.randn(6, 2, 3), torch.randn(6, 2, 5)
    expected = step(net, x, e)[2]
    compiled = torch.compile(net, backend="aot_eager")
    found = {n.removeprefix("_orig_mod."): g for n, g in step(compiled, x, e)[2].items()}
    same(found, expected, rtol=1e-4, atol=1e-6)
    torch._dynamo.reset()


def test_training_a_recurrent_net_lowers_the_loss():
    for rule in RULES.values():
        torch.manual_seed(0)
        net = dfa.convert(nn.Sequential(nn.LSTM(3, 24)), rule)
        head = nn.Linear(24, 2)
        optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], 0.01)
        x = torch.randn(8, 64, 3)
        labels = (x[2, :, 0] > 0).long()  # seen at step 2, asked for at the end
        losses = []
        for _ in range(80):
            optimizer.zero_grad()
            loss = F.cross_entropy(head(net(x)[0][-1]), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.6 * losses[0], rule


def test_projections_are_refused():
    with pytest.raises(ValueError, match="'0' is an LSTM with proj_size"):
        dfa.convert(nn.Sequential(nn.LSTM(3, 6, proj_size=2)), dfa.HybridDFA())


@pytest.mark.parametrize("fields", [{"chunk": 0}, {"chunk": 1.5}, {"decay": 0}, {"decay": 1.5}, {"decay": True}])
def test_wrong_fields(fields):
    with pytest.raises(ValueError, match=rf"{next(iter(fields))}=.*expected"):
        dfa.HybridDFA(**fields)


def test_time_feedback_is_its_transpose(double):
    for steps, rows in (("all", 5), ("inner", 4), ("first", 1)):
        feedback = TimeFeedback(
            dfa.convert(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)), dfa.DFA())[1].feedback, 0.7, steps
        )
        h, e = torch.randn(rows, 2, 3), torch.randn(5, 2, 3)
        through = feedback.project(h, e.shape)
        torch.testing.assert_close((through * e).sum(), (h * feedback.carry(e, h.shape)).sum())


def test_cut_runs_give_torchs_values(double):
    for make in (nn.LSTM, nn.GRU, nn.RNN):
        layer = make(3, 4)
        w = weights_of(layer, "_l0")
        x, h = torch.randn(5, 2, 3), torch.randn(2, 2, 4)
        expected = layer(x, (h[:1], h[1:]) if make is nn.LSTM else h[:1])[0]
        state, found = (h[0], h[1] if make is nn.LSTM else None), []
        for run in cut_runs(w, x, state, 2):
            y, after = run(state, live=False)
            state = y[-1], None if after is None else after[-1]
            found.append(y)
        assert [len(y) for y in found] == [2, 2, 1]
        torch.testing.assert_close(torch.cat(found), expected)


def test_steps_as_one_operator_in_compiled_code():
    """Its shapes without values are those of its values, and nothing that it is given changes."""
    x, c = torch.randn(5, 2, 3), torch.randn(2, 4)
    for make in (nn.LSTM, nn.GRU, nn.RNN):
        w = weights_of(make(3, 4), "_l0")
        weights = (t.detach() for t in (w.inward, w.across, w.inward_bias, w.across_bias))
        arguments = (w.kind, x, *weights, torch.randn(2, 4), c if make is nn.LSTM else None)
        torch.library.opcheck(torch.ops.torchdfa.cut_steps.default, arguments)


def test_second_derivatives_are_refused():
    layer = dfa.convert(nn.Sequential(nn.LSTM(3, 4)), dfa.HybridDFA())[0]
    x = torch.randn(5, 2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)


def test_a_forward_of_its_own_is_refused():
    class Doubled(nn.LSTM):
        def forward(self, input, hx=None):
            y, state = super().forward(input, hx)
            return 2 * y, state

    with pytest.raises(ValueError, match="is a Doubled with a forward of its own"):
        dfa.convert(Doubled(3, 4), dfa.HybridDFA(), output=0, example=torch.randn(5, 2, 3))


def test_arguments_are_checked_as_torch_does():
    layer = dfa.convert(nn.Sequential(nn.GRU(3, 4, 2)), dfa.HybridDFA())[0]
    x = torch.randn(5, 2, 3)
    for shape in ((6, 2, 4), (2, 3, 4), (2, 2, 5)):
        with pytest.raises(RuntimeError, match="Expected hidden size"):
            layer(x, torch.zeros(shape))
    with pytest.raises(ValueError, match=r"bfloat16 and the weights are torch\.float32"):
        layer(x.bfloat16())
    assert layer(x[:, :0])[0].shape == (5, 0, 4)
    cell = dfa.convert(Loop(nn.LSTMCell), {"cell": dfa.ModuleDFA()}, example=torch.zeros(2, 1, 3)).cell
    h, c = cell(torch.randn(2, 4), [torch.zeros(2, 6), torch.zeros(2, 6)])
    assert h.shape == c.shape == (2, 6)


def test_frozen_recurrent_weights_cost_no_products():
    from torch.utils.flop_counter import FlopCounterMode

    def counted(frozen):
        net = nn.LSTM(64, 64)
        dfa.convert(nn.Sequential(net), dfa.HybridDFA())
        for name in frozen:
            getattr(net, name).requires_grad_(False)
        loss = net(torch.randn(5, 4, 64))[0].sum()
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        return counter.get_total_flops()

    whole, half = counted(()), counted(("weight_hh_l0",))
    assert whole - half == 2 * (5 * 4) * 64 * 256


def test_decay_is_as_precise_as_the_error(double):
    net = nn.RNN(2, 3)
    feedback = dfa.convert(nn.Sequential(net), dfa.HybridDFA(decay=0.7))[0].feedback["time_l0"]
    e = torch.randn(4, 1, 3)
    expected = sum(0.7**lag * e[1 + lag] for lag in range(3)) @ feedback.dense()
    torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(feedback.carry(e, torch.Size((3, 1, 3)))[0], expected, rtol=1e-14, atol=1e-14)


def test_costs_of_a_recurrent_layer_called_by_keyword():
    class Named(nn.Module):
        def __init__(self, keyword):
            super().__init__()
            self.stem, self.mix, self.keyword = nn.Linear(3, 4), nn.LSTM(4, 6), keyword

        def forward(self, x):
            x = self.stem(x)
            return (self.mix(input=x) if self.keyword else self.mix(x))[0]

    found = [dfa.costs(dfa.convert(Named(k), dfa.HybridDFA()), torch.randn(5, 2, 3)) for k in (True, False)]
    assert found[0].products == found[1].products and found[0].bp_products == found[1].bp_products
