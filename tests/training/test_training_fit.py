import csv
import math
import shutil
import signal
import threading
from dataclasses import asdict, replace

import pytest
import torch
from torch.nn import functional as F

import torchdfa as dfa
from torchdfa.data import Batches, Dataset, ImageSet, statistics, subset
from torchdfa.models import MLP, SmallConv
from torchdfa.training import DivergedError, TrainConfig, TrainingError, describe, evaluate, fit, to_dict
from torchdfa.training.checkpoint import list_checkpoints
from torchdfa.training.layout import lay_out
from torchdfa.training.losses import binary
from torchdfa.training.material import _drop, _parts
from torchdfa.training.schedule import SCHEDULES

OPTIMIZERS = {"sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam}


@pytest.fixture
def run(digits):
    return lambda config, out=None, **options: fit(config, out, **({"dataset": digits, "progress": False} | options))


@pytest.fixture
def one_step(quick, run):
    """Take one plain step, and return by how much each parameter moved, negated."""

    def step(**settings):
        plain = {"momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "augment": False, "lr": 0.01}
        config = quick(**(plain | {"epochs": 1, "batch_size": 395, "model": MLP(hidden=(16,))} | settings))
        torch.manual_seed(config.seed)
        before = config.model.build((1, 8, 8), 10)
        after = run(config).model.state_dict()
        return {n: p.detach() - after[n] for n, p in before.named_parameters()}

    return step


def plain_loop(config, dataset):
    """Train by PyTorch alone."""
    train = subset(dataset.train, config.train_size, config.seed)
    torch.manual_seed(config.seed)
    network = config.model.build((1, 8, 8), 10)
    groups = [{"params": [*network.features.parameters()], "factor": 1.0}] if [*network.features.parameters()] else []
    groups.append({"params": [*network.classifier.parameters()], "factor": config.head_lr})
    extra = {"momentum": config.momentum} if config.optimizer == "sgd" else {}
    optimizer = OPTIMIZERS[config.optimizer](groups, lr=config.lr, weight_decay=config.weight_decay, **extra)
    mean, std = statistics(train)
    batches = Batches(
        train, config.batch_size, mean=mean, std=std, shuffle=True, augment=config.augment, seed=config.seed
    )
    torch.manual_seed(config.seed)
    for epoch in range(config.epochs):
        for i, (x, y) in enumerate(batches.epoch(epoch)):
            rate = config.lr * SCHEDULES[config.schedule]((epoch + i / len(batches)) / config.epochs)
            for group in optimizer.param_groups:
                group["lr"] = group["factor"] * rate
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            if config.clip is not None:
                torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip)
            optimizer.step()
    return network


@pytest.mark.parametrize("rule", [dfa.BP(), dfa.CDFA(init="product")], ids=["BP", "CDFA"])
def test_learns_digits(run, rule):
    history = run(TrainConfig(rule=rule, epochs=8, precision="32-true", lr=0.03, clip=10.0)).history
    assert [row.epoch for row in history] == list(range(1, 9))
    assert history[-1].test_top1 > 95 and history[-1].train_top1 > 95
    assert history[-1].test_top5 > history[-1].test_top1
    assert history[-1].train_loss < history[0].train_loss and history[-1].images_per_second > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"clip": 0.5, "head_lr": 2.0},
        {"optimizer": "adam", "lr": 0.002, "schedule": "cosine", "model": MLP(hidden=(16,), norm=True)},
        {"optimizer": "rmsprop", "lr": 0.001, "schedule": "step", "train_size": 400},
        {"model": SmallConv(channels=(4,), head=(16, 16)), "channels_last": False, "head_lr": 0.5},
    ],
    ids=["sgd", "adam", "rmsprop", "conv"],
)
def test_bp_is_plain_pytorch(quick, run, same, digits, settings):
    config = quick(seed=3, **settings)
    assert same(run(config).model, plain_loop(config, digits))


@pytest.mark.parametrize("rule", [dfa.BP(), dfa.FA(), dfa.BDFA()], ids=["BP", "FA", "BDFA"])
def test_a_seed_decides_everything(quick, run, same, rule):
    first = run(quick(rule=rule))
    torch.manual_seed(12345)
    again = run(quick(rule=rule))
    assert same(first.model, again.model)

    def scores(r):
        return [{k: v for k, v in asdict(row).items() if "second" not in k and v == v} for row in r.history]

    assert scores(first) == scores(again)
    assert not same(first.model, run(quick(rule=rule, seed=1)).model)


def test_validation_comes_from_the_subset(quick, digits):
    train, parts = _parts(quick(train_size=200, validation=50, seed=5), digits)

    def pixels(*sets):
        return sorted(bytes(image.numpy()) for s in sets for image in s.images)

    assert (len(train), len(parts["val"])) == (150, 50)
    assert pixels(train, parts["val"]) == pixels(subset(digits.train, 200, 5))
    assert parts["test"] is digits.test


def test_test_images_are_scored_once_where_others_are_held_out(quick, run):
    history = run(quick(epochs=3, validation=100)).history
    assert all(row.val_top1 == row.val_top1 and row.val_loss == row.val_loss for row in history)
    assert [math.isnan(row.test_top1) for row in history] == [True, True, False]
    assert math.isnan(history[0].test_loss) and history[-1].test_top5 >= history[-1].test_top1
    assert [math.isnan(row.val_top1) for row in run(quick()).history] == [True, True]


def test_head_lr_is_of_the_classifier(one_step):
    model = SmallConv(channels=(4,), head=(8,))
    plain, scaled = (one_step(model=model, head_lr=factor) for factor in (1.0, 4.0))
    for name, moved in plain.items():
        factor = 4.0 if name.startswith("classifier") else 1.0
        torch.testing.assert_close(scaled[name], factor * moved, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rule", [dfa.BP(), {"classifier.0": dfa.BDFA()}], ids=["BP", "BDFA to the trunk"])
def test_a_head_rate_of_zero_freezes_it(one_step, rule):
    moved = one_step(model=SmallConv(channels=(4,), head=(8,)), head_lr=0.0, rule=rule)
    assert all(m.any() == name.startswith("features") for name, m in moved.items())
    # Weight decay would move it too.
    moved = one_step(model=SmallConv(channels=(4,), head=(8,)), head_lr=0.0, rule=rule, weight_decay=0.1)
    assert not any(m.any() for name, m in moved.items() if name.startswith("classifier"))


def test_binary_loss_is_a_logistic_unit_a_class(one_step, run, quick):
    logits, y = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, -0.5]], requires_grad=True), torch.tensor([2, 0])
    p = torch.sigmoid(logits.detach())
    target = F.one_hot(y, 3)
    by_hand = -(target * p.log() + (1 - target) * (1 - p).log())
    assert binary(logits, y).item() == pytest.approx(by_hand.sum().item() / 2)
    (e,) = torch.autograd.grad(binary(logits, y, reduction="sum"), logits)
    torch.testing.assert_close(e, p - target)
    torch.testing.assert_close(binary(logits, y, reduction="sum"), by_hand.sum())
    softmax, logistic = (one_step(loss=loss)["classifier.2.bias"] for loss in ("cross_entropy", "binary"))
    assert abs(softmax.sum()) < 1e-6 and logistic.sum() > 1e-4  # only a softmax's error sums to zero
    row = run(quick(loss="binary", epochs=1, clip=None)).history[0]
    # Ten logistic units at chance.
    assert 0.9 * 10 * math.log(2) < row.train_loss + row.test_loss < 1.6 * 10 * math.log(2)


def test_refreshed_feedback_is_the_product_of_that_time_s_weights(quick, run, same, tmp_path):
    rule = dfa.DFA(init="product")
    settings = {"rule": rule, "model": MLP(hidden=(16, 16)), "epochs": 4, "lr": 0.1}
    fixed, fresh = (run(quick(refresh=r, **settings), tmp_path / str(r)).model for r in (0, 2))
    assert not same(fixed, fresh)
    # The first refresh is after the second epoch: the product of the weights at the end of the two.
    torch.manual_seed(0)
    start = MLP(hidden=(16, 16)).build((1, 8, 8), 10)
    first = start.classifier[4].weight @ start.classifier[2].weight
    feedback = fixed.classifier[2].feedback.dense()
    torch.testing.assert_close(feedback, first)
    kept = fresh.classifier[2].feedback.dense()
    assert not torch.allclose(kept, first, atol=1e-3)
    now = fresh.classifier[4].weight @ fresh.classifier[2].weight
    assert torch.nn.functional.cosine_similarity(kept.flatten(), now.flatten(), dim=0) > 0.7
    # A run that is stopped and goes on refreshes as one that is not.
    checkpoints = {"checkpoint_steps": 3, "keep": 50}
    whole = run(quick(refresh=1, **settings), tmp_path / "whole", **checkpoints)
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    saved = list_checkpoints(cut)
    assert len(saved) > 8
    for path in saved[len(saved) // 2 :]:
        path.unlink()
    assert same(run(quick(refresh=1, **settings), cut, resume=True, **checkpoints).model, whole.model)


@pytest.mark.parametrize("direct", [False, True], ids=["layer", "network"])
def test_mirrored_feedback_follows_the_weights(quick, run, direct):
    settings = {"rule": dfa.WeightMirror(direct=direct), "model": MLP(hidden=(16,)), "epochs": 6, "lr": 0.02}
    network = run(quick(mirror_rate=0.05, **settings)).model
    head = network.classifier[2]
    feedback, weight = head.feedback.weight, head.weight
    assert F.cosine_similarity(feedback.flatten(), weight.flatten(), dim=0) > 0.8


@pytest.mark.parametrize("direct", [False, True], ids=["layer", "network"])
def test_an_interrupted_run_mirrors_as_one_that_is_not(quick, run, same, tmp_path, direct):
    config = quick(rule=dfa.WeightMirror(direct=direct))
    whole = run(config, tmp_path, checkpoint_steps=3)
    other = run(replace(config, mirror_rate=0.2))
    assert not same(whole.model, other.model)
    list_checkpoints(tmp_path)[-1].unlink()
    torch.manual_seed(777)
    assert same(run(config, tmp_path, resume=True).model, whole.model)


@pytest.mark.parametrize("clip, rule", [(1e-2, dfa.BP()), (1e-2, dfa.DFA()), (1e9, dfa.BP())])
def test_clip_limits_the_norm(one_step, clip, rule):
    def norm(moved):
        return torch.cat([m.double().flatten() for m in moved.values()]).norm().item()

    free, clipped = norm(one_step(lr=1.0, rule=rule, clip=None)), norm(one_step(lr=1.0, rule=rule, clip=clip))
    assert free > 0.1
    assert clipped == pytest.approx(min(clip, free), rel=1e-3)


def test_weight_decay_is_an_l2_penalty(one_step):
    torch.manual_seed(0)
    weights = dict(MLP(hidden=(16,)).build((1, 8, 8), 10).named_parameters())
    free, decayed = one_step(lr=0.1), one_step(lr=0.1, weight_decay=0.5)
    for name in free:
        torch.testing.assert_close(decayed[name] - free[name], 0.1 * 0.5 * weights[name].detach(), rtol=1e-3, atol=1e-7)


def test_precision(quick, run):
    conv = SmallConv(channels=(4,), head=(8,), head_norm=True)
    results = {
        p: run(quick(model=conv, rule=dfa.CBDFA(), precision=p)) for p in ("32-true", "bf16-mixed", "64-true", "auto")
    }
    weights = {p: r.model.get_parameter("classifier.0.weight").detach() for p, r in results.items()}
    assert [w.dtype for w in weights.values()] == [torch.float32, torch.float32, torch.float64, torch.float32]
    torch.testing.assert_close(weights["64-true"].float(), weights["32-true"], rtol=1e-3, atol=1e-4)
    assert 1e-5 < (weights["bf16-mixed"] - weights["32-true"]).abs().max() < 0.1
    assert any(torch.equal(weights["auto"], weights[p]) for p in ("32-true", "bf16-mixed"))


@pytest.mark.parametrize(
    "setting, device, expected",
    [("auto", "cpu", (True, True, False)), (True, "cuda", (True, True, True)), (False, "cpu", (False, False, False))],
)
def test_channels_last_for_maps_of_8_and_larger(quick, setting, device, expected):
    images = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8)
    part = ImageSet(images, torch.arange(20) % 2, ("a", "b"))
    model = SmallConv(channels=(4, 4, 4), head=(8,))
    if device == "cpu":
        config = quick(train_size=None, epochs=1, batch_size=10, model=model, rule=dfa.FA(), channels_last=setting)
        network = fit(config, dataset=Dataset("two", part, part), progress=False).model
    else:
        network = model.build((3, 16, 16), 2)
        lay_out(network, torch.zeros(1, 3, 16, 16), torch.device(device))
        assert network.training
    weights = [m.weight for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert tuple(w.is_contiguous(memory_format=torch.channels_last) for w in weights) == expected


def test_layout_changes_no_result(quick, run):
    config = quick(model=SmallConv(channels=(4, 4), head=(8,)), rule=dfa.DFA())
    first, second = (run(replace(config, channels_last=c)).model.state_dict() for c in (True, False))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-5)


def test_angles_are_logged(quick, run, same, tmp_path):
    settings = {"epochs": 3, "rule": dfa.DFA(), "validation": 100}
    result = run(quick(alignment=2, **settings), tmp_path)
    with open(tmp_path / "angles.csv") as file:
        rows = list(csv.DictReader(file))
    assert [r["epoch"] for r in rows] == ["2"] * 3  # the layers' weights
    degrees = {r["parameter"]: float(r["degrees"]) for r in rows}
    assert degrees["classifier.6.weight"] < 1e-3 and 5 < degrees["classifier.0.weight"] < 120
    assert [a.degrees for a in result.angles] == pytest.approx(list(degrees.values()))
    # Looking changes nothing.
    assert same(result.model, run(quick(**settings)).model)


def test_angles_of_bp_are_zero(quick, run, tmp_path):
    angles = run(quick(alignment=1), tmp_path).angles
    assert {a.epoch for a in angles} == {1, 2} and all(a.degrees == 0 for a in angles)
    assert "classifier.0.weight,0\n" in (tmp_path / "angles.csv").read_text()


def test_no_angles_no_file(quick, run, tmp_path):
    assert run(quick(epochs=1), tmp_path).angles == []
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".lock",
        "checkpoint-00000008.ckpt",
        "config.json",
        "metrics.csv",
        "model.safetensors",
    ]


@pytest.mark.parametrize("rule", [dfa.DFA(), dfa.BDFA(), dfa.FA()], ids=repr)
def test_the_defaults_train_a_wide_network_by_any_rule(run, rule):
    history = run(TrainConfig(model=MLP(), rule=rule, epochs=5)).history
    assert history[-1].test_top1 > 85  # without the default clip it stays at 10 to 30


@pytest.mark.parametrize("lr", [1e12, 1e30])
def test_divergence_is_an_error_that_advises(quick, run, tmp_path, lr):
    with pytest.raises(
        DivergedError, match=r"loss is (nan|inf) in epoch 1, step \d.* rate 1e\+\d\d.*--clip \(it is 10\)"
    ):
        run(quick(lr=lr, schedule="constant"), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_nothing_to_learn_is_refused(quick, run):
    with pytest.raises(TrainingError, match="every layer is frozen"):
        run(quick(rule=dfa.Frozen()))


def test_frozen_head_stays(quick, run):
    config = quick(model=SmallConv(channels=(4,), head=(8,)), rule={"classifier.*": dfa.Frozen()}, epochs=1)
    torch.manual_seed(config.seed)
    before, after = config.model.build((1, 8, 8), 10).state_dict(), run(config).model.state_dict()
    assert torch.equal(before["classifier.0.weight"], after["classifier.0.weight"])
    assert not torch.equal(before["features.0.weight"], after["features.0.weight"])


def test_a_rule_a_part(quick, run):
    rule = {"classifier.3": dfa.DFA(), "classifier.6": dfa.BDFA()}
    table = dfa.summary(run(quick(rule=rule, epochs=1)).model)
    assert {row.layer: (row.rule, row.feedback) for row in table.rows} == {
        "classifier.0": ("BP", None),
        "classifier.3": ("DFA", (10, 16)),
        "classifier.6": ("BDFA", (10, 16)),
    }


@pytest.mark.parametrize("size, batch, processes, expected", [
    (101, 50, 1, True), (102, 50, 1, False), (100, 50, 1, False), (1, 50, 1, False), (3, 1, 1, False),
    (102, 50, 2, True), (103, 50, 2, True), (104, 50, 2, False), (100, 50, 2, False),
])  # fmt: skip
def test_a_share_of_one_image_is_left_out(quick, size, batch, processes, expected):
    images = ImageSet(torch.zeros(size, 1, 1, 1, dtype=torch.uint8), torch.zeros(size, dtype=torch.int64), ("a",))
    assert _drop(quick(batch_size=batch), images, processes) is expected


def test_batch_norm_survives_one_image_too_many(quick, run):
    model = SmallConv(channels=(4,), head=(8,), head_norm=True)
    result = run(quick(train_size=101, model=model, epochs=1))
    assert result.model.get_buffer("features.1.num_batches_tracked") == 2


def test_evaluate_is_by_the_image(digits):
    dataset = digits.test
    options = {"mean": torch.tensor([0.3]), "std": torch.tensor([0.4]), "shuffle": False}
    network = SmallConv(channels=(4,), head=(8,)).build((1, 8, 8), 10).train()
    loss, top1, top5 = evaluate(network, Batches(dataset, 100, **options), 10, F.cross_entropy)
    assert network.training
    network.eval()
    with torch.no_grad():
        logits = network(torch.cat([x for x, _ in Batches(dataset, 100, **options).epoch(0)]))
    order = logits.argsort(1, descending=True)
    hits = order == dataset.labels[:, None]
    assert loss == pytest.approx(F.cross_entropy(logits, dataset.labels).item(), rel=1e-5)
    assert top1 == pytest.approx(100 * hits[:, :1].sum().item() / len(dataset), rel=1e-5)
    assert top5 == pytest.approx(100 * hits[:, :5].sum().item() / len(dataset), rel=1e-5)
    evaluate(network, Batches(dataset, 100, **options), 10, F.cross_entropy)
    assert not network.training


def test_few_classes_have_no_top5(quick):
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    part = ImageSet(images, torch.arange(40) % 2, ("a", "b"))
    row = fit(
        quick(train_size=None, batch_size=10, epochs=1), dataset=Dataset("two", part, part), progress=False
    ).history[0]
    assert math.isnan(row.test_top5) and 0 <= row.test_top1 <= 100


def test_describe_leaves_out_what_was_not_measured(quick, run):
    config = quick(validation=100)
    first, last = run(config).history
    assert (
        "epoch 1/2: train " in describe(first, config)
        and ", val " in describe(first, config)
        and "test" not in describe(first, config)
    )
    assert ", test " in describe(last, config)


def test_data_is_loaded_by_name(quick, same, digits, monkeypatch):
    from torchdfa.training import loop

    asked = []
    monkeypatch.setattr(loop, "load_any", lambda name, root: asked.append((name, root)) or digits)
    fit(quick(data="some", data_root="/there", epochs=1), progress=False)
    assert asked == [("some", "/there")]


def test_epochs_are_reported(quick, run, capsys):
    seen = []
    history = run(quick(), progress=True, on_epoch=seen.append).history
    assert seen == history
    assert capsys.readouterr().err.count("epoch ") == 2


def test_signals_are_given_back(quick, run):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    run(quick(epochs=1))
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_runs_beside_the_main_thread(quick, run, same):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(quick())))
    thread.start()
    thread.join()
    assert same(results[0].model, run(quick()).model)


@pytest.mark.parametrize("options", [{"keep": 0}, {"checkpoint_steps": 0}, {"resume": True}])
def test_wrong_options_are_refused(quick, run, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        run(quick(), **options)


def test_the_configuration_is_kept(quick, run, tmp_path, read_json):
    config = quick(epochs=1, rule=dfa.CBDFA())
    run(config, tmp_path / "a" / "b")
    assert read_json(tmp_path / "a" / "b" / "config.json") == to_dict(config)
