"""What is read off a model, by tracing and by running."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases import NETS, nets
from torchdfa.feedback.init import NoProductError
from torchdfa.structure import read_structure
from torchdfa.structure.run import run_structure
from torchdfa.structure.trace import UntraceableError, trace_structure

FACTS = {  # name: order, first layers, chain
    "mlp": (["net.0", "net.2", "net.4"], {"net.0"}, ["net.4", "net.2", "net.0"]),
    "conv": (
        ["features.0", "features.3", "classifier.0", "classifier.4", "classifier.6"],
        {"features.0"},
        ["classifier.6", "classifier.4", "classifier.0"],
    ),
    "tokens": (["embed", "q", "k", "v", "mlp", "head"], {"embed"}, ["head", "mlp"]),
    "pooled": (["embed", "mix", "head"], {"embed"}, ["head"]),
    "residual": (["stem", "up", "down", "head"], {"stem"}, ["head"]),
    "tied": (["stem", "again", "twin", "head"], {"stem"}, ["head", "twin"]),
}


@pytest.mark.parametrize("name", FACTS)
def test_facts(name):
    net, (order, first, chain) = NETS[name], FACTS[name]
    for example in (None, net.x(2)):
        found = read_structure(net.build(), None, example)
        assert list(found.order) == order
        assert set(order) - found.fed == first
        assert list(found.chain) == chain
        assert set(order) - first <= found.leading
        assert found.end == ""
        assert found.errors == 4


@nets
def test_running_finds_what_tracing_finds(net):
    model, x = net.build(), net.x(2)
    traced = trace_structure(model, net.output)
    run = run_structure(model, net.output, x, traced)
    assert (run.order, run.fed, run.end, run.chain) == (traced.order, traced.fed, traced.end, traced.chain)
    assert run.leading >= traced.leading & traced.fed
    assert run.output[-1] == traced.errors == 4
    with torch.no_grad():
        assert run.output == net.logits(model(x)).shape
    assert run.inputs.keys() == set(run.order)


def test_product_is_the_chain_of_weights(double):
    model = NETS["mlp"].build()
    found = read_structure(model, None, None)
    w0, w2, w4 = (model.net[i].weight.detach() for i in (0, 2, 4))
    torch.testing.assert_close(found.product(model, "net.4"), w4)
    torch.testing.assert_close(found.product(model, "net.0"), w4 @ w2 @ w0)
    with pytest.raises(NoProductError, match=r"'elsewhere'.*ends at the model's input"):
        found.product(model, "elsewhere")


class Between(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.a, self.b, self.operation = nn.Linear(4, 6), nn.Linear(6, 3), operation

    def forward(self, x):
        return self.b(self.operation(self.a(x)))


PASSED = {
    "nothing": lambda h: h,
    "relu": F.relu,
    "tanh": torch.tanh,
    "method": lambda h: h.sigmoid(),
    "gelu": F.gelu,
    "leaky": lambda h: F.leaky_relu(h, 0.2),
    "dropout": F.dropout,
    "layer_norm": lambda h: F.layer_norm(h, (6,)),
    "flatten": lambda h: h.flatten(1),
    "view": lambda h: h.view(h.size(0), -1),
    "reshape": lambda h: h.reshape(h.shape[0], -1),
    "two": lambda h: torch.flatten(torch.relu(h), 1),
}
STOPPED = {
    "skip": lambda h: h + h.tanh(),
    "gate": lambda h: h * h.sigmoid(),
    "scaled": lambda h: h * 2,
    "flip": lambda h: h.flip(1),
    "cat": lambda h: torch.cat([h[:, :3], h[:, 3:]], 1),
    "transpose": lambda h: h.transpose(0, 1).transpose(0, 1),
    "matmul": lambda h: h @ torch.ones(6, 6),
}


@pytest.mark.parametrize("operation", PASSED.values(), ids=PASSED.keys())
def test_products_pass(operation):
    assert read_structure(Between(operation), None, None).chain == ("b", "a")


@pytest.mark.parametrize("operation", STOPPED.values(), ids=STOPPED.keys())
def test_products_stop(operation):
    assert read_structure(Between(operation), None, None).chain == ("b",)


MODULES = [
    nn.ReLU(),
    nn.GELU(),
    nn.PReLU(),
    nn.BatchNorm1d(6),
    nn.LayerNorm(6),
    nn.RMSNorm(6),
    nn.Dropout(),
    nn.Identity(),
]


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_products_pass_modules(module):
    assert read_structure(Between(module), None, None).chain == ("b", "a")


@pytest.mark.parametrize("module", [nn.GRUCell(6, 6), nn.MaxPool1d(1), nn.GLU(), nn.Dropout2d()], ids=repr)
def test_products_stop_at_modules_that_mix(module):
    found = read_structure(Between(module), None, None)
    assert found.chain == ("b",)
    assert f"'operation' is a {type(module).__name__}" in found.chain_end


def test_a_change_of_width_ends_the_chain():
    class Folding(Between):
        def forward(self, x):
            return self.b(self.a(x).view(-1, 2, 3))

    model = Folding(None)
    model.b = nn.Linear(3, 3)
    found = read_structure(model, None, None)
    assert found.chain == ("b",)
    assert "'a' puts out 6 and 'b' takes 3 features" in found.chain_end


class Flow(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.a, self.b, self.error = nn.Linear(4, 6), nn.Linear(6, 3), error

    def forward(self, x):
        h = self.a(x)
        if not isinstance(x, torch.Tensor):
            raise self.error
        return self.b(h if h.sum() > -1e9 else -h)


@pytest.mark.parametrize(
    "error", [ValueError("no ids"), TypeError("no"), KeyError("k"), AssertionError(), RuntimeError("x")]
)
def test_whatever_a_trace_raises_the_model_can_be_run(error):
    model = Flow(error)
    with pytest.raises(UntraceableError, match=type(error).__name__):
        trace_structure(model, None)
    with pytest.raises(ValueError, match=rf"can't be traced \({type(error).__name__}.*example=x"):
        read_structure(model, None, None)
    found = read_structure(model, None, torch.zeros(2, 4))
    assert found.order == ("a", "b")
    assert found.fed == found.leading & found.fed == {"b"}


def test_control_flow_is_untraceable():
    class Branching(Between):
        def forward(self, x):
            return self.b(self.a(x)) if x.sum() > 0 else self.b(-self.a(x))

    with pytest.raises(UntraceableError, match="control flow"):
        trace_structure(Branching(None), None)


def test_an_input_shared_with_a_layer_of_the_output_does_not_lead_there():
    class Sharing(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head, self.side = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 2)

        def forward(self, x):
            h = self.stem(x)
            return self.head(h), self.side(h)

    for example in (None, torch.zeros(2, 4)):
        assert "side" not in read_structure(Sharing(), 0, example).leading


def test_layers_run_without_gradients_are_not_overlooked():
    class Teacher(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.fixed, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            h = self.stem(x)
            with torch.no_grad():
                shift = self.fixed(h * 2)
            return self.head(h + shift)

    found = read_structure(Teacher(), None, torch.zeros(2, 4))
    assert found.leading == {"stem", "fixed", "head"}
    assert found.fed == {"fixed", "head"}


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: [x], lambda x: {"x": x}])
def test_an_example_is_a_tensor_arguments_or_keywords(wrap):
    assert read_structure(NETS["tied"].build(), None, wrap(torch.zeros(2, 5))).output == (2, 4)
