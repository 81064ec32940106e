"""Dense products by oneDNN: where they pay, and equal to torch's."""

import torch

from torchdfa.ops.dense import faster, linear, pack, through


def test_products_by_onednn_are_used_where_they_pay():
    x, w, b = torch.randn(32, 300), torch.randn(260, 300), torch.randn(260)
    assert faster(x, w)
    assert not faster(x[:7], w)
    assert not faster(x.double(), w.double())
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        assert not faster(x, w)
    torch.testing.assert_close(linear(x, w, b), x @ w.T + b, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(linear(x, w, None), x @ w.T, rtol=1e-4, atol=1e-4)
    error = torch.randn(32, 260)
    torch.testing.assert_close(through(error, w), error @ w, rtol=1e-4, atol=1e-4)


def test_a_packed_weight_gives_the_same_products():
    x, w, b = torch.randn(32, 300), torch.randn(260, 300), torch.randn(260)
    packed = pack(w, len(x))
    assert packed.is_mkldnn
    torch.testing.assert_close(linear(x, packed, b), x @ w.T + b, rtol=1e-4, atol=1e-4)
    for batch, weight in ((7, w), (32, w.double())):
        assert pack(weight, batch) is weight
