"""SGD's step on a weight without its gradient: every path against the formula in float64."""

import math

import pytest
import torch
from torch import nn

from torchdfa.ops import PATHS, choose, path, sgd_update

paths = pytest.mark.parametrize("name", PATHS)
# Weights smaller than a block of the kernels, larger, and with rests in rows and columns; batches of one and more.
SHAPES = [(1, 1, 1), (1, 2, 3), (2, 3, 512), (3, 4, 64), (5, 13, 100), (8, 40, 257), (33, 9, 1100), (1, 300, 1030)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(autouse=True)
def path_again():
    before = path()
    yield
    choose(before)


def tensors(shape, dtype=torch.float32):
    n, outputs, inputs = shape
    generator = torch.Generator().manual_seed(n)
    sizes = [(outputs, inputs), (outputs, inputs), (n, outputs), (n, inputs)]
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def formula(w, v, error, x, lr, momentum, decay):
    w, v, error, x = (None if t is None else t.double() for t in (w, v, error, x))
    step = error.T @ x + decay * w
    step = step if v is None else momentum * v + step
    return w - lr * step, None if v is None else step


@paths
@shapes
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_every_path_does_the_formula(name, shape, momentum):
    choose(name)
    w, v, error, x = tensors(shape)
    v = v if momentum else None
    settings = {"lr": 0.3, "momentum": momentum, "decay": 0.2}
    expected_w, expected_v = formula(w, v, error, x, **settings)
    sgd_update(w, v, error, x, **settings)
    tolerance = {"rtol": 1e-5, "atol": 1e-5 * shape[0] ** 0.5}
    torch.testing.assert_close(w.double(), expected_w, **tolerance)
    if v is not None:
        torch.testing.assert_close(v.double(), expected_v, **tolerance)


@paths
@shapes
def test_a_velocity_in_bfloat16_is_the_formula_s_rounded_to_even(name, shape):
    choose(name)
    w, v, error, x = tensors(shape)
    v = v.bfloat16()
    settings = {"lr": 0.3, "momentum": 0.9, "decay": 0.2}
    # In float32 the same path gives the step that is added to W, and rounded as torch does where it is kept.
    expected_w, expected_v = w.clone(), v.float()
    sgd_update(expected_w, expected_v, error, x, **settings)
    sgd_update(w, v, error, x, **settings)
    assert v.dtype is torch.bfloat16
    torch.testing.assert_close(w, expected_w, rtol=0, atol=0)
    torch.testing.assert_close(v, expected_v.bfloat16(), rtol=0, atol=0)
    assert not torch.equal(v.float(), expected_v)


@paths
def test_bfloat16_rounds_ties_to_even_and_keeps_what_is_no_number(name):
    choose(name)
    ulp = 2.0**-7  # of bfloat16 at 1
    kept = torch.tensor([[1 + ulp / 2, 1 + 3 * ulp / 2, 1 + 0.51 * ulp, -1 - ulp / 2, 3.4e38, float("nan"), -0.0]])
    w, v = torch.zeros(1, 7), torch.zeros(1, 7, dtype=torch.bfloat16)
    sgd_update(w, v, torch.ones(1, 1), kept, lr=1.0, momentum=0.5)
    found = v[0].tolist()
    assert found[:5] == [1.0, 1 + 2 * ulp, 1 + ulp, -1.0, float("inf")]
    assert math.isnan(found[5])
    assert found[6] == 0.0
    torch.testing.assert_close(w, -kept, equal_nan=True)


@paths
def test_it_is_what_torch_s_optimizer_does_over_many_steps(name):
    choose(name)
    w, v, _, _ = tensors((1, 30, 70))
    v.zero_()
    parameter = nn.Parameter(w.clone())
    optimizer = torch.optim.SGD([parameter], lr=0.01, momentum=0.9, weight_decay=0.05)
    for i in range(50):
        error, x = torch.randn(1 + i % 3, 30), torch.randn(1 + i % 3, 70)
        parameter.grad = error.T @ x
        optimizer.step()
        sgd_update(w, v, error, x, lr=0.01, momentum=0.9, decay=0.05)
    torch.testing.assert_close(w, parameter.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(v, optimizer.state[parameter]["momentum_buffer"], rtol=1e-5, atol=1e-5)


@paths
def test_errors_and_inputs_may_be_parts_of_larger_tensors(name):
    choose(name)
    w, v, error, x = tensors((4, 10, 70))
    expected = w.clone()
    sgd_update(expected, v.clone(), error, x, lr=0.1, momentum=0.9)
    for e, h in [
        (torch.cat([error, error], 1)[:, :10], torch.cat([x, x], 1)[:, 70:]),
        (error.T.contiguous().T, x.T.contiguous().T),
        (torch.stack([error, error], 1)[:, 0], torch.stack([x, x], 1)[:, 1]),
    ]:
        moved = w.clone()
        sgd_update(moved, v.clone(), e, h, lr=0.1, momentum=0.9)
        torch.testing.assert_close(moved, expected)


@paths
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_types_and_layouts_take_torch_s_way(name, dtype):
    choose(name)
    for weight_layout in ("rows", "columns"):
        w, v, error, x = tensors((3, 20, 30), dtype)
        if weight_layout == "columns":
            w = w.T.contiguous().T
        expected, _ = formula(w, v, error, x, 0.1, 0.9, 0.1)
        sgd_update(w, v, error, x, lr=0.1, momentum=0.9, decay=0.1)
        torch.testing.assert_close(w.double(), expected, rtol=0.02, atol=0.05 if dtype is torch.bfloat16 else 1e-9)


@paths
@shapes
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16], ids=str)
def test_two_threads_do_what_one_does(name, shape, kept):
    choose(name)
    results = []
    for threads in (1, 2):
        w, v, error, x = tensors((shape[0], 40 * shape[1], shape[2]))
        v = v.to(kept)
        torch.set_num_threads(threads)
        try:
            sgd_update(w, v, error, x, lr=0.3, momentum=0.9, decay=0.2)
        finally:
            torch.set_num_threads(1)
        results.append((w, v))
    exact = {"rtol": 0, "atol": 0} if name != "torch" else {}
    torch.testing.assert_close(results[0], results[1], **exact)


@paths
def test_an_update_larger_than_a_block_of_torch_s_way(name, monkeypatch):
    choose(name)
    monkeypatch.setattr("torchdfa.ops.update._BLOCK_BYTES", 5 * 11 * 4)  # blocks of five rows, and a rest
    w, v, error, x = tensors((3, 13, 11))
    expected, _ = formula(w, v, error, x, 0.1, 0.9, 0.1)
    sgd_update(w, v, error, x, lr=0.1, momentum=0.9, decay=0.1)
    torch.testing.assert_close(w.double(), expected, rtol=1e-5, atol=1e-5)


@paths
def test_an_empty_batch_is_momentum_and_decay_alone(name):
    choose(name)
    w, v, _, _ = tensors((1, 5, 6))
    expected, _ = formula(w, v, torch.zeros(1, 5), torch.zeros(1, 6), 0.1, 0.9, 0.1)
    sgd_update(w, v, torch.zeros(0, 5), torch.zeros(0, 6), lr=0.1, momentum=0.9, decay=0.1)
    torch.testing.assert_close(w.double(), expected, rtol=1e-5, atol=1e-5)


@paths
def test_autograd_notices_the_change(name):
    choose(name)
    w, v, error, x = tensors((3, 5, 6))
    inputs = torch.randn(2, 6, requires_grad=True)
    loss = (inputs @ w.T).square().sum()
    sgd_update(w, v, error, x, lr=0.1, momentum=0.9)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.inference_mode():
        w = w.clone()
        sgd_update(w, None, error, x, lr=0.1)
    parameter = nn.Parameter(tensors((3, 5, 6))[0])
    sgd_update(parameter, None, error, x, lr=0.1)  # with gradients on: it is an optimizer's step
    assert parameter.grad is None
    assert parameter.requires_grad


@paths
def test_the_operator_is_registered_as_torch_expects(name):
    choose(name)
    w, v, error, x = tensors((3, 5, 6))
    for velocity in (v, v.bfloat16(), None):
        torch.library.opcheck(torch.ops.torchdfa.sgd_update.default, (w, velocity, error, x, 0.1, 0.9, 0.1))


@paths
def test_it_compiles_into_a_full_graph(name):
    choose(name)
    w, v, error, x = tensors((3, 5, 6))
    expected, _ = formula(w, v, error, x, 0.1, 0.9, 0.1)
    compiled = torch.compile(
        lambda *t: sgd_update(*t, lr=0.1, momentum=0.9, decay=0.1), fullgraph=True, backend="aot_eager"
    )
    compiled(w, v, error, x)
    torch.testing.assert_close(w.double(), expected, rtol=1e-5, atol=1e-5)


def test_shapes_that_do_not_fit_are_refused():
    w, v, error, x = tensors((3, 5, 6))
    for arguments, message in [
        ((w, v, error, x[:2]), r"needs errors \(N, 5\) and inputs \(N, 6\), found \(3, 5\) and \(2, 6\)"),
        ((w, v, error[:, :4], x), "needs errors"),
        ((w, v[:4], error, x), r"velocity's shape is \(4, 6\), the weight's \(5, 6\)"),
        ((w, v.double(), error, x), "a velocity of torch.float64, expected torch.float32 or torch.bfloat16"),
    ]:
        with pytest.raises(ValueError, match=message):
            sgd_update(*arguments, lr=0.1)
