"""The page of an experiment: its table beside the paper's, a figure, the search, all made from ``results.csv``."""

from __future__ import annotations

import math
import statistics as stats
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchdfa.experiments.drawing import save
from torchdfa.experiments.markdown import spread, table
from torchdfa.experiments.reproduce.config import ReproduceConfig
from torchdfa.experiments.reproduce.experiment import Experiment, Reported
from torchdfa.experiments.results import Results, Row, score
from torchdfa.experiments.study import Line
from torchdfa.models import VGG16
from torchdfa.training.checkpoint import write_atomically

_STAND_IN = "tiny-imagenet100-32"
_HEAD = (
    *("row", "top-1", "top-5", "train", "best trial", "difference", "p", "epochs to match", "trunk", "seeds"),
    "paper",
)


@dataclass(frozen=True)
class Standing:
    """What a line came to.

    Attributes:
        line: The line.
        finals: Its runs at the best trial, by seed.
        searched: Its trials, best first.
    """

    line: Line
    finals: dict[int, list[Row]]
    searched: list[list[Row]]

    @property
    def name(self) -> str:
        """The line's name."""
        return self.line.name

    @property
    def top1(self) -> list[float]:
        """Test accuracy of each seed; NaN for one that diverged."""
        return [math.nan if run[-1].problem else run[-1].test_top1 for _, run in sorted(self.finals.items())]

    @property
    def whole(self) -> list[list[Row]]:
        """The last runs that did not diverge, by seed."""
        return [run for _, run in sorted(self.finals.items()) if not run[-1].problem]

    @property
    def curve(self) -> list[float]:
        """Mean test accuracy after each epoch."""
        return [stats.fmean(values) for values in zip(*([r.test_top1 for r in run] for run in self.whole), strict=True)]

    def paired(self, other: Standing) -> list[tuple[float, float]]:
        """Return this line's test accuracy and another one's at every seed at which both have a whole run."""
        theirs = {run[-1].seed: run[-1].test_top1 for run in other.whole}
        return [(run[-1].test_top1, theirs[run[-1].seed]) for run in self.whole if run[-1].seed in theirs]


def standings(experiment: Experiment, folder: Path) -> list[Standing]:
    """Read what every line that has runs came to, in the table's order.

    Raises:
        ValueError: There are no results.
    """
    runs = list(Results(folder / "results.csv").read().values())
    if not runs:
        raise ValueError(
            f"{folder / 'results.csv'} holds no runs. Run torchdfa reproduce {experiment.name} --out {folder} first."
        )
    first = runs[0][0]
    found = []
    for line in experiment.lines(ReproduceConfig(scale=first.scale, data=first.dataset), first.dataset):
        own = [run for run in runs if run[0].method == line.name]
        searched = sorted((r for r in own if r[0].phase == "search"), key=score, reverse=True)
        finals = {r[0].seed: r for r in own if r[0].phase == "final"}
        if own:
            found.append(Standing(line, finals, searched))
    return found


def write_page(experiment: Experiment, folder: Path) -> list[Path]:
    """Write the page and its figure, as PNG and SVG, beside the results they are made from; return their paths.

    Raises:
        ValueError: There are no results.
    """
    found = standings(experiment, folder)
    first = (*found[0].finals.values(), *found[0].searched)[0][0]
    paper = experiment.paper.get(first.dataset, {})
    name = f"{first.dataset}, a 100-class stand-in for CIFAR-100" if first.dataset == _STAND_IN else first.dataset
    text = [
        f"# {experiment.title}",
        "",
        experiment.about,
        "",
        f"Data: {name}; scale {first.scale}. {_settings(found)}",
        "",
        f"![{experiment.title}]({experiment.name}.png)",
        "",
        *table(_HEAD, [_cells(s, found, paper) for s in found]),
        "",
        "Top-1, top-5: test accuracy in percent after the last epoch, mean ± standard deviation over the seeds. Best "
        'trial: learning rate; then weight decay or size of the feedback over "matched", and the head\'s learning '
        "rate over the trunk's, where not the default. Difference: mean over the seeds, paired, to the row that is "
        "named, with p of a paired t-test. Epochs to match: the first epoch at which the mean accuracy reaches that "
        "row's last. Trunk: angle between the convolutions' gradient and the true one, and the ratio of their "
        "lengths, mean over the run." + _about_paper(paper, first),
        "",
    ]
    searched = [(s.name, *_trial(run[0]), _percent(score(run))) for s in found for run in s.searched]
    if searched:
        head = ("row", "learning rate", "weight decay", "feedback", "head's rate", "held-out top-1")
        text += ["## Search", "", "Every trial, those that lost too; the best first.", "", *table(head, searched), ""]
    figure = experiment.plot(folder, found, paper)
    paths = [folder / f"{experiment.name}.{kind}" for kind in ("md", "png", "svg")]
    write_atomically(paths[0], lambda file: file.write("\n".join(text).encode()))
    for path in paths[1:]:
        save(figure, path)
    return paths


def _settings(found: Sequence[Standing]) -> str:
    """Say what all runs have in common, and how they were chosen."""
    rows = [run[0] for s in found for run in (*s.finals.values(), *s.searched)]
    sizes = sorted({row.train_size for row in rows})
    epochs = sorted({row.epochs for row in rows})
    config = found[0].line.config
    momentum = f" with momentum {config.momentum:g}" if config.optimizer == "sgd" else ""
    clip = f", gradient norm at most {config.clip:g}" if config.clip is not None else ""
    schedule = {"onecycle": "one-cycle"}.get(config.schedule, config.schedule)
    width = f" of width {config.model.width:g}" if isinstance(config.model, VGG16) else ""
    model = f"{type(config.model).__name__}{width}"
    return (
        f"{model}, {' / '.join(f'{n:,}' for n in sizes)} training images, {' / '.join(map(str, epochs))} epochs, "
        f"batch {config.batch_size}, {config.optimizer.upper()}{momentum}, {schedule} learning rate{clip}. Trials are "
        "scored on held-out training images, at seed 0; the best is run with every seed on all training images and "
        "scored on the whole test set after the last epoch. At a seed all rows start from the same weights and see "
        "the same batches."
    )


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
        spread(s.top1),
        spread(_measured(run[-1].test_top5 for run in s.whole)),
        spread(_measured(run[-1].train_top1 for run in s.whole)),
        _short(best, s.line) if s.finals else "",
        difference,
        p,
        _epochs_to(s, other),
        _trunk(s.whole),
        str(len(s.finals)),
        " / ".join(f"{v:.2f}" for v in reported if not math.isnan(v)) if reported else "",
    )


def _against(s: Standing, other: Standing | None) -> tuple[str, str]:
    if other is None:
        return "", ""
    pairs = s.paired(other)
    if not pairs:
        return "", ""
    difference = f"{stats.fmean(a - b for a, b in pairs):+.2f}"
    if len(pairs) < 2 or len({a - b for a, b in pairs}) == 1:
        return difference, ""
    from scipy.stats import ttest_rel

    return difference, f"{ttest_rel([a for a, _ in pairs], [b for _, b in pairs]).pvalue:.3f}"


def _epochs_to(s: Standing, other: Standing | None) -> str:
    if other is None or not other.whole or not s.whole:
        return ""
    return next((str(i) for i, value in enumerate(s.curve, 1) if value >= other.curve[-1]), "–")


def _measured(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _trunk(runs: Sequence[Sequence[Row]]) -> str:
    angles = _measured(row.trunk_angle for run in runs for row in run)
    ratios = _measured(row.trunk_ratio for run in runs for row in run)
    return f"{stats.fmean(angles):.0f}°, × {stats.fmean(ratios):.2f}" if angles else ""


def _trial(row: Row) -> tuple[str, ...]:
    size = "" if not row.feedback_scale else {"matched": "1"}.get(row.feedback_scale, row.feedback_scale)
    return f"{row.lr:g}", f"{row.weight_decay:g}", size, f"{row.head_lr:g}"


def _short(row: Row, line: Line) -> str:
    """Name a trial by what is not the default."""
    trial = line.trial(row)
    second = "" if trial.second is None else f", {'× ' if line.tunes_feedback else 'decay '}{trial.second:g}"
    return f"{trial.lr:g}{second}" + ("" if trial.head_lr is None else f", head × {trial.head_lr:g}")


def _percent(value: float) -> str:
    return "diverged" if value == -math.inf else f"{value:.2f}"
