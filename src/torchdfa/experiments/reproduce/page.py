"""The page of an experiment: its table beside the paper's, a figure, the search, all made from ``results.csv``."""

from __future__ import annotations

import math
import statistics as stats
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchdfa.data import TEXTS
from torchdfa.experiments.costing import share_of_products
from torchdfa.experiments.drawing import save
from torchdfa.experiments.markdown import spread, table
from torchdfa.experiments.measure import Measure, measure_of
from torchdfa.experiments.reproduce.aim import about_aim
from torchdfa.experiments.reproduce.config import ReproduceConfig
from torchdfa.experiments.reproduce.experiment import Experiment, Reported
from torchdfa.experiments.results import Results, Row, score
from torchdfa.experiments.study import Line
from torchdfa.files import write_text
from torchdfa.language import GPT, LanguageModel, RecurrentLM
from torchdfa.models import Network

_STAND_INS = {
    "tiny-imagenet100-32": ", a 100-class stand-in for CIFAR-100",
    "wikitext-2": ", a stand-in for the benchmarks of words that are usual (Penn Treebank)",
}

_ARITHMETIC = {"32-true": "float32", "bf16-mixed": "bfloat16 mixed with float32", "64-true": "float64"}


@dataclass(frozen=True)
class Standing:
    """What a line came to.

    Attributes:
        line: The line.
        finals: Its runs at the best trial, by seed.
        searched: Its trials, best first.
        share: Multiply-adds of its error propagation over back-propagation's; NaN where that is not asked for.
    """

    line: Line
    finals: dict[int, list[Row]]
    searched: list[list[Row]]
    share: float = math.nan

    @property
    def name(self) -> str:
        """The line's name."""
        return self.line.name

    @property
    def measure(self) -> Measure:
        """What it is judged by."""
        return measure_of(self.line.config.data)

    @property
    def values(self) -> list[float]:
        """Test accuracy or perplexity of each seed; NaN for one that diverged."""
        return [
            math.nan if run[-1].problem else self.measure.of(run[-1], "test") for _, run in sorted(self.finals.items())
        ]

    @property
    def whole(self) -> list[list[Row]]:
        """The last runs that did not diverge, by seed."""
        return [run for _, run in sorted(self.finals.items()) if not run[-1].problem]

    @property
    def curve(self) -> list[float]:
        """Mean test accuracy or perplexity after each epoch; NaN where it was not measured."""
        by_run = [[self.measure.of(row, "test") for row in run] for run in self.whole]
        return [stats.fmean(values) for values in zip(*by_run, strict=True)]

    @property
    def trunk(self) -> str:
        """Angle between the trunk's gradient and the true one, and the ratio of their lengths, mean over the runs."""
        angles = _measured(row.trunk_angle for run in self.whole for row in run)
        ratios = _measured(row.trunk_ratio for run in self.whole for row in run)
        return f"{stats.fmean(angles):.0f}°, × {stats.fmean(ratios):.2f}" if angles else ""

    def paired(self, other: Standing) -> list[tuple[float, float]]:
        """Return this line's test accuracy and another one's at every seed at which both have a whole run.

        Of a text, it is the logarithms of their perplexities.
        """
        mine, theirs = (
            {run[-1].seed: self.measure.scaled(self.measure.of(run[-1], "test")) for run in s.whole}
            for s in (self, other)
        )
        return [(mine[seed], theirs[seed]) for seed in mine if seed in theirs]

    def behind(self, other: Standing) -> list[float]:
        """Return by how much this line is above another one at every seed, in points; of a text, in percent."""
        return [self.measure.difference(a - b) for a, b in self.paired(other)]


def standings(experiment: Experiment, folder: Path) -> list[Standing]:
    """Read what every line that has runs came to, in the table's order.

    Raises:
        ValueError: There are no results, or they are not those of one experiment at one setting.
    """
    runs = list(Results(folder / "results.csv").read().values())
    if not runs:
        raise ValueError(
            f"{folder / 'results.csv'} holds no runs. Run torchdfa reproduce {experiment.name} --out {folder} first."
        )
    first = runs[0][0]
    _demand_one(folder, "experiment", {experiment.name, *(run[0].experiment for run in runs)})
    _demand_one(folder, "scale", {run[0].scale for run in runs})
    _demand_one(folder, "data set", {run[0].dataset for run in runs})
    found = []
    for line in experiment.lines(ReproduceConfig(scale=first.scale, data=first.dataset), first.dataset):
        own = [run for run in runs if run[0].method == line.name]
        searched = sorted((r for r in own if r[0].phase == "search"), key=score, reverse=True)
        last = [r for r in own if r[0].phase == "final"]
        _demand_one(folder, f"length of the trials of {line.name!r}", {r[0].epochs for r in searched})
        _demand_one(folder, f"setting of the last runs of {line.name!r}", {_setting(r[0]) for r in last})
        finals = {r[0].seed: r for r in last}
        if own:
            share = share_of_products(line.config) if experiment.costs else math.nan
            found.append(Standing(line, finals, searched, share))
    return found


def _setting(row: Row) -> tuple[Any, ...]:
    return row.lr, row.weight_decay, row.feedback_scale, row.head_lr, row.epochs


def _demand_one(folder: Path, name: str, values: set[Any]) -> None:
    """Refuse results in which a thing that all must share has several values."""
    if len(values) > 1:
        raise ValueError(
            f"{folder / 'results.csv'} has more than one {name}: {', '.join(sorted(map(str, values)))}. Nothing is "
            "lost, but no table can be made of both: give each its own --out."
        )


def write_page(experiment: Experiment, folder: Path) -> list[Path]:
    """Write the page and its figure, as PNG and SVG, beside the results they are made from; return their paths.

    Raises:
        ValueError: There are no results.
    """
    found = standings(experiment, folder)
    first = (*found[0].finals.values(), *found[0].searched)[0][0]
    paper, measure = experiment.paper.get(first.dataset, {}), measure_of(first.dataset)
    name = first.dataset + _STAND_INS.get(first.dataset, "")
    text = [
        f"# {experiment.title}",
        "",
        experiment.about,
        "",
        f"Data: {name}; scale {first.scale}. {_settings(found)}",
        "",
        f"![{experiment.title}]({experiment.name}.png)",
        "",
        *table(_headings(measure), [_cells(s, found, paper) for s in found]),
        "",
        _legend(experiment, measure, found) + _about_paper(paper, first),
        "",
        *(about_aim(found) if experiment.costs else []),
    ]
    searched = [(s.name, *_trial(run[0]), _shown(score(run))) for s in found for run in s.searched]
    if searched:
        head = ("row", "learning rate", "weight decay", "feedback", "head's rate", f"held-out {measure.name}")
        text += ["## Search", "", "Every trial, those that lost too; the best first.", "", *table(head, searched), ""]
    figure = experiment.plot(folder, found, paper)
    paths = [folder / f"{experiment.name}.{kind}" for kind in ("md", "png", "svg")]
    write_text(paths[0], "\n".join(text))
    for path in paths[1:]:
        save(figure, path)
    return paths


def _settings(found: Sequence[Standing]) -> str:
    """Say what all runs have in common, and how they were chosen."""
    rows = [run[0] for s in found for run in (*s.finals.values(), *s.searched)]
    sizes = sorted({row.train_size for row in rows})
    epochs = sorted({row.epochs for row in rows if row.phase == "final"} or {row.epochs for row in rows})
    trials = sorted({row.epochs for row in rows if row.phase == "search"} - set(epochs))
    config = found[0].line.config
    momentum = f" with momentum {config.momentum:g}" if config.optimizer == "sgd" else ""
    clip = f", gradient norm at most {config.clip:g}" if config.clip is not None else ""
    schedule = {"onecycle": "one-cycle"}.get(config.schedule, config.schedule)
    models = " and ".join(dict.fromkeys(_network(s.line.config.model) for s in found))
    unit = found[0].measure.unit
    batch, held_out = f"batch {config.batch_size}", "held-out training images"
    if config.data in TEXTS:
        batch = f"{config.batch_size} streams of {config.sequence} tokens a step"
        held_out = f"{found[0].line.budget.validation:,} tokens of the text's own validation part"
        if config.vocabulary is not None:
            batch += f", the {config.vocabulary:,} most frequent words, others as <unk>"
    length = f" of {' / '.join(map(str, trials))} epochs" if trials else ""
    kinds = sorted({_ARITHMETIC.get(row.precision, row.precision) for row in rows if row.precision})
    arithmetic = f", {' / '.join(kinds)}" if kinds else ""
    return (
        f"{models}, {' / '.join(f'{n:,}' for n in sizes)} training {unit}, {' / '.join(map(str, epochs))} epochs, "
        f"{batch}, {config.optimizer.upper()}{momentum}, {schedule} learning rate{clip}{arithmetic}. Trials{length} "
        f"are scored on {held_out}, at seed 0; the best is run with every seed on all training {unit} and "
        "scored on the whole test set after the last epoch. At a seed all rows start from the same weights and see "
        "the same batches."
    )


def _network(model: Network | LanguageModel) -> str:
    width = f" of width {model.width:g}" if hasattr(model, "width") else ""  # type: ignore[attr-defined]
    layers = f" and {model.layers} layers" if isinstance(model, (GPT, RecurrentLM)) else ""
    return f"{type(model).__name__}{width}{layers}"


def _headings(measure: Measure) -> tuple[str, ...]:
    names = ("row", measure.name, "bits", "top-5", "train", "best trial", "difference", "p", "epochs to match")
    return (*names, "trunk", "multiply-adds", "seeds", "paper")


def _legend(experiment: Experiment, measure: Measure, found: Sequence[Standing]) -> str:
    if measure.falls:
        text = (
            "Perplexity: on the test text after the last epoch, mean ± standard deviation over the seeds. Bits: its "
            "logarithm to base 2, bits a token. Train: perplexity over the last epoch, in training mode. "
        )
    else:
        text = "Top-1, top-5: test accuracy in percent after the last epoch, mean ± standard deviation over the seeds. "
    text += (
        'Best trial: learning rate; then weight decay or size of the feedback over "matched", and the head\'s learning '
        "rate over the trunk's, where not the default. Difference: "
    )
    if measure.falls:
        text += "of the perplexity in percent, mean over the seeds, paired, to the row that is named, with p of a "
        text += "paired t-test of the logarithms."
    else:
        text += "mean over the seeds, paired, to the row that is named, with p of a paired t-test."
    if any(s.line.has_curve for s in found):
        text += " Epochs to match: the first epoch at which the mean accuracy reaches that row's last."
    if any(s.trunk for s in found):
        trunk = "gradient of all below the last layer" if measure.falls else "convolutions' gradient"
        text += (
            f" Trunk: angle between the {trunk} and the true one, and the ratio of their lengths, mean over the run."
        )
    if experiment.costs:
        text += " Multiply-adds: those of error propagation over back-propagation's (`torchdfa.costs`)."
    return text


def _about_paper(paper: Reported, first: Row) -> str:
    if not paper:
        return ""
    settings = "" if first.scale == "paper" else ", at its own size: full width, all images, 50 epochs or more"
    return f" Paper: top-1, and top-5 where it gives one{settings}."


def _cells(s: Standing, found: Sequence[Standing], paper: Reported) -> tuple[str, ...]:
    other = next((o for o in found if o.name == s.line.against), None)
    reported = paper.get(s.name)
    difference, p = _against(s, other)
    best = max(s.finals.values() or s.searched, key=len)[0]
    return (
        s.name,
        spread(s.values),
        spread([math.log2(v) for v in s.values if not math.isnan(v)]) if s.measure.falls else "",
        spread(_measured(run[-1].test_top5 for run in s.whole)),
        spread(_measured(s.measure.of(run[-1], "train") for run in s.whole)),
        _short(best, s.line) if s.finals else "",
        difference,
        p,
        _epochs_to(s, other),
        s.trunk,
        "" if math.isnan(s.share) else f"× {s.share:.2f}",
        str(len(s.finals)),
        " / ".join(f"{v:.2f}" for v in reported if not math.isnan(v)) if reported else "",
    )


def _against(s: Standing, other: Standing | None) -> tuple[str, str]:
    if other is None:
        return "", ""
    pairs = s.paired(other)
    if not pairs:
        return "", ""
    mean = s.measure.difference(stats.fmean(a - b for a, b in pairs))
    difference = f"{mean:+.2f}" + (" %" if s.measure.falls else "")
    if len(pairs) < 2 or len({a - b for a, b in pairs}) == 1:
        return difference, ""
    from scipy.stats import ttest_rel

    p = ttest_rel([a for a, _ in pairs], [b for _, b in pairs]).pvalue
    return difference, f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _epochs_to(s: Standing, other: Standing | None) -> str:
    if other is None or not other.whole or not s.whole or not s.line.has_curve:
        return ""
    goal = other.curve[-1]
    there = (value <= goal if s.measure.falls else value >= goal for value in s.curve)
    return next((str(i) for i, reached in enumerate(there, 1) if reached), "–")


def _measured(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _trial(row: Row) -> tuple[str, ...]:
    size = "" if not row.feedback_scale else {"matched": "1"}.get(row.feedback_scale, row.feedback_scale)
    return f"{row.lr:g}", f"{row.weight_decay:g}", size, f"{row.head_lr:g}"


def _short(row: Row, line: Line) -> str:
    """Name a trial by what is not the default."""
    trial = line.trial(row)
    second = "" if trial.second is None else f", {'× ' if line.tunes_feedback else 'decay '}{trial.second:g}"
    return f"{trial.lr:g}{second}" + ("" if trial.head_lr is None else f", head × {trial.head_lr:g}")


def _shown(value: float) -> str:
    return "diverged" if value == -math.inf else f"{abs(value):.2f}"
