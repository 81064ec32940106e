"""The native library as a Python module: what it takes, what it leaves to torch, what it keeps and lets go."""

import gc
import sys
import threading
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from torchdfa import ops
from torchdfa.feedback import bits
from torchdfa.ops import native

pytestmark = pytest.mark.skipif(native.kernels is None, reason=f"no native library: {ops.why_not_native()}")

KEY, SCALE = torch.tensor(bits.key_of(3, "layer")), torch.tensor(0.3)
PACKED = bits.draw(KEY, 10, 20).contiguous()


def direct(e, source=PACKED, scale=SCALE, columns=20):
    product = native.kernels.packed if source.dtype == torch.uint8 else native.kernels.seeded
    return product(e, source, scale, columns)


def test_plain_tensors_are_multiplied_at_once():
    e = torch.randn(3, 10)
    expected = (e.double() * SCALE.double()) @ bits.unpack(PACKED, 20, torch.float64)
    for source in (PACKED, KEY, KEY.view(1, 1)):
        found = direct(e, source)
        assert type(found) is torch.Tensor and found.shape == (3, 20) and found.is_contiguous() and found.is_leaf
        assert not found.requires_grad
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        assert direct(e).is_inference()


def test_the_result_is_new_memory_that_can_grow():
    e = torch.randn(1, 10)
    one, other = direct(e), direct(e)
    assert one.data_ptr() != other.data_ptr()
    assert torch.equal(one, other)
    one.resize_(50, 50)


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.randn(3, 10, requires_grad=True),),
        (torch.nn.Parameter(torch.randn(3, 10), requires_grad=False),),
        (torch._neg_view(torch.randn(3, 10)),),
        (torch.randn(3, 10), PACKED, torch._neg_view(SCALE)),
        (torch.randn(10, 3).t(),),
        (torch.randn(3, 20)[:, ::2],),
        (torch.randn(3, 10).double(),),
        (torch.randn(3, 10).bfloat16(),),
        (torch.randn(30),),
        (torch.randn(1, 3, 10),),
        (torch.empty(0, 10),),
        (torch._efficientzerotensor((3, 10)),),
        (torch.empty(3, 10, device="meta"),),
        (torch.randn(3, 10).to_sparse(),),
        (torch.randn(3, 9),),
        (torch.randn(3, 10), PACKED.view(3, 10)),
        (torch.randn(3, 10), PACKED.t()),
        (torch.randn(3, 10), PACKED.char()),
        (torch.randn(3, 10), KEY.expand(2)),
        (torch.randn(3, 10), KEY.double()),
        (torch.randn(3, 10), PACKED, torch.rand(2)),
        (torch.randn(3, 10), PACKED, SCALE.double()),
        (torch.randn(3, 10), PACKED, SCALE, 30),
        (torch.randn(3, 10), KEY, SCALE, -1),
        (torch.randn(3, 10), KEY, SCALE, 2**70),
        (torch.randn(3, 10), KEY, SCALE, "20"),
        ([[1.0] * 10],),
        (None,),
    ],
)
def test_everything_else_is_left_to_torch(arguments):
    assert direct(*arguments) is None


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
def test_what_watches_is_not_passed_by():
    e = torch.randn(3, 10)
    with FlopCounterMode(display=False):
        assert direct(e) is None
    seen = []
    torch.func.vmap(lambda e: (seen.append(direct(e)), e)[1])(torch.randn(2, 3, 10))
    torch.func.grad(lambda e: (seen.append(direct(e)), e.sum())[1])(e)
    torch.jit.trace(lambda e: (seen.append(direct(e)), e + 1)[1], e, check_trace=False)
    assert seen == [None, None, None]


def test_nothing_is_kept_of_its_arguments_and_results():
    e = torch.randn(3, 10)
    subjects = (e, KEY, SCALE, PACKED, torch.float32)
    before = [sys.getrefcount(each) for each in subjects]
    for _ in range(1000):
        direct(e)
        direct(e, KEY)
        direct(e.t())  # refused
    assert [sys.getrefcount(each) for each in subjects] == before
    blocks = sys.getallocatedblocks()
    for _ in range(1000):
        direct(e)
        direct(e.t())
    assert sys.getallocatedblocks() - blocks < 500
    out = direct(e)
    assert sys.getrefcount(out) == 2
    gc.collect()
    tensors = sum(type(each) is torch.Tensor for each in gc.get_objects())
    for _ in range(100):
        direct(e)
    gc.collect()
    assert sum(type(each) is torch.Tensor for each in gc.get_objects()) == tensors


def test_wrong_calls_raise():
    library = native.kernels
    for call in (library.packed, library.seeded, library.packed_at, library.update_at):
        with pytest.raises(TypeError, match="arguments, found 1"):
            call(1)
    with pytest.raises(TypeError, match="integer"):
        library.packed_at(*[1.5] * 9)
    with pytest.raises(TypeError):
        library.update_at(*[0] * 9, "lr", 0.0, 0.0, 1)
    assert library.choose("sse9") is False


def test_large_calls_let_other_threads_run():
    """A thread that gives way at every turn runs in between only where Python's lock is let go."""
    ran, stop = 0, False

    def count():
        nonlocal ran
        while not stop:
            ran += 1
            time.sleep(0)

    def moved(e, columns):
        out = torch.empty(len(e), columns)
        numbers = (e.data_ptr(), *e.shape, e.shape[1], KEY.data_ptr(), SCALE.data_ptr(), out.data_ptr(), columns, 1)
        for _ in range(1000):
            before = ran
            assert native.kernels.seeded_at(*numbers)
            if ran != before:
                return True
        return False

    interval = sys.getswitchinterval()
    other = threading.Thread(target=count)
    try:
        sys.setswitchinterval(1000)  # no turn is forced
        other.start()
        assert moved(torch.randn(64, 1000), 4096)
    finally:
        stop = True
        sys.setswitchinterval(interval)
        other.join()


def test_a_torch_without_an_exchange_table_is_served_by_the_operators(monkeypatch):
    class Tensor:
        pass

    assert native.kernels.connect(Tensor, *[None] * 6) is False  # and nothing was changed
    assert direct(torch.randn(3, 10)) is not None
