"""What holds for every kind of feedback, as the rules make them."""

import pytest
import torch
from torch import nn

import torchdfa as dfa
from cases import NETS, RULES, fresh
from torchdfa.feedback import (
    BinarySparseFeedback,
    ConvFeedback,
    DenseFeedback,
    Feedback,
    Geometry,
    KolenPollackFeedback,
    PackedFeedback,
    SeededFeedback,
    SignFeedback,
    SparseFeedback,
    TargetFeedback,
)

FEEDING = {i: r for i, r in RULES.items() if not isinstance(r, (dfa.BP, dfa.Frozen))}
feeding = pytest.mark.parametrize("rule", FEEDING.values(), ids=FEEDING.keys())
K, H = 5, 13


def packed(scale=0.5):
    return PackedFeedback(torch.rand(K, H) > 0.5, torch.tensor(scale))


def of(rule):
    return [m for m in fresh(NETS["mlp"], rule).modules() if isinstance(m, Feedback)]


@feeding
def test_forward_is_the_product_with_dense(rule):
    for feedback in of(rule):
        for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 0.05)):
            e = torch.randn(6, feedback.errors).to(dtype)
            found = feedback(e)
            assert found.dtype == dtype
            assert found.shape == (6, feedback.features)
            torch.testing.assert_close(
                found.double(), e.double() @ feedback.dense().double(), rtol=tolerance, atol=tolerance
            )


@feeding
def test_feedback_has_no_parameters_and_is_in_the_state(rule):
    for feedback in of(rule):
        assert bool(list(feedback.parameters())) == feedback.learns == isinstance(rule, dfa.KolenPollack)
        assert feedback.state_dict()
        assert not any(b.requires_grad for b in feedback.buffers())


@feeding
def test_bytes(rule):
    for feedback in of(rule):
        k, h = feedback.errors, feedback.features
        half = -(-k // 2) * -(-h // 2)  # of two blocks
        sparse = {SparseFeedback: 4 * 2 * half + 8 * -(-k // 2)}
        sparse[BinarySparseFeedback] = 2 * -(-k // 2) * -(-h // 16) + 4 + 8 * -(-k // 2)
        if isinstance(feedback, SignFeedback):
            assert feedback.nbytes == 4 + {"uniform": 0, "fixed": 4 * k * h, "batch": 8}[rule.magnitude]
            continue
        real = dict.fromkeys((DenseFeedback, KolenPollackFeedback, TargetFeedback), 4 * k * h)
        kept = {**real, PackedFeedback: k * -(-h // 8) + 4, SeededFeedback: 8 + 4, **sparse}[type(feedback)]
        assert feedback.nbytes == kept
        assert feedback.nbytes_float32 == 4 * k * h
        assert f"{k} → {h}, {kept} bytes" in repr(feedback)


@pytest.mark.parametrize("generator", ["hash", "lfsr"])
@pytest.mark.parametrize("head", [dfa.BDFA, dfa.CBDFA])
def test_seeded_bits_are_the_packed_ones(head, generator):
    for seed in range(3):
        a, b = (fresh(NETS["conv"], head(seed=seed, storage=s, generator=generator)) for s in ("packed", "seeded"))
        pairs = [(m.feedback, b.get_submodule(n).feedback) for n, m in a.named_modules() if hasattr(m, "feedback")]
        assert len(pairs) >= 3
        for stored, drawn in pairs:
            assert torch.equal(stored.signs(), drawn.signs())
            assert torch.equal(stored.dense(), drawn.dense())


def test_binary_feedback_is_one_scale_times_signs():
    feedback = packed(0.25)
    assert feedback.dense().abs().unique().tolist() == [0.25]
    assert torch.equal(feedback.signs(), feedback.dense() / 0.25)


@pytest.mark.parametrize("rule", [dfa.DFA(), dfa.BDFA(), dfa.BDFA(storage="seeded"), dfa.FA()], ids=lambda r: repr(r))
def test_a_model_moved_to_another_type_keeps_its_feedback(rule):
    model = fresh(NETS["mlp"], rule)
    before = [m.dense() for m in model.modules() if isinstance(m, Feedback)]
    model.to(torch.bfloat16)
    for b, after in zip(before, (m.dense() for m in model.modules() if isinstance(m, Feedback)), strict=True):
        assert after.dtype == torch.bfloat16
        torch.testing.assert_close(after.float(), b, rtol=0.01, atol=0)
    model(torch.randn(3, 5).bfloat16()).sum().backward()
    assert all(p.grad.dtype == torch.bfloat16 for p in model.parameters())


def test_the_scale_is_exact_in_float64():
    model = dfa.convert(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)).double(), dfa.BDFA(scale="nokland"))
    assert model[1].feedback.scale.item() == 0.5 / 5**0.5


CHECKS = [
    # per position, output, hidden, fits
    (True, (4, K), (4, H), True),
    (True, (4, 3, K), (4, 3, H), True),
    (True, (K,), (H,), True),
    (True, (4, K), (4, 3, H), False),
    (True, (4, 3, K), (3, 4, H), False),
    (True, (4, H), (4, K), False),
    (True, (), (H,), False),
    (False, (4, K), (4, H), True),
    (False, (4, K), (4, 1, H), True),
    (False, (4, K), (5, H), False),
    (False, (4, K), (4, 2, H), False),
    (False, (4, K), (H, 4), False),
    (False, (K,), (H,), True),
    (False, (4, 1, K), (4, H), True),
    (False, (), (H,), False),
]


@pytest.mark.parametrize(("per_position", "output", "hidden", "fits"), CHECKS)
def test_check_of_shapes(per_position, output, hidden, fits):
    feedback = DenseFeedback(torch.randn(K, H), per_position=per_position)
    if fits:
        feedback.check(torch.Size(output), torch.Size(hidden))
        assert feedback.carry(torch.randn(output), torch.Size(hidden)).shape == hidden
    else:
        with pytest.raises(ValueError, match="this feedback expects"):
            feedback.check(torch.Size(output), torch.Size(hidden))


def test_one_output_a_sample_needs_no_dimension_of_its_own():
    feedback = DenseFeedback(torch.randn(1, H))
    for output in ((4,), (4, 1)):
        feedback.check(torch.Size(output), torch.Size((4, H)))
    feedback.check(torch.Size(()), torch.Size((H,)))  # a single sample, as within vmap


def test_feedback_of_a_convolution_shows_its_kernel():
    layer = nn.Conv2d(2, 3, 5, groups=1)
    feedback = ConvFeedback(torch.randn_like(layer.weight), Geometry.of(layer))
    assert feedback.nbytes == feedback.nbytes_float32 == 4 * 3 * 2 * 25
    assert "(3, 2, 5, 5), dilation (1, 1), groups 1, 600 bytes" in repr(feedback)
