"""Feedback through a convolution is back-propagation with B for W, whatever the geometry."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchdfa as dfa
from cases import away

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MODES = ("zeros", "reflect", "replicate", "circular")


@st.composite
def geometries(draw):
    dims = draw(st.sampled_from((1, 1, 2, 2, 3)))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(dims))  # noqa: E731
    groups = draw(st.sampled_from((1, 2)))
    same = draw(st.booleans())
    return dims, {
        "in_channels": 2 * groups,
        "out_channels": groups * draw(st.integers(1, 2)),
        "kernel_size": each(1, 4),
        "stride": 1 if same else each(1, 3),
        "padding": "same" if same else each(0, 2),
        "dilation": each(1, 2),
        "groups": groups,
        "padding_mode": draw(st.sampled_from(MODES)),
        "bias": draw(st.booleans()),
    }


def check_geometry(dims, geometry):
    torch.manual_seed(0)
    size = {1: (9,), 2: (9, 8), 3: (7, 8, 9)}[dims]
    model = nn.Sequential(
        CONVOLUTIONS[dims](2, geometry["in_channels"], 1), nn.Tanh(), CONVOLUTIONS[dims](**geometry)
    ).double()
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    e = torch.randn_like(model(x))
    model(x).backward(e)
    true = [p.grad.clone() for p in model.parameters()]

    dfa.convert(model, dfa.FA(init="product"))
    model.zero_grad()
    model(x).backward(e)
    for p, gradient in zip(model.parameters(), true, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-11, atol=1e-12)

    # Fixed feedback is no derivative: once the weights move, it stays.
    layer = model[2]
    h, y = torch.randn_like(model[:2](x)), e
    layer.weight.data.neg_()
    inner = (layer.feedback.project(h) * y).sum()
    torch.testing.assert_close((h * layer.feedback.carry(y, h.shape)).sum(), inner, rtol=1e-11, atol=1e-12)
    if geometry["padding_mode"] == "zeros" or geometry["padding"] == "same":
        bias = 0 if layer.bias is None else layer.bias.view(-1, *[1] * dims)
        torch.testing.assert_close(layer.feedback.project(h), -(dfa.revert(model)[2](h) - bias))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@settings(max_examples=60, deadline=None)
@given(geometries())
def test_any_geometry(geometry):
    check_geometry(*geometry)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize(("mode", "kernel", "dims"), [*itertools.product(MODES, (3, 4), (1, 2, 3))])
def test_same_padding_with_odd_and_even_kernels(mode, kernel, dims):
    geometry = {"in_channels": 4, "out_channels": 2, "kernel_size": kernel, "padding": "same", "padding_mode": mode}
    check_geometry(dims, {**geometry, "groups": 2, "bias": False})


def test_random_feedback_is_not_the_transpose():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3, groups=1), nn.Flatten())
    x, found = torch.randn(2, 2, 8, 8), []
    for rule in (dfa.FA(), dfa.BP()):
        dfa.convert(model, rule)(x).square().sum().backward()
        found.append(model[0].weight.grad.clone())
        dfa.revert(model).zero_grad()
    assert away(*found) > 0.5


def test_an_unbatched_input():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3))
    dfa.convert(model, dfa.FA())
    x = torch.randn(2, 8, 8)
    model(x).sum().backward()
    one = model[0].weight.grad.clone()
    model.zero_grad()
    model(x[None]).sum().backward()
    torch.testing.assert_close(one, model[0].weight.grad)
