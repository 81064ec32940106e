import csv
import dataclasses
import importlib
import math
from concurrent.futures import Future
from dataclasses import replace

import matplotlib.image
import pytest
import torch

from torchdfa.data import DataError, Dataset, ImageSet
from torchdfa.experiments import METHODS, CellError, CompareConfig, Score, compare, study
from torchdfa.experiments import runner as runner_module
from torchdfa.experiments.progress import watch
from torchdfa.experiments.report import lines_of, show
from torchdfa.experiments.results import Cell, Results, Row, rows_of
from torchdfa.models import MLP, VGG16, SmallConv
from torchdfa.training import EpochResult, TrainConfig

module = importlib.import_module("torchdfa.experiments.compare")  # the package has a function of its name
SMALL = CompareConfig(
    train_size=200,
    model=SmallConv(channels=(4,), head=(16, 16)),
    methods=("BP", "CBDFA (9)"),
    lrs=(0.01, 0.05),
    seeds=1,
    epochs=2,
)


CELL = Cell("compare", "BP", "final", TrainConfig())


def rows(*top1, cell=CELL, problem="", **values):
    """Make the rows of a run with these test accuracies."""
    plain = {f.name: math.nan for f in dataclasses.fields(EpochResult)} | {"step_seconds": 0.1, "lr": 0.1}
    history = [EpochResult(**(plain | {"epoch": i, "test_top1": v} | values)) for i, v in enumerate(top1, 1)]
    return rows_of(cell, history, problem, 200)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "_TIMING_SECONDS", 0.05)


@pytest.fixture
def here(monkeypatch):
    """Run cells in this process, and note those that were not finished already."""
    ran = []

    class Here:
        def __init__(self, jobs):
            self.jobs = 1

        def submit(self, cell, folder):
            ran.append(cell)
            future = Future()
            future.set_result(runner_module._run(cell, folder, "cpu"))
            return future

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(module, "make_workers", lambda jobs, *others: Here(jobs))
    return ran


@pytest.fixture
def pretend(monkeypatch):
    """Make up results: a function of phase, method, rate and seed gives the accuracy, or None to diverge."""
    ran = []

    def arrange(accuracy, backwards=False, epochs_before=0):
        def run_cells(cells, folder, workers):
            for cell in reversed(cells) if backwards else cells:
                ran.append(cell)
                value = accuracy(cell.phase, cell.method, cell.config.lr, cell.config.seed)
                if value is None:
                    problem = "the loss is nan: training has diverged"
                    run = rows(*[99.0] * epochs_before, cell=cell, problem=problem, train_top1=99.0)
                elif cell.phase == "search":
                    # What the test images say must not matter.
                    run = rows(0.0, -value, cell=cell, val_top1=value)
                else:
                    run = rows(value / 2, value, cell=cell, train_top1=value + 1)
                Results(folder / "results.csv").add(run)
                yield cell, run

        monkeypatch.setattr(study, "run_cells", run_cells)
        return ran

    return arrange


def test_end_to_end(here, tmp_path):
    scores = compare(SMALL, tmp_path, progress=False)
    assert [s.method for s in scores] == ["BP", "CBDFA (9)"]
    bp, cbdfa = scores
    assert len(bp.top1) == len(bp.train_top1) == 1 and 0 < bp.top1[0] <= 100 and 1 <= bp.epochs <= 2
    assert bp.step == 1.0 and 0.1 < cbdfa.step < 10
    # Feedback of the layers of 64, 16 and 16 inputs, one bit an entry, rows in whole bytes, and a scale each.
    assert (bp.feedback_bytes, bp.feedback_bytes_float32) == (0, 0)
    assert (
        cbdfa.feedback_bytes_float32 == 4 * 10 * (64 + 16 + 16)
        and cbdfa.feedback_bytes < cbdfa.feedback_bytes_float32 / 20
    )

    with open(tmp_path / "results.csv") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == [f.name for f in dataclasses.fields(Row)]
    assert len(found) == 2 * len(here)
    assert {(r["dataset"], r["train_size"], r["method"], r["phase"]) for r in found} == {
        ("digits", "200", m, p) for m in SMALL.methods for p in ("search", "final")
    }
    last = [r for r in found if r["method"] == "BP" and r["phase"] == "final"][-1]
    assert float(last["test_top1"]) == pytest.approx(bp.top1[0]) and float(last["lr"]) == bp.lr and last["epoch"] == "2"
    assert [(r["method"], r["phase"], r["epoch"]) for r in found] == [
        (m, p, e) for m in SMALL.methods for p in ("search",) * (len(found) // 4 - 1) + ("final",) for e in "12"
    ]
    network = "SmallConv(channels=[4], head=[16, 16])"
    assert {(r["experiment"], r["options"]) for r in found} == {
        ("compare", f"{network}; {rule}; clip=10.0; precision=32-true") for rule in ("BP", "CBDFA")
    }
    assert {(r["method"], r["init"], r["feedback_scale"]) for r in found} == {
        ("BP", "", ""), ("CBDFA (9)", "product", "matched")
    }  # fmt: skip

    summary = (tmp_path / "summary.md").read_text()
    assert "| BP |" in summary and "| CBDFA (9) |" in summary and "SmallConv(channels=[4], head=[16, 16]" in summary
    assert "training images: 200, no augmentation" in summary
    picture = matplotlib.image.imread(tmp_path / "curves.png")
    assert picture.shape[:2] == (600, 1500) and picture[..., :3].std() > 0.05

    before = len(here)
    assert [s.top1 for s in compare(SMALL, tmp_path, progress=False)] == [s.top1 for s in scores]
    assert len(here) == before


def test_equal_terms(here, tmp_path):
    compare(replace(SMALL, seeds=2, epochs=1, methods=("BP", "DFA"), batch_size=200), tmp_path, progress=False)
    for cell in here:
        config = cell.config
        assert config.validation == (40 if cell.phase == "search" else 0)
        assert cell.phase == "final" or config.seed == 0
        assert cell.method == "BP" or config.rule == replace(METHODS["DFA"], seed=config.seed)
    finals = {(c.method, c.config.seed): c for c in here if c.phase == "final"}
    assert set(finals) == {(m, s) for m in ("BP", "DFA") for s in (0, 1)}
    with open(tmp_path / "results.csv") as file:
        losses = {(r["method"], r["seed"]): r["train_loss"] for r in csv.DictReader(file) if r["phase"] == "final"}
    # One batch an epoch: the loss of the initial weights on the first batch, before anything was learnt.
    assert losses["BP", "0"] == losses["DFA", "0"] != losses["BP", "1"] == losses["DFA", "1"]


def test_rate_is_chosen_on_held_out_images(pretend, tmp_path):
    best = {"BP": 0.03, "CDFA (7)": 0.01}
    ran = pretend(lambda phase, name, lr, seed: 90.0 if lr == best[name] else 50.0)
    config = CompareConfig(train_size=100, methods=tuple(best), lrs=(0.003, 0.01, 0.03, 0.1), seeds=2, epochs=2)
    scores = compare(config, tmp_path, progress=False)
    assert {s.method: (s.lr, s.at_edge) for s in scores} == {"BP": (0.03, False), "CDFA (7)": (0.01, False)}
    assert {(c.method, c.config.lr, c.config.seed) for c in ran if c.phase == "final"} == {
        (name, lr, seed) for name, lr in best.items() for seed in (0, 1)
    }
    assert len(ran) == 2 * 4 + 2 * 2


@pytest.mark.parametrize(
    "peak, searched, chosen, at_edge",
    [
        (0.01, {0.001, 0.01, 0.1}, 0.01, False),  # of two rates both are edges
        (100, {0.01, 0.1, 1.0, 10.0}, 10.0, True),
        (1.0, {0.01, 0.1, 1.0, 10.0}, 1.0, False),
        (1e-9, {0.0001, 0.001, 0.01, 0.1}, 0.0001, True),
        (0.001, {0.0001, 0.001, 0.01, 0.1}, 0.001, False),
    ],
)
def test_widening(pretend, tmp_path, peak, searched, chosen, at_edge):
    ran = pretend(lambda phase, name, lr, seed: 90 - abs(math.log10(lr / peak)))
    (score,) = compare(replace(SMALL, methods=("BP",), lrs=(0.01, 0.1)), tmp_path, progress=False)
    assert {c.config.lr for c in ran if c.phase == "search"} == searched
    assert (score.lr, score.at_edge) == (chosen, at_edge)


def test_a_single_rate_is_not_searched(pretend, tmp_path):
    ran = pretend(lambda *_: 50.0)
    (score,) = compare(replace(SMALL, methods=("BP",), lrs=(0.01,)), tmp_path, progress=False)
    assert [c.phase for c in ran] == ["final"] and score.lr == 0.01 and not score.at_edge
    assert "## Search" not in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize("epochs_before", [0, 1])
def test_divergence_shows(pretend, tmp_path, capsys, epochs_before):
    pretend(
        lambda phase, name, lr, seed: (
            None if name == "DFA" or lr > 0.05 or (name, phase, seed) == ("FA", "final", 1) else 80.0
        ),
        epochs_before=epochs_before,
    )
    config = replace(SMALL, methods=("BP", "FA", "DFA"), lrs=(0.01, 0.03, 0.1), seeds=2)
    bp, fa, dfa = scores = compare(config, tmp_path, progress=False)
    assert bp.top1 == (80.0, 80.0) and bp.lr < 0.05
    assert fa.top1[0] == 80.0 and math.isnan(fa.top1[1]) and math.isnan(fa.epochs)
    assert all(math.isnan(v) for v in (*dfa.top1, *dfa.train_top1))
    cells = {line[0]: line for line in lines_of(scores)}
    assert (
        cells["BP"][1] == "80.00 ± 0.00"
        and cells["FA"][1] == "80.00 (1 diverged)"
        and cells["DFA"][1] == cells["DFA"][2] == "2 diverged"
    )
    search = (tmp_path / "summary.md").read_text().partition("## Search")[2]
    assert "diverged" in next(line for line in search.splitlines() if line.startswith("| BP |"))
    assert search.count("80.00") >= 3
    show(scores)
    assert "diverged" in capsys.readouterr().out


def test_nothing_but_divergence_is_plotted_too(pretend, tmp_path):
    pretend(lambda *_: None)
    (score,) = compare(replace(SMALL, methods=("BP",)), tmp_path, progress=False)
    assert math.isnan(score.top1[0]) and (tmp_path / "curves.png").stat().st_size > 1000
    with open(tmp_path / "results.csv") as file:
        found = list(csv.DictReader(file))
    # Two rates, two beyond them, one seed.
    assert len(found) == 5 and {r["epoch"] for r in found} == {"0"} and all("diverged" in r["problem"] for r in found)


def test_a_crash_is_no_divergence(here, tmp_path, monkeypatch):
    fit = runner_module.fit

    def crash(config, *arguments, **options):
        if config.lr == 0.05 and not isinstance(config.rule, type(METHODS["BP"])):
            raise RuntimeError("out of memory")
        return fit(config, *arguments, **options)

    monkeypatch.setattr(runner_module, "fit", crash)
    config = replace(SMALL, epochs=1)
    with pytest.raises(CellError, match=r"1 runs crashed \(CBDFA \(9\), rate 0\.05: RuntimeError: out of memory\)"):
        compare(config, tmp_path, progress=False)
    # No method is given a final run or a table while a rate of another is not known.
    assert {c.phase for c in here} == {"search"} and not (tmp_path / "summary.md").exists()
    assert all(run[-1].problem == "" for run in Results(tmp_path / "results.csv").read().values())
    before = len(here)
    monkeypatch.setattr(runner_module, "fit", fit)
    scores = compare(config, tmp_path, progress=False)
    assert not any(math.isnan(v) for s in scores for v in s.top1)
    assert here[before].config.lr == 0.05 and here[before].method == "CBDFA (9)"


def test_seeds_keep_their_order_whichever_ends_first(pretend, tmp_path):
    pretend(lambda phase, name, lr, seed: 50.0 + seed, backwards=True)
    scores = compare(replace(SMALL, seeds=3, lrs=(0.01,)), tmp_path, progress=False)
    assert [s.top1 for s in scores] == [(50.0, 51.0, 52.0)] * 2
    with open(tmp_path / "results.csv") as file:
        order = [(r["method"], int(r["seed"]), r["epoch"]) for r in csv.DictReader(file) if r["phase"] == "final"]
    assert order == [(m, s, e) for m in SMALL.methods for s in range(3) for e in "12"]


def test_a_tiny_share_still_holds_out_an_image(pretend, tmp_path):
    ran = pretend(lambda *_: 50.0)
    compare(replace(SMALL, validation=0.001), tmp_path, progress=False)
    assert {c.config.validation for c in ran if c.phase == "search"} == {1}


@pytest.mark.parametrize(
    "top1, expected",
    [((10.0, 94.9, 95.0, 100.0), 3), ((100.0,), 1), ((96.0, 10.0, 100.0), 1), ((50.0, 60.0), 2), ((0.0, 0.0), 1)],
)
def test_epochs_to_95_percent_of_the_last(top1, expected):
    assert module._epochs_to(rows(*top1), 0.95) == expected


def test_no_epochs_of_what_diverged():
    assert math.isnan(module._epochs_to(rows(50.0, problem="diverged"), 0.95))
    assert math.isnan(module._epochs_to(rows(problem="diverged"), 0.95))


@pytest.mark.parametrize(
    "side, model, precision",
    [(8, SmallConv(), "32-true"), (28, SmallConv(), "32-true"), (32, VGG16(width=0.25), "auto")],
)
def test_defaults_follow_the_images(side, model, precision):
    part = ImageSet(torch.zeros(2, 1, side, side, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    done = module._completed(CompareConfig(), Dataset("d", part, part))
    assert (done.model, done.precision) == (model, precision)
    own = module._completed(CompareConfig(model=MLP(), precision="bf16-mixed"), Dataset("d", part, part))
    assert (own.model, own.precision) == (MLP(), "bf16-mixed")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"methods": ("BP", "Magic")}, r"methods=.*, expected one or more of 'BP', .*'CBDFA \(9\)'.*, not 'Magic'"),
        ({"methods": ()}, "methods="),
        ({"lrs": ()}, r"lrs=\(\), expected positive"),
        ({"lrs": (0.1, 0.0)}, r"lrs=.*expected positive"),
        ({"seeds": 0}, "seeds=0"),
        ({"validation": 0.0}, r"validation=0\.0.*between 0 and 1"),
        ({"validation": 1.0}, r"validation=1\.0.*between 0 and 1"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        CompareConfig(**settings)


def test_lines_of():
    score = Score("CDFA", 0.03, True, (90.0, 92.0), (99.0, 99.0), 3.5, 1.0, 1234, 56789)
    head, line = lines_of([score])
    assert [h.replace("\n", " ") for h in head] == [
        "method", "top-1 %", "train %", "rate", "epochs to 95 %", "step / CDFA", "feedback bytes", "as float32"
    ]  # fmt: skip
    assert line == ("CDFA", "91.00 ± 1.41", "99.00 ± 0.00", "0.03*", "3.5", "1.00", "1,234", "56,789")
    assert lines_of([replace(score, top1=(90.0,), at_edge=False)])[1][1:4:2] == ("90.00", "0.03")


def test_what_can_not_run_is_refused_before_anything_runs(here, tmp_path):
    with pytest.raises(ValueError, match="'Conv-only' leaves nothing to learn in MLP"):
        compare(replace(SMALL, methods=("BP", "Conv-only"), model=MLP(hidden=(8,))), tmp_path)
    with pytest.raises(ValueError, match="VGG16 takes images of 32 × 32"):
        compare(replace(SMALL, model=VGG16()), tmp_path)
    with pytest.raises(DataError, match=r"must lie in 1\.\.1437, found 2000"):
        compare(replace(SMALL, train_size=2000), tmp_path)
    assert here == []


@pytest.mark.parametrize("shown", [True, False])
def test_watch_counts(shown, capsys):
    with watch(shown, 1) as watcher:
        watcher.expect(1)
        watcher.count(CELL)
        watcher.say("timing")
    assert capsys.readouterr().out == ""
