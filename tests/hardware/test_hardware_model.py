"""The integer model against hand formulas and brute force."""

from fractions import Fraction
from itertools import pairwise
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchdfa as dfa
from torchdfa.data import load
from torchdfa.hardware.accuracy import AccuracyConfig
from torchdfa.hardware.model import runlength
from torchdfa.hardware.model.depc import add_tree, direct_errors, sum_width
from torchdfa.hardware.model.fixed import Fixed, Format, product, quantize, requantize, rescale, saturate, shift_round
from torchdfa.hardware.model.head import FloatHead, HeadConfig, IntegerHead, feedback_signs
from torchdfa.hardware.model.momentum import NEAREST, momentum
from torchdfa.hardware.model.softmax import softmax_error


@given(st.integers(-(2**40), 2**40), st.integers(-5, 30))
def test_shift_rounds_halves_upward(value, shift):
    found = shift_round(np.array([value]), shift)[0]
    assert found == floor(Fraction(value) / Fraction(2) ** shift + Fraction(1, 2))


@pytest.mark.parametrize("largest", [1e-9, 0.3, 0.5, 1.0, 1.5, 77.0, 1e6])
def test_dynamic_format_keeps_15_bits_of_the_largest(largest):
    x = np.array([largest, -largest / 3, 0.0])
    fixed = quantize(x, Format())
    assert 2**14 <= fixed.values[0] <= 2**15 - 1
    assert np.abs(fixed.real - x).max() <= 0.5 * 2.0**-fixed.fraction * (1 + (fixed.values[0] == 2**15 - 1))


def test_static_format_saturates_at_both_ends():
    assert quantize([1.0, -1.0, 0.99], Format(width=8, fraction=7)).values.tolist() == [127, -128, 127]
    assert saturate(np.array([40000, -40000]), 16).tolist() == [32767, -32768]


def test_requantize_keeps_values_within_half_a_unit():
    x = Fixed(np.random.default_rng(0).integers(-(2**35), 2**35, 100), 20)
    y = requantize(x, Format())
    assert np.abs(y.real - x.real).max() <= 0.5 * 2.0**-y.fraction
    assert requantize(x, Format(), finest=-9).fraction == -9


@given(st.integers(-(2**55), 2**55), st.integers(-80, 90), st.integers(2, 32))
def test_rescaling_saturates_at_every_shift(value, shift, width):
    exact = floor(Fraction(value) / Fraction(2) ** shift + Fraction(1, 2))
    assert rescale(np.array([value]), shift, width)[0] == min(max(exact, -(2 ** (width - 1))), 2 ** (width - 1) - 1)


def test_what_is_out_of_range_goes_to_its_ends():
    form = Format(fraction=15)
    assert quantize([1e15, -1e15, 1e300], form).values.tolist() == [32767, -32768, 32767]
    assert quantize([1.0, -1.0], Format(fraction=2000)).values.tolist() == [32767, -32768]
    assert requantize(Fixed(np.array([2**40, -1, 0]), 0), Format(fraction=30)).values.tolist() == [32767, -32768, 0]
    assert requantize(Fixed(np.array([5, -5]), 70), Format(fraction=0)).values.tolist() == [0, 0]
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match=f"found {bad}, expected finite"):
            quantize([0.5, bad], Format())
    with pytest.raises(OverflowError, match="left shift by 50 exceeds 64 bits"):
        shift_round(np.array([2**14]), -50)
    assert shift_round(np.array([0]), -90).tolist() == [0]


def test_product_is_exact_or_refused():
    a = np.random.default_rng(0).integers(-(2**15), 2**15, (3, 50))
    b = np.random.default_rng(1).integers(-(2**15), 2**15, (50, 4))
    assert (product(a, b) == a.astype(object) @ b.astype(object)).all()
    with pytest.raises(OverflowError, match="2\\^53"):
        product(np.full((1, 2**12), 2**30), np.full((2**12, 1), 2**30))


@pytest.mark.parametrize(("k", "terms"), [(1, 4), (4, 4), (10, 4), (10, 16), (17, 16)])
def test_core_adds_and_subtracts_in_blocks(k, terms):
    rng = np.random.default_rng(k)
    e, bits = rng.integers(-(2**15), 2**15, (5, k)), rng.random((k, 7)) < 0.5
    assert (direct_errors(e, bits, terms) == e @ np.where(bits, 1, -1)).all()


def test_tree_takes_odd_numbers_of_terms():
    for n in range(1, 9):
        x = np.arange(n * 2).reshape(2, n)
        assert (add_tree(x) == x.sum(1)).all()


@pytest.mark.parametrize("terms", [1, 3, 4, 10, 16])
@pytest.mark.parametrize("blocks", [1, 3])
def test_sums_fit_their_width_and_no_smaller_one(terms, blocks):
    width, largest = sum_width(4, terms, blocks), 8 * terms * blocks  # -8 negated, in every term
    assert largest <= 2 ** (width - 1) - 1
    assert largest > 2 ** (width - 2) - 1


MAPS = st.lists(st.one_of(st.just(0), st.just(0), st.integers(-(2**15), 2**15 - 1)), max_size=200)


@given(MAPS, st.integers(1, 6))
def test_run_lengths_round_trip(values, bits):
    x = np.array(values, np.int64).reshape(-1, 1)
    codes = runlength.encode(x, bits)
    assert codes.runs.max(initial=0) < 2**bits
    assert (runlength.decode(codes) == x).all()


def test_run_lengths_by_hand():
    codes = runlength.encode(np.array([0, 0, 7, 0, 0, 0, 0, 0, -1, 0]), run_bits=2)
    assert list(zip(codes.runs, codes.values, strict=True)) == [(2, 7), (3, 0), (1, -1), (0, 0)]
    assert codes.bits(16) == 4 * 18
    assert codes.ratio(16) == 72 / 160
    with pytest.raises(ValueError, match="hold 10 elements"):
        runlength.decode(runlength.Codes(codes.runs, codes.values, (3, 3), 2))


@settings(max_examples=50)
@given(st.integers(0, 2**32))
def test_momentum_is_the_formula(seed):
    rng = np.random.default_rng(seed)
    w, v, g = (int(x) for x in rng.integers(-(2**15), 2**15, 3))
    decay, rate = int(rng.integers(0, 2**16)), int(rng.integers(1, 2**16))
    align, narrow, apply = (int(x) for x in (rng.integers(8, 24), rng.integers(12, 21), rng.integers(10, 33)))
    noise = int(rng.integers(0, 2**32)) if seed % 2 else NEAREST
    coarsen = int(rng.integers(0, 2))
    settings = {"decay": decay, "rate": rate, "align": align, "narrow": narrow, "apply": apply, "coarsen": coarsen}
    new_w, new_v = momentum(np.array(w), np.array(v), np.array(g), **settings, noise=noise)
    exact = Fraction(decay * v + g * 2**align, 2**narrow)
    assert new_v == min(max(floor(exact + Fraction(1, 2)), -(2**15)), 2**15 - 1)
    moved = (rate * int(new_v) + (noise >> (32 - apply))) // 2**apply
    kept = floor(Fraction(w, 2**coarsen) + Fraction(1, 2))
    assert new_w == min(max(kept - moved, -(2**15)), 2**15 - 1)


def test_softmax_error_is_near_the_real_one():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(0, 4, (50, 10)), rng.integers(0, 10, 50)
    found = softmax_error(quantize(x, Format()), labels)
    expected = torch.softmax(torch.from_numpy(x), 1).numpy() - np.eye(10)[labels]
    assert found.fraction == 15
    assert np.abs(found.real - expected).max() < 0.012


def head(dims, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.normal(0, (2 / a) ** 0.5, (b, a)), rng.normal(0, 0.1, b)) for a, b in pairwise(dims)]


@pytest.mark.parametrize("method", ["BP", "BDFA"])
def test_float_head_learns_as_pytorch_does(method):
    """The twin that integers are held against is the library's own: weights after two steps with momentum."""
    layers = head((12, 9, 8, 5))
    model = torch.nn.Sequential()
    for a, b in pairwise((12, 9, 8, 5)):
        model.extend([torch.nn.Linear(a, b), torch.nn.ReLU()])
    model = model[:-1].double()
    for layer, (w, b) in zip(model[::2], layers, strict=True):
        layer.weight.data, layer.bias.data = torch.from_numpy(w.copy()), torch.from_numpy(b.copy())
    if method == "BDFA":
        # The head names its layers 0, 1, 2; the model 0, 2, 4.
        dfa.convert(model, dfa.BDFA(generator="lfsr", storage="seeded"))
        for i in (1, 2):
            feedback = model[2 * i].feedback
            feedback.key.fill_(dfa.feedback.bits.key_of(0, str(i)))
    x, y = np.random.default_rng(2).normal(size=(32, 12)), np.random.default_rng(3).integers(0, 5, 32)
    found = FloatHead(layers, HeadConfig(method=method, lr=0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        found.step(x, y)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    for i, weight in enumerate(found.weights):
        expected = torch.cat([model[2 * i].weight, model[2 * i].bias[:, None]], 1).detach().numpy()
        np.testing.assert_allclose(weight, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["BP", "BDFA"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_integer_steps_follow_the_real_ones(method, rounding):
    layers = head((12, 20, 16, 5))
    config = HeadConfig(method=method, lr=0.05, guard=8, rounding=rounding)
    whole, real = IntegerHead(layers, config), FloatHead(layers, config)
    rng = np.random.default_rng(0)
    before = [w.copy() for w in real.weights]
    for _ in range(5):
        x, y = rng.normal(size=(32, 12)), rng.integers(0, 5, 32)
        whole.step(x, y)
        real.step(x, y)
    for a, b, start in zip(whole.weights, real.weights, before, strict=True):
        assert np.linalg.norm(a.real - b) < 0.03 * np.linalg.norm(b - start)


def test_error_of_an_integer_step_is_the_feedback_of_pytorch():
    config = HeadConfig(seed=3)
    tensors = IntegerHead(head((12, 20, 16, 5)), config).step(
        np.random.default_rng(0).normal(size=(32, 12)), np.arange(32) % 5
    )
    net = torch.nn.ModuleDict({"1": torch.nn.Linear(20, 16), "2": torch.nn.Linear(16, 5)})
    rule = dfa.BDFA(storage="seeded", generator="lfsr", seed=3, scale="unit")
    model = dfa.convert(torch.nn.Sequential(*net.values()), rule)
    signs = model[1].feedback.signs()  # named "1", 5 × 16
    assert (feedback_signs(3, "1", 5, 16) == (signs > 0).numpy()).all()
    total = tensors["output error"].values @ np.where(feedback_signs(3, "2", 5, 16), 1, -1)
    gated = np.where(tensors["input 2"].values > 0, total, 0)
    expected = requantize(Fixed(gated, 15), Format())
    assert (tensors["error 1"].values == expected.values).all()


def test_sixteen_bits_learn_the_digits():
    data = load("digits")
    x, y = data.train.images.flatten(1).double().numpy() / 128, data.train.labels.numpy()
    rng = np.random.default_rng(0)
    whole = IntegerHead(head((64, 48, 10)), HeadConfig(lr=0.03))
    for _ in range(4):
        order = rng.permutation(len(x))
        for first in range(0, len(order) - 31, 32):
            whole.step(x[order[first : first + 32]], y[order[first : first + 32]])
    test = data.test.images.flatten(1).double().numpy() / 128
    assert (whole.predict(test) == data.test.labels.numpy()).mean() > 0.9


@pytest.mark.parametrize(("lr", "which"), [(1e-12, "larger"), (1e6, "smaller")])
def test_a_rate_that_the_unit_can_not_apply_is_refused(lr, which):
    whole = IntegerHead(head((4, 3)), HeadConfig(lr=lr, method="BP"))
    with pytest.raises(ValueError, match=f"out of the momentum unit's range: .* choose a {which} one"):
        whole.step(np.ones((32, 4)), np.arange(32) % 3)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"lr": -0.02}, "lr=-0.02, expected a positive number"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"momentum": 1.0}, "momentum=1.0, expected from 0 to below 1"),
        ({"guard": 17}, "guard=17, expected 0 to 16"),
        ({"terms": 0}, "terms=0, expected a whole number of 1 or more"),
        ({"method": "DFA"}, "method='DFA', expected one of 'BP', 'BDFA'"),
        ({"rounding": "foo"}, "rounding='foo', expected one of 'nearest', 'stochastic'"),
    ],
)
def test_head_settings_out_of_range_are_refused(setting, said):
    with pytest.raises(ValueError, match=said):
        HeadConfig(**setting)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"lr": -0.02}, "lr=-0.02, expected a positive number"),
        ({"seeds": 0}, "seeds=0, expected a whole number of 1"),
        ({"epochs": 0}, "epochs=0, expected a whole number of 1"),
        ({"hidden": (32, 0)}, r"hidden=\(32, 0\), expected widths of at least 1"),
        ({"train_size": 31}, "train_size=31, expected a whole number of 32 or more"),
        ({"methods": ("BP", "FA")}, r"methods=\('BP', 'FA'\), expected one or more of 'BP', 'BDFA'"),
        ({"methods": ()}, r"methods=\(\), expected one or more of 'BP', 'BDFA'"),
    ],
)
def test_accuracy_settings_out_of_range_are_refused(setting, said):
    with pytest.raises(ValueError, match=said):
        AccuracyConfig(**setting)


def separable(n=32):
    x = np.random.default_rng(1).normal(size=(n, 8))
    x[:, 0] = np.where(np.arange(n) % 2, 4.0, -4.0)
    return x, np.arange(n) % 2


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_converged_head_goes_on(rounding):
    """The errors vanish: velocities become zero and stay as they are; so, at last, do the weights."""
    whole = IntegerHead(head((8, 16, 2)), HeadConfig(lr=0.2, rounding=rounding))
    x, y = separable()
    fractions = []
    for _ in range(400):
        whole.step(x, y)
        fractions.append([v.fraction for v in whole.velocities])
    assert (whole.predict(x) == y).all()
    assert fractions[-1] == fractions[-50]
    before = [w.values for w in whole.weights]
    whole.step(x, y)
    assert all((a == w.values).all() for a, w in zip(before, whole.weights, strict=True))


@pytest.mark.parametrize("method", ["BP", "BDFA"])
def test_a_head_with_a_dead_layer_goes_on(method):
    layers = head((8, 16, 16, 2))
    layers[1][1][:] = -500
    config = HeadConfig(lr=0.05, method=method)
    whole, real = IntegerHead(layers, config), FloatHead(layers, config)
    x, y = separable()
    for _ in range(60):
        whole.step(x, y)
        real.step(x, y)
    for a, b in zip(whole.weights, real.weights, strict=True):
        assert np.linalg.norm(a.real - b) < 0.05 * np.linalg.norm(b)


def test_a_first_gradient_may_be_tiny():
    """A head that knows its first batch: the step is zero, no fault of the rate."""
    whole = IntegerHead(head((8, 16, 2)), HeadConfig(lr=0.02, method="BP"))
    before = whole.weights[0].values
    gradient = Fixed(np.ones((16, 9), np.int64), 70)
    whole._update(0, gradient, 1 / 32)
    assert (whole.weights[0].values == before).all()


def test_tiny_activations_leave_room_for_the_biases():
    layers = head((8, 16, 2))
    layers[0][0][:] *= 1e-14
    layers[0][1][:] *= 1e-14
    whole = IntegerHead(layers, HeadConfig(method="BP"))
    hidden = whole.forward(quantize(separable()[0], Format()))[1]
    assert hidden.fraction == 31 and hidden.largest == 0


def test_a_weight_s_fraction_follows_its_range():
    """From a hundredth, a layer's weights grow by some hundred: none saturates, and steps follow the real ones."""
    rng = np.random.default_rng(0)
    layers = [(rng.normal(0, 0.01, (b, a)), np.zeros(b)) for a, b in pairwise((8, 16, 2))]
    config = HeadConfig(method="BP", lr=0.1, guard=8)
    whole, real = IntegerHead(layers, config), FloatHead(layers, config)
    x, y = separable()
    start = [w.fraction for w in whole.weights]
    before = start
    for _ in range(60):
        whole.step(x, y)
        real.step(x, y)
        after = [w.fraction for w in whole.weights]
        assert all(a - 1 <= b <= a for a, b in zip(before, after, strict=True))  # by one bit a step, at most
        before = after
    assert all(a - b >= 3 for a, b in zip(start, before, strict=True))
    for a, b in zip(whole.weights, real.weights, strict=True):
        assert a.largest < 2**23 - 1
        assert np.linalg.norm(a.real - b) < 0.05 * np.linalg.norm(b)


def test_a_weight_s_fraction_stays_where_nothing_comes_near():
    whole = IntegerHead(head((12, 20, 5)), HeadConfig(lr=1e-3))
    before = [w.fraction for w in whole.weights]
    for _ in range(5):
        whole.step(np.random.default_rng(0).normal(size=(32, 12)), np.arange(32) % 5)
    assert [w.fraction for w in whole.weights] == before
    whole.weights[0].values[0, 0] = 2**14
    whole.step(np.ones((32, 12)), np.arange(32) % 5)
    assert [w.fraction for w in whole.weights] == [before[0] - 1, before[1]]
