import json
import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import torchdfa as dfa
from torchdfa.models import MLP, SmallConv
from torchdfa.training import (
    CheckpointError,
    Interrupted,
    TrainingError,
    fit,
    load_weights,
    loop,
    save_weights,
    to_dict,
)
from torchdfa.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from torchdfa.training.sealed import read_sealed, seal

CONFIG = {"lr": 0.1, "model": {"init_args": {"width": 1}}}


@pytest.fixture
def run(digits):
    return lambda config, out=None, **options: fit(config, out, **({"dataset": digits, "progress": False} | options))


@pytest.fixture
def stop_after(monkeypatch):
    """Have SIGINT come while the n-th checkpoint is written."""

    def arrange(number):
        count = 0

        def save(*arguments):
            nonlocal count
            count += 1
            if count == number:
                signal.raise_signal(signal.SIGINT)
            return save_checkpoint(*arguments)

        monkeypatch.setattr(loop, "save_checkpoint", save)

    return arrange


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "truncated":
        data = data[: len(data) // 2]
    elif how == "empty":
        data = bytearray()
    elif how == "text":
        data = bytearray(b"not a checkpoint")
    else:
        data[: len(data) // 20] = bytes(b ^ 0xFF for b in data[: len(data) // 20])
    path.write_bytes(data)


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_keeps_the_newest(tmp_path, keep):
    (tmp_path / "checkpoint-note.txt").write_text("mine")
    for number in (1, 2, 10, 100_000_000):
        save_checkpoint(tmp_path, number, {"n": number}, CONFIG, keep)
    numbers = [int(p.stem.split("-")[1]) for p in list_checkpoints(tmp_path)]
    assert numbers == [1, 2, 10, 100_000_000][-keep:]
    assert load_checkpoint(tmp_path, CONFIG) == {"n": 100_000_000}
    assert (tmp_path / "checkpoint-note.txt").exists()


def test_a_checkpoint_outlives_damaged_later_ones(tmp_path):
    save_checkpoint(tmp_path, 6, {"n": 6}, CONFIG, 1)
    (tmp_path / "checkpoint-00000009.ckpt").write_bytes(b"damaged")
    save_checkpoint(tmp_path, 7, {"n": 7}, CONFIG, 1)
    assert names(tmp_path) == ["checkpoint-00000007.ckpt"]


def test_no_checkpoint_yet(tmp_path):
    assert load_checkpoint(tmp_path, CONFIG) is None
    assert load_checkpoint(tmp_path / "none", CONFIG) is None


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "text"])
def test_a_damaged_checkpoint_is_skipped(tmp_path, how):
    for number in (3, 6):
        save_checkpoint(tmp_path, number, {"n": number, "w": torch.zeros(1000)}, CONFIG, 2)
    damage(tmp_path / "checkpoint-00000006.ckpt", how)
    with pytest.warns(UserWarning, match=r"damaged.*going on from checkpoint-00000003\.ckpt.*-00000006\.ckpt: "):
        state = load_checkpoint(tmp_path, CONFIG)
    assert state is not None and state["n"] == 3
    damage(tmp_path / "checkpoint-00000003.ckpt", how)
    with pytest.raises(
        CheckpointError, match=r"none of its checkpoints can be read .*00006\.ckpt: .*00003\.ckpt: .*Start anew"
    ):
        load_checkpoint(tmp_path, CONFIG)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path(os.environ["TORCHDFA_TEST_BOMB"]),))


@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_code_in_a_checkpoint_does_not_run(tmp_path, monkeypatch, write):
    monkeypatch.setenv("TORCHDFA_TEST_BOMB", str(tmp_path / "exploded"))
    content = {"format": 1, "torchdfa": "0", "config": json.dumps(CONFIG), "state": Bomb()}
    with open(tmp_path / "checkpoint-00000001.ckpt", "wb") as file:
        torch.save(content, file) if write == "torch" else pickle.dump(content, file)
    with pytest.raises(CheckpointError, match="can't resume"):
        load_checkpoint(tmp_path, CONFIG)
    assert names(tmp_path) == ["checkpoint-00000001.ckpt"]


def test_another_format_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, 1, {}, CONFIG, 1)
    path.write_bytes(seal(read_sealed(path) | {"format": 3, "torchdfa": "9.9"}))
    with pytest.raises(CheckpointError, match=r"format 3 \(torchdfa 9\.9\).*reads format 2"):
        load_checkpoint(tmp_path, CONFIG)
    for content in ({"some": 1}, [1], {"format": 2, "config": "[]", "state": {}}):
        path.write_bytes(seal(content))
        with pytest.raises(CheckpointError, match="no torchdfa checkpoint"):
            load_checkpoint(tmp_path, CONFIG)


def test_other_settings_are_refused_by_name(tmp_path):
    save_checkpoint(tmp_path, 1, {"n": 1}, CONFIG | {"data_root": "/a"}, 1)
    other = {"lr": 0.2, "model": {"init_args": {"width": 2}}, "data_root": "/b"}
    with pytest.raises(CheckpointError, match=r"lr: 0\.2, 0\.1; model\.init_args\.width: 2, 1\.$"):
        load_checkpoint(tmp_path, other)
    assert load_checkpoint(tmp_path, CONFIG | {"data_root": "/elsewhere"}) == {"n": 1}
    # What a later version adds is no difference as long as it is the default.
    assert load_checkpoint(tmp_path, CONFIG | {"sequence": 64}) == {"n": 1}
    with pytest.raises(CheckpointError, match="sequence: 65, 64"):
        load_checkpoint(tmp_path, CONFIG | {"sequence": 65})


def test_a_runs_checkpoints(quick, run, tmp_path):
    config = quick(rule=dfa.CBDFA(), alignment=1)
    result = run(config, tmp_path, checkpoint_steps=3, keep=3)
    assert [p.name for p in list_checkpoints(tmp_path)] == [f"checkpoint-{n:08d}.ckpt" for n in (11, 14, 16)]
    content = read_sealed(tmp_path / "checkpoint-00000016.ckpt")
    assert set(content) == {"format", "torchdfa", "config", "state"}
    assert json.loads(content["config"]) == to_dict(config) and content["torchdfa"] == dfa.__version__
    state = content["state"]
    assert set(state) == {"model", "optimizer", "place", "history", "angles", "random", "carried"}
    assert all(torch.equal(v, state["model"][k]) for k, v in result.model.state_dict().items())
    assert any("feedback" in name for name in state["model"])
    assert len(state["history"]) == 2 and {a["epoch"] for a in state["angles"]} == {1, 2}
    assert (state["place"]["epoch"], state["place"]["step"]) == (2, 0)
    middle = read_sealed(tmp_path / "checkpoint-00000014.ckpt")["state"]["place"]
    assert (middle["epoch"], middle["step"], middle["seen"], len(middle["seconds"])) == (1, 6, 300, 6)


@pytest.mark.parametrize("optimizer, precision", [("sgd", "32-true"), ("adam", "64-true"), ("rmsprop", "bf16-mixed")])
@pytest.mark.parametrize("number", [1, 3, 6])  # saved after step 3, after epoch 1, after epoch 2
def test_an_interrupted_run_goes_on_bit_for_bit(
    quick, run, same, stop_after, monkeypatch, tmp_path, optimizer, precision, number
):
    config = quick(
        epochs=3, optimizer=optimizer, precision=precision, lr=0.01, rule=dfa.DFA(), alignment=2, validation=60
    )
    whole = run(config)
    stop_after(number)
    with pytest.raises(Interrupted, match=r"stopped after epoch \d, step \d"):
        run(config, tmp_path, checkpoint_steps=3)
    assert not (tmp_path / "model.safetensors").exists()
    monkeypatch.undo()
    torch.manual_seed(777)
    rest = run(config, tmp_path, resume=True)
    assert same(rest.model, whole.model)
    assert [(r.epoch, r.lr, r.train_top1, r.val_top1) for r in rest.history] == [
        (r.epoch, r.lr, r.train_top1, r.val_top1) for r in whole.history
    ]
    assert [r.train_loss for r in rest.history] == [r.train_loss for r in whole.history]
    assert rest.angles == whole.angles
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 3


def test_an_interruption_at_an_epochs_last_step(quick, run, same, stop_after, monkeypatch, tmp_path):
    config = quick()
    stop_after(7)  # the flag is set while the checkpoint of the last step but one is written
    with pytest.raises(Interrupted, match="epoch 0, step 8"):
        run(config, tmp_path, checkpoint_steps=1)
    monkeypatch.undo()
    rest = run(config, tmp_path, resume=True)
    assert same(rest.model, run(config).model) and len(rest.history) == 2


def test_resuming_a_finished_run_changes_nothing(quick, run, same, tmp_path):
    done = run(quick(), tmp_path)
    before = (tmp_path / "metrics.csv").read_bytes()
    again = run(quick(), tmp_path, resume=True)
    assert same(done.model, again.model) and repr(again.history) == repr(done.history)
    assert (tmp_path / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize("there", ["nothing", "config"])
def test_resume_without_a_checkpoint_starts_from_the_beginning(quick, run, same, tmp_path, there):
    out = tmp_path / "run"
    if there == "config":
        out.mkdir()
        (out / "config.json").write_text(json.dumps(to_dict(quick())))
    assert same(run(quick(), out, resume=True).model, run(quick()).model)
    assert (out / "config.json").exists() and (out / "model.safetensors").exists()


@pytest.mark.parametrize("checkpoints", [True, False])
@pytest.mark.parametrize(
    "changes, named",
    [
        ({"lr": 0.9}, r"lr: 0\.9, 0\.05"),
        ({"rule": dfa.DFA()}, r"rule\.class_path: '.*DFA', '.*BP'"),
        ({"model": MLP(hidden=(8,))}, r"model\.init_args\.hidden: \[8\], \[16, 16\]"),
        ({"seed": 5, "epochs": 3}, r"epochs: 3, 2; seed: 5, 0"),
    ],
)
def test_resume_with_other_settings_is_refused(quick, run, tmp_path, changes, named, checkpoints):
    run(quick(), tmp_path)
    for path in [] if checkpoints else list_checkpoints(tmp_path):
        path.unlink()
    with pytest.raises(CheckpointError, match=named):
        run(quick(**changes), tmp_path, resume=True)


def test_data_may_have_moved(quick, run, tmp_path):
    run(quick(data_root="/a"), tmp_path)
    assert len(run(quick(data_root="/b"), tmp_path, resume=True).history) == 2


def test_a_damaged_configuration_is_named(quick, run, tmp_path):
    run(quick(), tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        run(quick(), tmp_path, resume=True)


def test_a_run_is_not_overwritten(quick, run, tmp_path):
    run(quick(epochs=1), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(TrainingError, match=r"holds a run already.*--resume.*--out"):
        run(quick(epochs=1), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_resume_skips_a_damaged_checkpoint(quick, run, same, tmp_path):
    whole = run(quick(), tmp_path, checkpoint_steps=3)
    damage(tmp_path / "checkpoint-00000016.ckpt", "flipped")
    with pytest.warns(UserWarning, match="skipped a damaged checkpoint"):
        rest = run(quick(), tmp_path, resume=True)
    assert same(rest.model, whole.model)


@pytest.mark.parametrize(
    "rule", [dfa.BP(), dfa.FA(), dfa.DFA(), dfa.BDFA(), dfa.CBDFA(storage="seeded")], ids=lambda r: type(r).__name__
)
def test_weights_round_trip_with_feedback(tmp_path, rule):
    x = torch.rand(4, 1, 8, 8)

    def build(seed):
        torch.manual_seed(seed)
        own = replace(rule, seed=seed) if hasattr(rule, "seed") else rule
        return dfa.convert(SmallConv(channels=(4,), head=(8, 8)).build((1, 8, 8), 3), own, example=x)

    def gradients(model):
        model.zero_grad()
        model.train()(x).square().sum().backward()
        return [p.grad for p in model.parameters()]

    first, second = build(1), build(2)
    save_weights(first, tmp_path / "w.safetensors", CONFIG)
    load_weights(second, tmp_path / "w.safetensors")
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(gradients(first), gradients(second), strict=True))


def test_weights_carry_their_configuration(tmp_path):
    model = torch.nn.Linear(2, 2)
    save_weights(model, tmp_path / "w", CONFIG)
    with safe_open(tmp_path / "w", "pt") as file:
        assert json.loads(file.metadata()["torchdfa"]) == {"version": dfa.__version__, "config": CONFIG}


def test_equal_weights_are_equal_files(tmp_path):
    model = torch.nn.Linear(2, 2)
    for i in range(16):
        save_weights(model, tmp_path / f"{i}", CONFIG)
    assert len({p.read_bytes() for p in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize(
    "network, rule, named",
    [
        (MLP(hidden=(8, 8)), dfa.BP(), r"classifier\.2\.feedback\S*: none, \("),
        (MLP(hidden=(8, 8)), dfa.BDFA(), r"classifier\.2\.feedback"),
        (MLP(hidden=(9, 8)), dfa.DFA(), r"classifier\.0\.weight: \(9, 64\), \(8, 64\)"),
        (MLP(hidden=(8,)), dfa.DFA(), r"classifier\.4\.weight: none, \(3, 8\)"),
    ],
)
def test_weights_of_another_model_or_rule_are_refused(tmp_path, network, rule, named):
    def build(network, rule):
        return dfa.convert(network.build((1, 8, 8), 3), rule)

    save_weights(build(MLP(hidden=(8, 8)), dfa.DFA()), tmp_path / "w", CONFIG)
    model = build(network, rule)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=named):
        load_weights(model, tmp_path / "w")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 100])
def test_unreadable_weights_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "w").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"can't read weights from .*w: "):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "w")
