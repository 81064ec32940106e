"""The experiments of module-wise rules: their rows, what errors cost, the aim, and a text from cell to page."""

import math
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import torchdfa as dfa
from torchdfa.experiments import EXPERIMENTS, ReproduceConfig, reproduce, write_page
from torchdfa.experiments.costing import share_of_products
from torchdfa.experiments.measure import ACCURACY, PERPLEXITY, measure_of
from torchdfa.experiments.reproduce import hybrid_text
from torchdfa.experiments.reproduce.hybrid_text import TextScale
from torchdfa.experiments.reproduce.page import standings
from torchdfa.experiments.results import Cell, Results, rows_of, score
from torchdfa.experiments.study import Trial, _more
from torchdfa.language import GPT, RecurrentLM
from torchdfa.models import MLP
from torchdfa.training import EpochResult, TrainConfig

CNN, RNN, TRANSFORMER = (EXPERIMENTS[name] for name in ("hybrid-cnn", "hybrid-rnn", "transformer"))
CASES = [(CNN, "cifar10"), (RNN, "wikitext-2"), (RNN, "tiny-shakespeare"), (TRANSFORMER, "tiny-shakespeare")]
CASES += [(TRANSFORMER, "wikitext-2")]


def lines_of(experiment, data, **settings):
    return {line.name: line for line in experiment.lines(ReproduceConfig(**settings), data)}


def epoch(**values):
    return EpochResult(**(dict.fromkeys(EpochResult.__dataclass_fields__, math.nan) | {"epoch": 1} | values))


def finals(line, values, out, **more):
    """Write one-epoch runs with the given test scores, one a seed."""
    part = "test_loss" if line.config.data != "cifar10" else "test_top1"
    for seed, value in enumerate(values):
        config = replace(line.settings(Trial(0.01), seed), epochs=1)
        cell = Cell("hybrid-cnn" if part == "test_top1" else "hybrid-rnn", line.name, "final", config, "small")
        Results(out / "results.csv").add(rows_of(cell, [epoch(**{part: value}, **more)], "", 5000))


@pytest.mark.parametrize("experiment, data", CASES, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("scale", ["small", "medium", "paper"])
def test_rows_are_told_apart_and_tuned_alike(experiment, data, scale):
    lines = lines_of(experiment, data, scale=scale)
    assert len({Cell("e", n, "final", line.settings(Trial(0.1))).key for n, line in lines.items()}) == len(lines)
    assert len(lines) == len(experiment.lines(ReproduceConfig(scale=scale), data))
    for line in lines.values():
        assert line.against is None or lines[line.against].config.rule == dfa.BP()
        base = lines[line.against or line.name]
        assert line.budget == base.budget
        assert replace(line.config, rule=dfa.BP()) == base.config
        trials = list(_more(line, {Trial(lr): 1.0 for lr in line.budget.lrs}))
        assert len({Cell("e", line.name, "search", line.settings(t, 0, 9)).key for t in trials}) == len(trials) == 2


@pytest.mark.parametrize("experiment, data", CASES, ids=lambda value: getattr(value, "name", value))
def test_every_row_can_be_converted_and_its_cost_told(experiment, data):
    shares = {name: share_of_products(line.config) for name, line in lines_of(experiment, data).items()}
    assert all(share == 1 for name, share in shares.items() if name.startswith(("BP", "FA")))
    assert all(0 < share < 3 for share in shares.values())
    assert sum(share <= 0.7 for name, share in shares.items() if name.startswith("HybridDFA")) >= 1


def test_costs_are_those_of_the_rule_as_it_is():
    rule = dfa.HybridDFA(density=0.25, init="product", chunk=8)
    config = TrainConfig(data="wikitext-2", vocabulary=300, sequence=20, model=RecurrentLM(width=16), rule=rule)
    net = dfa.convert(RecurrentLM(width=16).build(300), rule)
    found = dfa.costs(net, torch.zeros(1, 20, dtype=torch.int64))
    assert share_of_products(config) == found.products / found.bp_products
    before = torch.get_rng_state()
    share_of_products(config)
    assert torch.equal(before, torch.get_rng_state())


def test_what_a_run_is_judged_by():
    assert (measure_of("cifar10"), measure_of("wikitext-2")) == (ACCURACY, PERPLEXITY)
    text = TrainConfig(data="wikitext-2", model=GPT(context=64))
    for phase, part in (("search", "val"), ("final", "test")):
        good, bad = (
            rows_of(Cell("e", "BP", phase, text), [epoch(**{f"{part}_loss": loss, f"{part}_top1": 99.0})], "", 1)
            for loss in (2.0, 3.0)
        )
        assert score(good) == pytest.approx(-math.exp(2)) and score(good) > score(bad) > -math.inf
    assert score(rows_of(Cell("e", "BP", "final", text), [], "diverged", 1)) == -math.inf
    assert PERPLEXITY.of(rows_of(Cell("e", "BP", "final", text), [epoch(test_loss=1e4)], "", 1)[0], "test") < math.inf


@pytest.mark.parametrize(
    "computed, said",
    [
        (("", ""), "learning rate, gradient norm at most 10. Trials"),
        (("", "32-true"), "at most 10, float32. Trials"),
        (("32-true", "bf16-mixed"), "at most 10, bfloat16 mixed with float32 / float32. Trials"),
    ],
)
def test_a_page_tells_what_its_runs_were_computed_in(tmp_path, computed, said):
    line = lines_of(CNN, "cifar10")["BP, VGG-16"]
    for seed, precision in enumerate(computed):
        cell = Cell("hybrid-cnn", line.name, "final", replace(line.settings(Trial(0.01), seed), epochs=1), "small")
        Results(tmp_path / "results.csv").add(rows_of(cell, [epoch(test_top1=50.0)], "", 5000, precision))
    assert said in write_page(CNN, tmp_path)[0].read_text()


@pytest.mark.parametrize("lacking", [1, 3])
def test_files_without_the_later_columns_are_read(tmp_path, lacking):
    config = TrainConfig(model=MLP(), epochs=1)
    results = Results(tmp_path / "results.csv")
    results.add(rows_of(Cell("e", "BP", "final", config), [epoch(test_top1=50.0, test_loss=1.5)], "", 100))
    lines = results.path.read_text().splitlines()
    assert lines[0].endswith(",key,val_loss,test_loss,precision") and lines[1].endswith(",,1.5,")
    results.path.write_text("\n".join(line.rsplit(",", lacking)[0] for line in lines) + "\n")
    (old,) = results.read().values()
    assert old[0].test_top1 == 50.0 and math.isnan(old[0].test_loss) == (lacking == 3) and old[0].precision == ""
    results.add(rows_of(Cell("e", "FA", "final", replace(config, seed=1)), [epoch(test_top1=40.0)], "", 100))
    assert [run[0].test_top1 for run in results.read().values()] == [50.0, 40.0]


def test_accuracy_and_the_aim(tmp_path):
    lines = lines_of(CNN, "cifar10")
    for name, values in {
        "BP, VGG-16": [60.0, 62.0],
        "HybridDFA, 4 groups, VGG-16": [59.5, 60.9],
        "HybridDFA, 16 groups, VGG-16": [57.0, 59.5],
        "HybridDFA, VGG-16": [61.0, 61.4],
        "BP, ResNet-20": [50.0, 50.0],
        "HybridDFA, 4 groups, ResNet-20": [48.9, 48.9],
        "DFA, VGG-16": [30.0, 31.0],
    }.items():
        finals(lines[name], values, tmp_path, trunk_angle=70.0, trunk_ratio=0.5)
    page, *pictures = write_page(CNN, tmp_path)
    text = page.read_text()
    aim = text[text.index("## The aim") :]
    assert "- HybridDFA, 4 groups, VGG-16: reached (-0.80 ± 0.42 points, × 0.41; 70° to the true gradient)." in aim
    assert "- HybridDFA, 16 groups, VGG-16: missed: BP, VGG-16 is better by more (-2.75 ± 0.35 points" in aim
    assert "- HybridDFA, VGG-16: missed: 99% of the multiply-adds are left (+0.20 ± 1.13 points" in aim
    assert "- HybridDFA, 4 groups, ResNet-20: missed: BP, ResNet-20 is better by more (-1.10 ± 0.00" in aim
    assert "DFA, VGG-16: " not in aim.replace("HybridDFA", "")
    row = next(line for line in text.splitlines() if line.startswith("| HybridDFA, 4 groups, VGG-16 |"))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [
        "60.20 ± 0.99", "0.01", "-0.80", "0.228", "70°, × 0.50", "× 0.41", "2"
    ]  # fmt: skip
    assert "VGG16 of width 0.25 and ResNet of width 8" in text and "our reading" in text
    assert all(path.stat().st_size > 1000 for path in pictures)


def test_perplexity_and_the_aim(tmp_path):
    lines = lines_of(RNN, "wikitext-2")
    log = math.log
    for name, losses in {
        "BP, LSTM": [log(100), log(110)],
        "HybridDFA, sparse head, LSTM": [log(103), log(115.5)],
        "HybridDFA, LSTM": [log(90), log(99)],
        "HybridDFA between chunks, LSTM": [log(120), log(130)],
    }.items():
        finals(lines[name], losses, tmp_path)
    text = write_page(RNN, tmp_path)[0].read_text()
    aim = text[text.index("## The aim") :]
    assert "HybridDFA within 5 % of back-propagation's perplexity" in aim
    assert "- HybridDFA, sparse head, LSTM: reached (+4.00 ± 1.41 %, × 0.40)." in aim
    assert "- HybridDFA, LSTM: missed: 77% of the multiply-adds are left (-10.00 ± 0.00 %" in aim
    assert "- HybridDFA between chunks, LSTM: missed: BP, LSTM is better by more (+19.09" in aim
    row = next(line for line in text.splitlines() if line.startswith("| HybridDFA, sparse head, LSTM |"))
    assert [cell.strip() for cell in row.split("|")[2:-1]][:3] == ["109.25 ± 8.84", "6.77 ± 0.12", "0.01"]
    assert "+4.00 %" in row
    assert "a stand-in for the benchmarks of words that are usual" in text
    assert "20 streams of 35 tokens a step, the 2,000 most frequent words, others as <unk>" in text


def test_a_text_from_cell_to_page(tmp_path, monkeypatch):
    """Real runs on a tiny text: search, finals, the page; run again, nothing is."""
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare/input.txt").write_text("To be, or not to be, that is the question.\n" * 80)
    tiny = TextScale(400, 2, None, 8, 8, 0.0, 8)
    monkeypatch.setitem(hybrid_text._TEXTS, "tiny-shakespeare", {"small": tiny})
    monkeypatch.setattr(hybrid_text, "_VALIDATION", 100)
    monkeypatch.setattr(hybrid_text, "LRS", (0.01,))
    rows = ("BP, GPT", "HybridDFA, GPT")
    config = ReproduceConfig(data_root=str(tmp_path), rows=rows, seeds=1, jobs=2, accelerator="cpu")
    runs = reproduce(TRANSFORMER, config, tmp_path / "out", progress=False)
    search = [run for run in runs if run[0].phase == "search"]
    assert {(run[0].method, run[-1].epochs) for run in search} == {(name, 2) for name in rows}
    assert all(run[-1].val_loss > 0 for run in search)
    ended = [run for run in runs if run[0].phase == "final"]
    assert len(ended) == 2 and all(len(run) == 2 and 0 < run[-1].test_loss < 4 for run in ended)
    assert all(math.isnan(run[0].test_loss) for run in ended)  # scored at the end alone
    before = (tmp_path / "out/results.csv").read_bytes()
    reproduce(TRANSFORMER, config, tmp_path / "out", progress=False)
    assert (tmp_path / "out/results.csv").read_bytes() == before
    found = {s.name: s for s in standings(TRANSFORMER, tmp_path / "out")}
    assert found["HybridDFA, GPT"].values == [math.exp(r[-1].test_loss) for r in ended if r[0].method == rows[1]]
    assert "## The aim" in write_page(TRANSFORMER, tmp_path / "out")[0].read_text()


def test_trials_of_another_length(tmp_path, monkeypatch):
    seen = {}

    def study(name, lines, *args, **kwargs):
        seen.update({line.name: line.settings(Trial(0.1), 0, 9).epochs for line in lines})
        return []

    module = sys.modules[reproduce.__module__]
    monkeypatch.setattr(module, "run_study", study)
    monkeypatch.setattr(module, "load_any", lambda *_: None)
    for epochs, expected in ((None, 8), (3, 3)):
        reproduce(CNN, ReproduceConfig(trial_epochs=epochs, rows=("BP, VGG-16",)), tmp_path, progress=False)
        assert seen == {"BP, VGG-16": expected}
    with pytest.raises(ValueError, match="trial_epochs=0, expected 1 or more"):
        ReproduceConfig(trial_epochs=0)


def test_whether_short_trials_rank_as_whole_ones(tmp_path, monkeypatch, capsys):
    example = Path(__file__).parents[2] / "examples" / "trial_length.py"
    scores = {4: (10.0, 20.0, 30.0, 40.0), 8: (20.0, 15.0, 45.0, 42.0)}
    text = {4: (3.0, 2.0, 4.0), 8: (2.0, 1.9, 5.0)}
    for epochs in scores:
        for data, line, values in (
            ("cnn", lines_of(CNN, "cifar10")["BP, VGG-16"], [{"val_top1": v} for v in scores[epochs]]),
            ("text", lines_of(RNN, "wikitext-2")["BP, LSTM"], [{"val_loss": v} for v in text[epochs]]),
        ):
            for lr, value in zip((0.01, 0.02, 0.05, 0.1), values, strict=False):
                config = replace(line.settings(Trial(lr), 0, 9), epochs=epochs)
                cell = Cell("e", line.name, "search", config, "small")
                run = rows_of(cell, [epoch(epoch=i + 1, **value) for i in range(epochs)], "", 100)
                Results(tmp_path / data / str(epochs) / "results.csv").add(run)
    shown = []
    for data in ("cnn", "text"):
        monkeypatch.setattr("sys.argv", ["trial_length.py", *(str(tmp_path / data / n) for n in ("4", "8"))])
        runpy.run_path(str(example), run_name="__main__")
        shown.append([cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|")[1:-1]])
    # Ranks 1 2 3 4 and 2 1 4 3: 1 - 6 · 4 / (4 · 15). The trial at 0.1 was chosen, that at 0.05 has 3 points more.
    assert shown[0] == ["BP, VGG-16", "4", "4 and 8", "0.60", "0.1, decay 0.0005", "0.05, decay 0.0005", "3.00"]
    assert shown[1][3:] == ["1.00", "0.02, decay 0", "0.02, decay 0", "0.00 %"]


def test_results_of_several_settings_make_no_page(tmp_path):
    line = lines_of(CNN, "cifar10")["BP, VGG-16"]
    for name, changes, message in (
        ("lr", [{"lr": 0.1}, {"lr": 0.01, "seed": 1}], "more than one setting of the last runs of 'BP, VGG-16'"),
        ("data", [{}, {"data": "cifar100"}], "more than one data set: cifar10, cifar100"),
    ):
        for change in changes:
            config = replace(line.settings(Trial(0.01)), epochs=1, **change)
            run = rows_of(Cell("hybrid-cnn", line.name, "final", config, "small"), [epoch(test_top1=50.0)], "", 1)
            Results(tmp_path / name / "results.csv").add(run)
        with pytest.raises(ValueError, match=message):
            write_page(CNN, tmp_path / name)
    with pytest.raises(ValueError, match="more than one experiment: hybrid-cnn, transformer"):
        write_page(TRANSFORMER, tmp_path / "lr")


def test_an_aim_is_not_reached_by_the_seeds_that_survived(tmp_path):
    lines = lines_of(CNN, "cifar10")
    finals(lines["BP, VGG-16"], [60.0, 60.0], tmp_path)
    finals(lines["HybridDFA, 4 groups, VGG-16"], [61.0], tmp_path, trunk_angle=70.0, trunk_ratio=0.5)
    config = replace(lines["HybridDFA, 4 groups, VGG-16"].settings(Trial(0.01), 1), epochs=1)
    cell = Cell("hybrid-cnn", "HybridDFA, 4 groups, VGG-16", "final", config, "small")
    Results(tmp_path / "results.csv").add(rows_of(cell, [], "diverged", 5000))
    assert "missed: 1 of 2 seeds diverged (+1.00" in write_page(CNN, tmp_path)[0].read_text()


def test_learned_feedback_searches_its_decay_and_a_shard_without_rows_is_refused(tmp_path):
    lines = lines_of(TRANSFORMER, "tiny-shakespeare")
    assert not lines["FA, learned feedback, GPT"].tunes_feedback and lines["HybridDFA, GPT"].tunes_feedback
    with pytest.raises(ValueError, match="shard='1/2': there is no row for it"):
        reproduce(CNN, ReproduceConfig(rows=("BP, VGG-16",), shard="1/2"), tmp_path, progress=False)
