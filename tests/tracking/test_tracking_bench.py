import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock
from scenes import SMALL

import torchdfa as dfa
from torchdfa.data.errors import DataError
from torchdfa.tracking import TrackerConfig, bench, pretrain
from torchdfa.tracking.bench import METHODS, Bench, BenchConfig, Run, Trial
from torchdfa.tracking.head import read_head
from torchdfa.tracking.peers import OpenCVTracker
from torchdfa.tracking.pretrain import PretrainConfig, choose_head, videos_of
from torchdfa.tracking.report import _differences, by_seed, write_report
from torchdfa.tracking.scores import Score
from torchdfa.tracking.sequences import load_sequences


@pytest.fixture(autouse=True)
def no_weights(monkeypatch, trunk):
    monkeypatch.setattr(bench, "load_trunk", lambda *_: trunk)
    monkeypatch.setattr(pretrain, "load_trunk", lambda *_: trunk)


@pytest.fixture
def config(otb):
    return BenchConfig(
        methods=("BP 128", "BDFA 128", "KCF"), seeds=2, tracker=TrackerConfig(**SMALL), data_root=str(otb)
    )


def test_runs_reports_and_runs_nothing_twice(config, tmp_path, monkeypatch):
    out = tmp_path / "runs"
    said = []
    b = Bench(config, out)
    b.run(lambda text, done, total: said.append(done / total))
    assert said == sorted(said) and said[-1] <= 1
    runs = b.runs()
    assert len(runs) == 2 * 2 * 2 + 2 and all(r.score.p20 == 1 for r in runs if r.method != "KCF")
    assert sorted(p.name for p in (out / "BDFA-128" / "seed1").iterdir() if p.name[0] != ".") == [
        "Left.txt", "Left_times.txt", "Right.txt", "Right_times.txt", "settings.json"
    ]  # fmt: skip
    page = write_report(b).read_text()
    assert "| BDFA 128 | 2 | 2 | 0." in page and "BDFA 128 less BP 128: AUC" in page and "| FM | 1 |" in page
    assert (out / "plots.png").stat().st_size > 10000 and (out / "frames.png").stat().st_size > 10000
    with open(out / "results.csv") as file:
        assert len(list(csv.DictReader(file))) == 10
    monkeypatch.setattr(bench, "Tracker", None)
    monkeypatch.setattr(bench, "OpenCVTracker", None)
    Bench(config, out).run()
    (out / "BP-128" / "seed1" / "Right.txt").unlink()
    with pytest.raises(TypeError):
        Bench(config, out).run()


def test_seeds_differ_and_a_run_repeats(config, tmp_path):
    for out in ("a", "b"):
        Bench(replace(config, methods=("BP 64",)), tmp_path / out).run()
    texts = {(o, s): (tmp_path / o / "BP-64" / f"seed{s}" / "Left.txt").read_text() for o in "ab" for s in (0, 1)}
    assert texts["a", 0] == texts["b", 0] != texts["a", 1] == texts["b", 1]


def test_other_settings_are_refused(config, tmp_path):
    one = replace(config, methods=("BP 128",), seeds=1, sequences=("Left",))
    Bench(one, tmp_path).run()
    other = replace(one, tracker=replace(one.tracker, bins=2))
    with pytest.raises(DataError, match="holds results of other settings"):
        Bench(other, tmp_path).run()


def test_a_first_annotation_outside_the_frame_is_named(config, otb, tmp_path):
    path = otb / "Left" / "groundtruth_rect.txt"
    path.write_text("500,2,30,30\n" + path.read_text().split("\n", 1)[1])
    with pytest.raises(DataError, match="Left: its first annotation, counted from 0: the box 499,1,30,30 lies outside"):
        Bench(replace(config, methods=("KCF",)), tmp_path / "runs").run()


def test_a_result_of_another_length_is_named(config, tmp_path):
    one = replace(config, methods=("KCF",), sequences=("Left",))
    Bench(one, tmp_path).run()
    path = tmp_path / "KCF" / "seed0" / "Left.txt"
    path.write_text("1,1,5,5\n")
    with pytest.raises(DataError, match="found 1 boxes, expected 8"):
        Bench(one, tmp_path).runs()


def test_tuning_tries_nine_settings_of_each_on_the_tuning_half(config, tmp_path, monkeypatch):
    class Marked:
        """Off by more, the further the settings are from one of the trials."""

        def __init__(self, settings, trunk):
            rule = settings.rule
            strength = rule.scale if hasattr(rule, "scale") else 10 / settings.last_lr
            lr = settings.first_lr / (1 if hasattr(rule, "scale") else strength) / SMALL["first_lr"]
            self.off = abs(np.log(lr / 3)) + abs(np.log(strength / (100 if hasattr(rule, "scale") else 0.3)))

        def init(self, frame, box):
            self.box = np.array(box) + np.array([self.off, 0, 0, 0])

        def update(self, frame):
            return tuple(self.box), 1.0

    monkeypatch.setattr(bench, "Tracker", Marked)
    config = replace(config, tune=True, part="report", methods=("BP 128", "BDFA 128"))
    b = Bench(config, tmp_path)
    b.run()
    assert {n: len(b.searched(n)) for n in config.methods} == {"BP 128": 9, "BDFA 128": 9}
    assert b.chosen("BDFA 128") == Trial(3.0, 100) and b.chosen("BP 128") == Trial(3.0, 0.3)
    assert {r.sequence for r in b.runs()} == {"Right"}  # chosen on Left
    assert "lr × 3, hidden × 100" in write_report(b).read_text()


def test_rates_are_chosen_when_other_processes_trials_are_done(config, tmp_path, monkeypatch):
    """The last trial lies with another process; it is waited for, then taken over when that dies."""

    class Still:
        def __init__(self, settings, trunk):
            self.off = 0 if settings.rule.scale == 100 and settings.first_lr == 3 * SMALL["first_lr"] else 5

        def init(self, frame, box):
            self.box = np.array(box) + np.array([self.off, 0, 0, 0])

        def update(self, frame):
            return tuple(self.box), 1.0

    monkeypatch.setattr(bench, "Tracker", Still)
    b = Bench(replace(config, tune=True, methods=("BDFA 128",)), tmp_path)
    folder = b._search_folder("BDFA 128", Trial(3.0, 100))
    folder.mkdir(parents=True)
    other = FileLock(folder / ".Left.lock")
    other.acquire()
    waited = []

    def wait(seconds):
        waited.append(seconds)
        assert not (tmp_path / "BDFA-128").exists() and len(b.searched("BDFA 128")) == 8
        if len(waited) == 2:
            other.release()

    monkeypatch.setattr(bench.time, "sleep", wait)
    b.run()
    assert len(waited) == 2 and b.chosen("BDFA 128") == Trial(3.0, 100)
    assert (
        json.loads((tmp_path / "BDFA-128" / "seed0" / "settings.json").read_text())["rule"]["init_args"]["scale"] == 100
    )


def test_strength_of_the_hidden_layers_is_their_rate_for_bp_and_the_feedbacks_size_for_bdfa():
    base = TrackerConfig(**SMALL)
    bp = METHODS["BP 64"].settings(base, Trial(2.0, 3.0))
    assert (bp.first_lr, bp.update_lr) == pytest.approx((0.03, 0.03)) and bp.last_lr == pytest.approx(10 / 3)
    assert bp.first_lr * bp.last_lr == pytest.approx(2 * base.first_lr * base.last_lr)  # the last layer's is untouched
    assert (bp.positives, bp.negatives, bp.rule) == (16, 48, dfa.BP())
    bdfa = METHODS["BDFA 128"].settings(base, Trial(2.0, 30.0))
    assert bdfa.first_lr == pytest.approx(0.01) and bdfa.last_lr == 10 and bdfa.rule.scale == 30 and bdfa.rule.center
    unit = METHODS["BDFA unit 128"].settings(base)
    assert unit.rule == dfa.BDFA(init="product", scale="unit")


@pytest.mark.parametrize("name", ["CSRT", "KCF", "MIL"])
def test_opencvs_trackers_follow(otb, name):
    from torchdfa.tracking.scores import evaluate
    from torchdfa.tracking.video import read_image

    (sequence,) = load_sequences(otb, ["Left"])
    tracker = OpenCVTracker(name)
    tracker.init(read_image(sequence.frames[0]), sequence.truth[0])
    boxes = [sequence.truth[0], *(tracker.update(read_image(f))[0] for f in sequence.frames[1:])]
    assert evaluate(boxes, sequence.truth).p20 == 1


# --------------------------------------------------------------------------------------------------------- pre-training


@pytest.fixture
def pretraining():
    return PretrainConfig(tracker=TrackerConfig(**SMALL), frames=4, positives=20, negatives=60, cycles=5, lr=0.01)


def test_a_learning_rate_out_of_range_is_refused_with_its_range():
    with pytest.raises(ValueError, match="lr=20, expected a learning rate above 0, below 10"):
        PretrainConfig(lr=20)


def test_heads_have_not_seen_the_video_they_are_used_on(pretraining, otb, tmp_path):
    sequences = load_sequences(otb)
    paths = pretrain.pretrain(pretraining, sequences, tmp_path / "h")
    assert [p.name for p in paths] == ["all.safetensors", "without-Left.safetensors", "without-Right.safetensors"]
    assert set(videos_of(paths[0])) == {"Left", "Right"} and set(videos_of(paths[1])) == {"Right"}
    left, right = sequences
    assert choose_head(tmp_path / "h", left) == paths[1] and choose_head(tmp_path / "h", right) == paths[2]
    # Under another name it is still the same video.
    shutil.copytree(otb / "Left", otb / "Renamed")
    (renamed,) = load_sequences(otb, ["Renamed"])
    assert choose_head(tmp_path / "h", renamed) == paths[1]
    paths[1].unlink()
    with pytest.raises(DataError, match="every head in it was trained on Left"):
        choose_head(tmp_path / "h", left)


def test_pretrained_layers_are_used_and_helped_by_training(pretraining, otb, tmp_path, config):
    sequences = load_sequences(otb)
    paths = pretrain.pretrain(pretraining, sequences, tmp_path / "h")
    state, metadata = read_head(paths[0])
    assert set(state) == {"fc4.weight", "fc4.bias", "fc5.weight", "fc5.bias"} and "settings" in metadata
    b = Bench(replace(config, methods=("BP 128",), seeds=1, heads=str(tmp_path / "h")), tmp_path / "runs")
    b.run()
    assert len(b.runs()) == 2 and by_seed(b.runs(), "BP 128")[0].p20 == 1
    assert "one that has not seen the video" in (tmp_path / "runs" / "BP-128" / "seed0" / "settings.json").read_text()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "a.safetensors").write_bytes(paths[0].read_bytes())
    with pytest.raises(DataError, match="results of other settings"):
        Bench(replace(b.config, heads=str(tmp_path / "others")), tmp_path / "runs").run()


def test_pretraining_separates_targets_from_background(pretraining, otb, trunk):
    sequences = load_sequences(otb)
    samples = [pretrain._samples(pretraining, trunk, s) for s in sequences]
    assert all(p.shape == (80, trunk_features(trunk)) and len(n) == 240 for p, n in samples)
    state = pretrain._train(pretraining, samples)
    again = pretrain._train(pretraining, samples)
    assert all(torch.equal(state[k], again[k]) for k in state)
    untrained = pretrain._train(replace(pretraining, lr=1e-9), samples)
    assert separation(state, samples[0]) > 1.2 * separation(untrained, samples[0])


def trunk_features(trunk):
    return 9 * sum(trunk.channels)


def separation(state, samples):
    """Return the distance between the classes' means in fc5, over the deviation within them."""
    hidden = []
    for x in samples:
        for name in ("fc4", "fc5"):
            x = torch.relu(x.float() @ state[f"{name}.weight"].t() + state[f"{name}.bias"])
        hidden.append(x)
    gap = (hidden[0].mean(0) - hidden[1].mean(0)).norm()
    return (gap / torch.stack([h.std(0).norm() for h in hidden]).mean()).item()


def test_a_single_head_is_refused_on_what_it_has_seen(pretraining, otb, tmp_path, config):
    paths = pretrain.pretrain(pretraining, load_sequences(otb), tmp_path / "h")
    seen = replace(config, tracker=replace(config.tracker, head=str(paths[1])))
    with pytest.raises(DataError, match="was trained on Right"):
        Bench(seen, tmp_path / "runs")
    Bench(replace(seen, sequences=("Left",)), tmp_path / "runs")
    with pytest.raises(ValueError, match="give one"):
        replace(seen, heads=str(tmp_path / "h"))


def test_pretraining_goes_on_and_refuses_other_settings(pretraining, otb, tmp_path, monkeypatch):
    sequences = load_sequences(otb)
    paths = pretrain.pretrain(pretraining, sequences, tmp_path)
    times = [p.stat().st_mtime_ns for p in paths]
    paths[2].unlink()
    pretrain.pretrain(pretraining, sequences, tmp_path)
    assert [p.stat().st_mtime_ns for p in paths[:2]] == times[:2] and paths[2].is_file()
    with pytest.raises(DataError, match="trained with other settings"):
        pretrain.pretrain(replace(pretraining, cycles=6), sequences, tmp_path)
    with pytest.raises(ValueError, match="two or more; found Left"):
        pretrain.pretrain(pretraining, sequences[:1], tmp_path / "one")


# ----------------------------------------------------------------------------------------------------- the command line


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


QUICK = [f"--tracker.{k}={list(v) if isinstance(v, tuple) else v}" for k, v in SMALL.items()]


def test_pretrain_and_bench_on_the_command_line(call, otb, tmp_path):
    status, out, err = call("track-pretrain", str(otb), "--frames", "3", "--cycles", "2", "--out", "h", *QUICK)
    assert status == 0 and "all.safetensors, without-Left.safetensors" in out, err
    arguments = ["track-bench", "--data-root", str(otb), "--methods", '["BDFA 64", "KCF"]', "--seeds", "1"]
    arguments += ["--out", "b", "--heads", "h", *QUICK]
    status, out, err = call(*arguments)
    assert status == 0 and "| BDFA 64 |" in out and "written to b: summary.md" in out, err
    status, out, _ = call(*arguments, "--report")
    assert status == 0 and "| BDFA 64 |" in out


def test_print_config_can_be_read_back(call, otb):
    status, out, _ = call("track-bench", "--seeds", "2", *QUICK, "--print-config")
    assert status == 0 and json.loads(out)["tracker"]["crop"] == 48
    with open("c.json", "w") as file:
        file.write(out)
    status, again, _ = call("track-bench", "--config", "c.json", "--print-config")
    assert status == 0 and json.loads(again) == json.loads(out)


@pytest.mark.parametrize("arguments, words", [
    (["track-bench", "--methods", '["Magic"]'], "methods=('Magic',), expected one or more of 'BP 128'"),
    (["track-bench", "--seeds", "0"], "seeds=0"),
    (["track-bench", "--data-root", "nowhere"], "Tracking sequences not found"),
    (["track-bench", "--data-root", "otb", "--report", "--out", "x"], "nothing is finished"),
    (["track-bench", "--data-root", "otb", "--sequences", '["Up"]'], "no sequence Up"),
    (["track-pretrain", "nowhere"], "Tracking sequences not found"),
    (["track-pretrain", "otb", "--cycles", "0"], "cycles=0"),
])  # fmt: skip
def test_mistakes_are_explained(call, otb, tmp_path, arguments, words):
    otb.rename(tmp_path / "otb")
    status, _, err = call(*arguments)
    assert status == 2 and words in err and "Traceback" not in err


def test_rules_are_compared_on_targets_that_both_have_finished():
    def run(method, seed, target, auc):
        return Run(method, seed, target, (), Score(np.full(21, auc), np.zeros(51)), 1.0, 1.0)

    runs = [run("BP 128", seed, target, auc) for seed in (0, 1) for target, auc in (("easy", 0.8), ("hard", 0.2))]
    runs += [run("BDFA 128", seed, "easy", 0.7) for seed in (0, 1)]
    runs += [run("BDFA 128", 0, "hard", 0.3)]
    (line,) = (text for text in _differences(runs) if text.startswith("-"))
    assert line.startswith("- BDFA 128 less BP 128: AUC -0.100 on the 1 targets that both have finished;")
    runs += [run("BDFA 128", 1, "hard", 0.3)]
    (line,) = (text for text in _differences(runs) if text.startswith("-"))
    assert line.startswith("- BDFA 128 less BP 128: AUC +0.000;")
