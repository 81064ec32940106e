import pytest
import torch

import torchdfa as dfa
from torchdfa.experiments import METHODS, method
from torchdfa.experiments.methods import COLORS
from torchdfa.experiments.normalised import NormalisedFeedback
from torchdfa.feedback import DenseFeedback
from torchdfa.models import VGG16, SmallConv


@pytest.mark.parametrize("name", METHODS)
def test_every_method_fits_a_network_and_has_a_color(name):
    network = SmallConv(channels=(4,), head=(8, 8)).build((1, 8, 8), 10)
    dfa.convert(network, method(name, 3), example=torch.zeros(1, 1, 8, 8))
    assert COLORS[name].startswith("#") and len(set(COLORS.values())) == len(METHODS)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("BP", dfa.BP()),
        ("Conv-only", {"classifier.*": dfa.Frozen()}),
        ("DFA", dfa.DFA(seed=7)),
        ("CDFA (7)", dfa.CDFA(init="product", seed=7)),
        ("CBDFA (9)", dfa.CBDFA(init="product", seed=7)),
        ("CBDFA seeded", dfa.CBDFA(storage="seeded", seed=7)),
    ],
)
def test_seed_goes_into_the_rule(name, expected):
    before = METHODS[name]
    assert method(name, 7) == expected
    assert METHODS[name] == before


def test_seed_goes_into_each_rule_of_a_dict(monkeypatch):
    monkeypatch.setitem(METHODS, "mixed", {"a": dfa.DFA(), "b": dfa.BP()})
    assert method("mixed", 4) == {"a": dfa.DFA(seed=4), "b": dfa.BP()}


def test_an_unknown_method_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"no method 'XDFA'; there are 'BP', .*'CBDFA \(9\)'"):
        method("XDFA", 0)


def test_normalised_errors_have_one_length():
    torch.manual_seed(0)
    inner = DenseFeedback(torch.randn(3, 5))
    feedback = NormalisedFeedback(inner)
    e = torch.tensor([[3.0, 0.0, -4.0], [0.03, 0.04, 0.0], [0.0, 0.0, 0.0]])
    mean = (5 + 0.05 + 0) / 3
    by_hand = torch.tensor([[0.6, 0.0, -0.8], [0.6, 0.8, 0.0], [0.0, 0.0, 0.0]]) * mean
    torch.testing.assert_close(feedback(e), by_hand @ inner.dense())
    torch.testing.assert_close(feedback(8 * e), 8 * feedback(e))
    net = VGG16(width=0.0625, head=(8, 8)).build((3, 32, 32), 10)
    dfa.convert(net, method("trunk ±1 (9) normalised"))
    assert isinstance(net.classifier[0].feedback, NormalisedFeedback)
