"""The binary product on every path against a product by hand, and through everything of torch that may call it."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import torchdfa as dfa
from cases import NETS, fresh
from torchdfa import ops
from torchdfa.feedback import PackedFeedback, SeededFeedback, bits

KEY = torch.tensor(bits.key_of(3, "layer"))
SCALE = torch.tensor(0.3)
NATIVE = [name for name in ops.PATHS if name != "torch"]
every_path = pytest.mark.parametrize("path", ops.PATHS)
needs_native = pytest.mark.skipif(not NATIVE, reason=f"no native library: {ops.why_not_native()}")
OPERATORS = [torch.ops.torchdfa.packed_product.default, torch.ops.torchdfa.seeded_product.default]


@pytest.fixture
def on():
    """Choose a path; the one before comes back at the end."""
    before = ops.path()
    yield ops.choose
    ops.choose(before)


def signs(k, h, dtype=torch.float64):
    return bits.unpack(bits.draw(KEY, k, h), h, dtype)


def both(e, h, scale=SCALE):
    """The product with stored and with generated signs."""
    packed = bits.draw(KEY, e.shape[1], h)
    return ops.packed_product(e, packed, scale, h), ops.seeded_product(e, KEY, scale, h)


SIZES = [*itertools.product((1, 2, 3, 5, 9), (1, 3, 4, 10, 31, 33), (1, 7, 64, 65, 130))]
SIZES += [(67, 100, 513), (4, 255, 40), (3, 256, 512), (5, 257, 600), (1, 1000, 1100), (2, 770, 64)]
SIZES += [(3, 4097, 70), (66, 8200, 130)]  # sums of more than 4,096 rows


@every_path
def test_product_by_hand(on, path):
    on(path)
    for n, k, h in SIZES:
        e = torch.randn(n, k)
        expected = (e.double() * SCALE.double()) @ signs(k, h)
        for found in both(e, h):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6 * (1 + k**0.5))


@needs_native
def test_paths_and_threads_agree_bit_for_bit(on):
    shapes = [(1, 10, 100), (7, 100, 1000), (70, 300, 520), (9, 1000, 3000), (128, 100, 600), (192, 70, 500)]
    # Sums of more than 4,096 rows, which two threads or three share.
    shapes += [(1, 4 * 4096 + 1, 300), (2, 9 * 4096, 70), (3, 50_257, 130), (65, 12_289, 100)]
    for n, k, h in shapes:
        e, found = torch.randn(n, k), []
        for path, threads in itertools.product(NATIVE, (1, 2, 3)):
            on(path)
            torch.set_num_threads(threads)
            found += both(e, h)
        torch.set_num_threads(1)
        assert all(torch.equal(found[0], other) for other in found)


@needs_native
@pytest.mark.parametrize("k", [300, 9000])
def test_a_row_does_not_depend_on_its_batch(k):
    e = torch.randn(70, k)
    whole = both(e, 200)
    for rows in (slice(0, 1), slice(3, 5), slice(60, 70)):
        for all_rows, some in zip(whole, both(e[rows], 200), strict=True):
            assert torch.equal(all_rows[rows], some)


@needs_native
def test_float32_sums_are_close_to_exact():
    e = torch.randn(4, 20_000)
    expected = (e.double() * SCALE.double()) @ signs(20_000, 128)
    for found in both(e, 128):
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_types(on, path, dtype):
    on(path)
    e = torch.randn(5, 40).to(dtype)
    expected = (e.double() * SCALE.double()) @ signs(40, 70)
    tolerance = {torch.float64: 1e-7, torch.float32: 1e-5}.get(dtype, 0.05)  # the scale is float32
    for scale in (SCALE, SCALE.to(dtype)):
        for found in both(e, 70, scale):
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@every_path
def test_any_layout_in_memory(on, path):
    on(path)
    flat = torch.randn(4, 30)
    for e in (
        torch.randn(30, 4).t(),
        torch.randn(4, 60)[:, ::2],
        torch.randn(8, 40)[::2, 5:35],
        torch.randn(1, 30).expand(4, 30),
        torch.randn(4, 1).expand(4, 30),
        torch.complex(flat, flat).conj().imag,
        torch._efficientzerotensor((4, 30)),
    ):
        expected = both(e.clone().contiguous() if not e._is_zerotensor() else torch.zeros(4, 30), 50)
        for found, plain in zip(both(e, 50), expected, strict=True):
            torch.testing.assert_close(found, plain, rtol=0, atol=0 if path != "torch" else 1e-5)
    wide = torch.zeros(30, 20, dtype=torch.uint8)
    wide[:, :7] = bits.draw(KEY, 30, 50)
    torch.testing.assert_close(
        ops.packed_product(flat, wide[:, :7], SCALE, 50), both(flat, 50)[0], rtol=0, atol=0 if path != "torch" else 1e-5
    )


@every_path
@pytest.mark.parametrize(("n", "k", "h"), [(0, 5, 9), (3, 0, 9), (3, 5, 0), (0, 0, 0)])
def test_nothing_to_multiply(on, path, n, k, h):
    on(path)
    for found in both(torch.randn(n, k), h):
        assert torch.equal(found, torch.zeros(n, h))


@every_path
def test_nan_and_infinity_spread_as_in_a_product(on, path):
    on(path)
    e = torch.randn(4, 20)
    e[0, 3], e[1, 7], e[2, 4], e[2, 5] = torch.nan, torch.inf, torch.inf, torch.inf
    expected = (e.double() * SCALE.double()) @ signs(20, 70)
    assert expected.isnan().any() and expected.isinf().any()
    for found in both(e, 70):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


# torch's own, from tracing derivatives.
from_tracing = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@from_tracing
@every_path
def test_operators_are_registered_as_torch_wants_them(on, path):
    on(path)
    for n, k, h in ((3, 10, 33), (1, 4, 8)):
        for source, operator in zip((bits.draw(KEY, k, h), KEY), OPERATORS, strict=True):
            for e in (torch.randn(n, k), torch.randn(n, k, requires_grad=True), torch.randn(n, k).double()):
                torch.library.opcheck(operator, (e, source, SCALE, h))


@from_tracing
def test_compiled_whole_as_eager():
    for storage in ("packed", "seeded"):
        model = fresh(NETS["mlp"], dfa.BDFA(storage=storage)).float()
        x = torch.randn(6, 5)
        model(x).square().sum().backward()
        eager = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        torch.compile(model, fullgraph=True)(x).square().sum().backward()
        for p, gradient in zip(model.parameters(), eager, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-5, atol=1e-6)


@from_tracing
def test_compiled_alone_with_another_batch():
    @torch.compile(fullgraph=True, dynamic=True)
    def product(e):
        return torch.stack(both(e, 50)) * 2

    for n in (3, 8):
        e = torch.randn(n, 10)
        torch.testing.assert_close(product(e), torch.stack(both(e, 50)) * 2)


def test_derivatives_of_the_error():
    e = torch.randn(3, 10, dtype=torch.float64, requires_grad=True)
    scale = SCALE.double()
    for i in range(2):
        assert torch.autograd.gradcheck(lambda e, i=i: both(e, 20, scale)[i], e)
        assert torch.autograd.gradgradcheck(lambda e, i=i: both(e, 20, scale)[i].square(), e)
    e32 = e.detach().float().requires_grad_()
    (gradient,) = torch.autograd.grad(both(e32, 20)[0].sum(), e32)
    torch.testing.assert_close(gradient.double(), (0.3 * signs(10, 20).sum(1)).expand(3, 10), rtol=1e-5, atol=1e-5)
    assert not both(torch.randn(3, 10), 20)[0].requires_grad


@pytest.mark.filterwarnings("ignore:.torch.jit.script.:FutureWarning")  # torch's own, of forward derivatives
def test_derivatives_forward():
    e, tangent = torch.randn(2, 3, 10).unbind()
    for i in range(2):
        value, found = torch.func.jvp(lambda e, i=i: both(e, 20)[i], (e,), (tangent,))
        torch.testing.assert_close(value, both(e, 20)[i])
        torch.testing.assert_close(found, both(tangent, 20)[i])
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(e, tangent)
            torch.testing.assert_close(forward_ad.unpack_dual(both(dual, 20)[i]).tangent, found)
            assert forward_ad.unpack_dual(both(e, 20)[i]).tangent is None
        wide = e.double().requires_grad_()
        check = torch.autograd.gradcheck
        assert check(lambda e, i=i: both(e, 20, SCALE.double())[i].square(), wide, check_forward_ad=True)


def test_vmap_over_errors_and_over_everything():
    e = torch.randn(6, 3, 10)
    for found in torch.func.vmap(lambda e: both(e, 40), in_dims=1)(e):
        assert found.shape == (3, 6, 40)
        torch.testing.assert_close(found, both(e.transpose(0, 1).reshape(18, 10), 40)[0].view(3, 6, 40))
    packed = torch.stack([bits.draw(torch.tensor(k), 10, 40) for k in range(6)])
    scales, keys = torch.rand(6), torch.arange(6)
    stored = torch.func.vmap(lambda e, p, s: ops.packed_product(e, p, s, 40))(e, packed, scales)
    drawn = torch.func.vmap(lambda e, k, s: ops.seeded_product(e, k, s, 40))(e, keys, scales)
    for i in range(6):
        torch.testing.assert_close(stored[i], ops.packed_product(e[i], packed[i], scales[i], 40))
        torch.testing.assert_close(drawn[i], stored[i])


def test_a_gradient_of_each_sample():
    for storage in ("packed", "seeded"):
        model = fresh(NETS["mlp"], dfa.BDFA(storage=storage)).float()
        parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        x = torch.randn(4, 5)

        def loss(parameters, x, model=model, buffers=buffers):
            return torch.func.functional_call(model, (parameters, buffers), x[None]).square().sum()

        found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
        for i in range(4):
            model.zero_grad()
            model(x[i : i + 1]).square().sum().backward()
            for name, p in model.named_parameters():
                torch.testing.assert_close(found[name][i], p.grad, rtol=1e-4, atol=1e-5)


def test_autocast_leaves_the_error_its_type():
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            for found in both(torch.randn(3, 10).to(dtype), 20):
                assert found.dtype == dtype


def test_modes_see_the_operator():
    with FlopCounterMode(display=False) as counter:
        both(torch.randn(3, 10), 20)
    assert counter.get_total_flops() == 2 * (2 * 3 * 10 * 20)


def test_shapes_that_do_not_fit_are_refused():
    packed = bits.draw(KEY, 10, 20)
    for e, signs_, message in (
        (torch.randn(3, 9), packed, r"signs of shape \(9, 3\), uint8; found \(10, 3\)"),
        (torch.randn(3, 10), packed[:, :2], r"signs of shape \(10, 3\), uint8; found \(10, 2\)"),
        (torch.randn(3, 10), packed.reshape(5, 6), r"signs of shape \(10, 3\), uint8; found \(5, 6\)"),
        (torch.randn(3, 10), packed.int(), "torch.int32"),
        (torch.randn(10), packed, r"expected a floating-point error of shape \(N, K\), found \(10,\)"),
        (torch.ones(3, 10, dtype=torch.int64), packed, "torch.int64"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.packed_product(e, signs_, SCALE, 20)
    with pytest.raises(ValueError, match="one int64 as the key"):
        ops.seeded_product(torch.randn(3, 10), KEY.int(), SCALE, 20)
    with pytest.raises(ValueError, match=r"shape \(N, K\)"):
        ops.seeded_product(torch.randn(10), KEY, SCALE, 20)


def test_a_state_goes_from_path_to_path(on):
    e = torch.randn(3, 10)
    for make in (
        lambda: PackedFeedback(torch.rand(10, 50) > 0.5, SCALE.clone()),
        lambda: SeededFeedback(10, 50, int(torch.randint(2**40, ())), SCALE.clone()),
    ):
        source, target = make(), make()
        target.load_state_dict(source.state_dict())
        expected = (e.double() @ source.dense().double()).float()
        for path in ops.PATHS:
            on(path)
            torch.testing.assert_close(target(e), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork processes")
@needs_native
def test_a_forked_process_does_not_hang():
    """Its parent's threads are not there: waiting for them would last for ever."""
    code = """
import os, signal, torch
from torchdfa import ops
torch.set_num_threads(2)
e, key, scale = torch.randn(64, 1000), torch.tensor(5), torch.tensor(1.0)
expected = ops.seeded_product(e, key, scale, 4096)
child = os.fork()
if child == 0:
    signal.alarm(60)
    out = ops.seeded_product(e, key, scale, 4096)
    os._exit(0 if (out.numpy() == expected.numpy()).all() else 3)  # torch.equal would wait for them itself
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(ops.seeded_product(e, key, scale, 4096), expected)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype):
    e = torch.randn(5, 40).to(dtype)
    packed = bits.draw(KEY, 40, 70)
    expected = both(e, 70)[0]
    found = (
        ops.packed_product(e.cuda(), packed.cuda(), SCALE.cuda(), 70),
        ops.seeded_product(e.cuda(), KEY.cuda(), SCALE.cuda(), 70),
    )
    for one in found:
        assert one.is_cuda and one.dtype == dtype
        torch.testing.assert_close(one.cpu(), expected, rtol=1e-2, atol=1e-2)
