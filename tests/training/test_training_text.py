"""Language models in the training loop: what an epoch is, what is scored, and that a run resumes bit for bit."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

import torchdfa as dfa
from torchdfa.cli import main
from torchdfa.data import Corpus, DataError
from torchdfa.language import GPT, RecurrentLM
from torchdfa.training import Interrupted, TrainConfig, differences, fit, load_weights, to_dict
from torchdfa.training.checkpoint import list_checkpoints
from torchdfa.training.material import prepare

LSTM = RecurrentLM(kind="lstm", layers=2, width=12)
SMALL_GPT = GPT(layers=2, heads=2, width=12, context=16)
HYBRID = {"recurrent": dfa.HybridDFA(density=0.5, chunk=4), "head": dfa.ModuleDFA(density=0.5)}


def text(count, seed):
    """Make a text in which a token tells the next one more often than not."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randint(7, (count,), generator=draw) * (torch.rand(count, generator=draw) < 0.1)
    return (torch.arange(count) * 3 + noise) % 7


CORPUS = Corpus("tiny-shakespeare", tuple("abcdefg"), text(1500, 0), text(200, 1), text(301, 2))


def config(**settings):
    plain = {"data": "tiny-shakespeare", "model": LSTM, "optimizer": "adam", "lr": 0.02, "weight_decay": 0.0}
    return TrainConfig(**(plain | {"epochs": 2, "batch_size": 5, "sequence": 16} | settings))


def trained(out=None, corpus=CORPUS, **settings):
    options = {k: settings.pop(k) for k in ("resume", "checkpoint_steps", "on_epoch") if k in settings}
    return fit(config(**settings), out, progress=False, dataset=corpus, accelerator="cpu", **options)


@pytest.mark.parametrize(
    "model, rule",
    [
        (LSTM, dfa.BP()),
        (LSTM, HYBRID),
        (LSTM, dfa.DFA()),
        (LSTM, dfa.HybridDFA(direct="between", chunk=4)),
        (RecurrentLM(kind="gru", width=12), dfa.ModuleDFA(density=0.5)),
        (SMALL_GPT, dfa.HybridDFA(direct="between")),
        (SMALL_GPT, dfa.KolenPollack(direct=True)),
    ],
    ids=str,
)
def test_language_models_learn(model, rule):
    result = trained(model=model, rule=rule, epochs=3, alignment=1)
    first, *_, last = result.history
    assert last.test_loss < 0.75 * math.log(7) and last.test_loss < first.test_loss
    assert math.isnan(last.test_top5) and math.isnan(last.val_loss)
    learned = {a.parameter for a in result.angles}
    assert "embedding.weight" in learned and not any("feedback" in name for name in learned)
    assert last.trunk_angle < 1e-3 if rule == dfa.BP() else last.trunk_angle > 1


def test_the_scores_are_those_of_a_plain_pass_over_the_text():
    result = trained(validation=101, rule=dfa.DFA())
    last = result.history[-1]
    for part, loss, top1 in (
        (CORPUS.validation[:101], last.val_loss, last.val_top1),
        (CORPUS.test, last.test_loss, last.test_top1),
    ):
        streams = 50  # of which each begins without a state
        length = (len(part) - 1) // streams
        x, y = (part[i : i + streams * length].view(streams, length) for i in (0, 1))
        with torch.no_grad():
            logits = result.model(x)[0].flatten(0, 1)
        assert loss == pytest.approx(F.cross_entropy(logits, y.flatten()).item(), rel=1e-5)
        assert top1 == pytest.approx(100 * (logits.argmax(1) == y.flatten()).float().mean().item(), rel=1e-5)


def test_a_state_is_handed_on_within_an_epoch_and_not_beyond():
    """One stream, no learning to speak of: the epoch's loss is that of one pass over the whole text."""
    short = CORPUS.train[:81]
    still = {
        "lr": 1e-12,
        "batch_size": 1,
        "train_size": 81,
        "schedule": "constant",
        "sequence": 16,
        "precision": "64-true",
    }
    result = trained(**still)
    with torch.no_grad():
        logits, _ = result.model(short[:80].view(1, -1))
    expected = F.cross_entropy(logits.flatten(0, 1), short[1:]).item()
    assert [row.train_loss for row in result.history] == pytest.approx([expected] * 2, rel=2e-7)
    with torch.no_grad():
        apart = result.model(short[:80].view(5, 16))[0].flatten(0, 1)
    assert abs(F.cross_entropy(apart, short[1:]).item() - expected) > 1e-5 * expected


@pytest.mark.parametrize("model, rule", [(LSTM, HYBRID), (SMALL_GPT, dfa.KolenPollack())], ids=["lstm", "gpt"])
def test_an_interrupted_run_ends_in_the_same_weights(model, rule, same, tmp_path):
    settings = {"model": model, "rule": rule, "checkpoint_steps": 4, "alignment": 1}
    whole = trained(tmp_path / "a", **settings)
    trained(tmp_path / "b", **settings)
    paths = list_checkpoints(tmp_path / "b")
    paths[-1].unlink()  # the one at the end; that before it lies within the last epoch
    assert int(paths[-2].stem.partition("-")[2]) % len(list_batches(model)) != 0
    resumed = trained(tmp_path / "b", resume=True, **settings)
    assert same(whole.model, resumed.model) and len(resumed.history) == 2
    assert [r.train_loss for r in whole.history] == [r.train_loss for r in resumed.history]


def list_batches(model):
    class Fabric:
        device, global_rank, world_size = torch.device("cpu"), 0, 1

    return prepare(config(model=model), CORPUS, Fabric).batches  # type: ignore[arg-type]


def test_parts_of_the_text_and_of_the_model():
    assert len(list_batches(LSTM)) == -(-1499 // 5 // 16)
    result = trained(train_size=600, vocabulary=4, head_lr=0.0, rule=HYBRID, epochs=1)
    assert result.model.head.weight.shape == (4, 12)
    torch.manual_seed(0)
    assert torch.equal(result.model.head.weight, LSTM.build(4).head.weight)
    with pytest.raises(DataError, match="train_size=9000, but tiny-shakespeare has 1500 tokens"):
        trained(train_size=9000)
    with pytest.raises(DataError, match="validation=201, but tiny-shakespeare has 200 tokens"):
        trained(validation=201)
    with pytest.raises(DataError, match="tiny-shakespeare: 20 tokens make no batch of 5 windows of 16"):
        trained(train_size=20, model=SMALL_GPT)


def test_scores_of_some_epochs_alone():
    tests = [row.test_loss for row in trained(epochs=5, score_every=2).history]
    assert [math.isnan(loss) for loss in tests] == [True, False, True, False, False]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"model": dfa.models.MLP()}, "expected a language model for the text tiny-shakespeare"),
        ({"data": "digits"}, "expected a network, as torchdfa.models.MLP"),
        ({"model": SMALL_GPT, "sequence": 17}, "sequence=17, expected 16 or less"),
        ({"loss": "binary"}, "expected 'cross_entropy' for the text"),
        ({"augment": True}, "expected false for the text"),
        ({"vocabulary": 1}, "vocabulary=1, expected 2 or more"),
        ({"sequence": 0}, "sequence=0, expected 1 or more"),
    ],
)
def test_settings_that_don_t_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare/input.txt").write_text("To be, or not to be, that is the question.\n" * 60)
    monkeypatch.setenv("TORCHDFA_DATA", str(tmp_path))
    command = ["train", "--data", "tiny-shakespeare", "--model", "GPT", "--model.layers", "2", "--model.width", "16"]
    command += ["--rule", "HybridDFA", "--rule.density", "0.5", "--optimizer", "adam", "--lr", "0.01", "--epochs", "1"]
    out = tmp_path / "run"
    assert main([*command, "--batch-size", "4", "--sequence", "32", "--tensorboard", "false", "--out", str(out)]) == 0
    assert "test perplexity" in capsys.readouterr().out
    stored = json.loads((out / "config.json").read_text())
    assert stored["model"]["class_path"] == "torchdfa.language.GPT"
    load_weights(dfa.convert(GPT(layers=2, width=16).build(len(set("To be, or not to be, that is the question.\n"))),
                             dfa.HybridDFA(density=0.5), example=torch.zeros(1, 2, dtype=torch.int64)),
                 out / "model.safetensors")  # fmt: skip
    assert main(["train", "--resume", str(out), "--tensorboard", "false"]) == 0
    assert main([*command[:3], "--out", str(tmp_path / "b")]) == 2
    assert "expected a language model for the text" in capsys.readouterr().err


def test_a_signal_ends_a_run_that_can_go_on(tmp_path, same):
    import signal

    def stop(result):
        if result.epoch == 1:
            signal.raise_signal(signal.SIGINT)  # os.kill would end the tests on Windows

    with pytest.raises(Interrupted):
        trained(tmp_path / "a", on_epoch=stop)
    assert same(trained(tmp_path / "a", resume=True).model, trained().model)


def test_configurations_of_texts_are_told_apart():
    assert differences(to_dict(config()), to_dict(config(sequence=8))) == ["sequence: 16, 8"]
