"""The results of an experiment: one tidy CSV, a row a run and epoch, from which tables and plots are made."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from torchdfa.experiments.measure import measure_of
from torchdfa.files import write_rows
from torchdfa.training import EpochResult, TrainConfig


@dataclass(frozen=True)
class Cell:
    """One run of an experiment.

    Attributes:
        experiment: Its name.
        method: The method's name in tables.
        phase: "search", scored on held-out training images; "final", scored on the test images.
        config: All that its result depends on.
        scale: Of the experiment.
        angles: Whether to keep the angles of every layer, in ``angles.csv``.
    """

    experiment: str
    method: str
    phase: str
    config: TrainConfig
    scale: str = ""
    angles: bool = False

    @property
    def key(self) -> str:
        """The run's name: a hash of the settings that are not the defaults, less the place of the data.

        A setting that a later version adds leaves the names of older runs as they are. So does a default that changes,
        if its first value is told in ``_FIRST_DEFAULTS``.
        """
        settings = {k: v for k, v in changed(self.config).items() if k != "data_root"}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Row:
    """One epoch of one run; accuracies in percent, empty where not measured.

    Attributes:
        experiment: Name of the experiment.
        scale: Its size.
        dataset: Name of the data.
        train_size: Training images, held-out ones included; of a text, tokens.
        method: Name of the method in tables.
        init: Of the feedback: random or product.
        options: Network, rule and all other settings that are not the defaults.
        lr: Peak learning rate.
        head_lr: That of the head over that of the trunk.
        weight_decay: L2 penalty.
        feedback_scale: Size of the feedback, as the rule's ``scale``.
        phase: search or final.
        seed: Of weights, order and feedback.
        epoch: Counted from 1; 0 in the one row of a run that diverged in its first epoch.
        epochs: That the run was to have.
        train_loss: Mean over the epoch.
        train_top1: Likewise.
        val_top1: On the held-out images or text.
        test_top1: On the test images or text.
        test_top5: Likewise.
        step_seconds: Median of the epoch's steps.
        trunk_angle: Between the trunk's gradient and the true one, in degrees.
        trunk_ratio: Length of the trunk's gradient over that of the true one.
        problem: Why the run ended before its last epoch; empty if it did not.
        key: The run's name, a hash of its settings.
        val_loss: Mean on the held-out images or text; the logarithm of a text's perplexity.
        test_loss: Likewise on the test images or text.
        precision: What it was computed in, as TrainConfig has it, where "auto" depends on the machine; empty in runs
            recorded before this column was.
    """

    experiment: str
    scale: str
    dataset: str
    train_size: int
    method: str
    init: str
    options: str
    lr: float
    head_lr: float
    weight_decay: float
    feedback_scale: str
    phase: str
    seed: int
    epoch: int
    epochs: int
    train_loss: float
    train_top1: float
    val_top1: float
    test_top1: float
    test_top5: float
    step_seconds: float
    trunk_angle: float
    trunk_ratio: float
    problem: str
    key: str
    val_loss: float = math.nan
    test_loss: float = math.nan
    precision: str = ""


_FIELDS = tuple(f.name for f in dataclasses.fields(Row))
# What a row takes over from an epoch's result; the learning rate it names is the run's peak.
_MEASURED = tuple(f.name for f in dataclasses.fields(EpochResult) if f.name in _FIELDS and f.name != "lr")
_KINDS: dict[str, Any] = {
    f.name: {"int": int, "float": float, "str": str}[str(f.type)] for f in dataclasses.fields(Row)
}
# From this column on, files of earlier versions may end.
_FIRST_LATER = _FIELDS.index("val_loss")
_EMPTY = {int: "", float: "nan", str: ""}


class Results:
    """``results.csv``: read by anyone, added to by several processes at once, a whole run at a time."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> dict[str, list[Row]]:
        """Return the rows of every finished run by its key; rows of runs that are not whole are left out.

        Raises:
            ValueError: The file's columns are not those of Row.
        """
        if not self.path.exists():
            return {}
        text = self.path.read_bytes()
        runs: dict[str, list[Row]] = {}
        try:
            # A last line without an end was cut off, perhaps in the middle of its key.
            reader = csv.DictReader(io.StringIO(text[: text.rfind(b"\n") + 1].decode(), newline=""))
            names = tuple(reader.fieldnames or ())
            if names != _FIELDS[: len(names)] or len(names) < _FIRST_LATER:
                raise ValueError(f"{self.path} has the columns {list(names)}, expected {list(_FIELDS)}. Move it away.")
            for line in reader:
                row = _parse(line)
                if row is not None:
                    runs.setdefault(row.key, []).append(row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{self.path} is no CSV, or damaged ({error}). Move it away.") from error
        return {key: rows for key, rows in runs.items() if _whole(rows)}

    def add(self, rows: Sequence[Row]) -> None:
        """Append the rows of one finished run, unless it is there already."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            runs = self.read()
            if rows[0].key not in runs:
                self._write([*(row for run in runs.values() for row in run), *rows])

    def adopt(self, cell: Cell, run: Sequence[Row]) -> None:
        """Take over a finished run of another experiment as a cell's, if it is not there."""
        named = {"experiment": cell.experiment, "scale": cell.scale, "method": cell.method}
        self.add([dataclasses.replace(row, **named) for row in run])

    def sort(self, order: Sequence[str]) -> None:
        """Put the runs in the order of methods, then search before final, then by learning rate and seed."""
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            rows = [row for run in self.read().values() for row in run]
            rank = {name: i for i, name in enumerate(order)}
            rows.sort(key=lambda r: (rank.get(r.method, len(rank)), r.phase != "search", r.lr, r.seed, r.key, r.epoch))
            self._write(rows)

    def _write(self, rows: Iterable[Row]) -> None:
        # The whole file anew: at a few thousand rows that takes milliseconds, and no reader ever sees a part of a run.
        write_rows(self.path, Row, rows, nan="")


def _whole(rows: Sequence[Row]) -> bool:
    """Tell whether these are all the rows of one run, or those of one that ended before its last epoch."""
    last = rows[-1]
    if last.problem:
        return True
    return len(rows) == last.epochs and all(row.epoch == i for i, row in enumerate(rows, 1))


def find_results(folder: Path) -> list[Results]:
    """Return the results of all experiments at and below a folder; other programs' files of that name are left out."""
    paths = sorted(folder.rglob("results.csv"))
    return [Results(path) for path in paths if path.read_bytes().startswith(f"{_FIELDS[0]},".encode())]


def rows_of(
    cell: Cell, history: Sequence[EpochResult], problem: str, train_size: int, precision: str = ""
) -> list[Row]:
    """Return the rows of a run; one row with epoch 0 where it has no epoch."""
    config = cell.config
    rule = next((r for r in config.rules if hasattr(r, "init")), None)
    nothing = EpochResult(0, *[math.nan] * (len(dataclasses.fields(EpochResult)) - 1))
    return [
        Row(
            experiment=cell.experiment,
            scale=cell.scale,
            dataset=config.data,
            train_size=train_size,
            method=cell.method,
            init=getattr(rule, "init", ""),
            options=_options(config),
            lr=config.lr,
            head_lr=config.head_lr,
            weight_decay=config.weight_decay,
            feedback_scale=str(getattr(rule, "scale", "")),
            phase=cell.phase,
            seed=config.seed,
            epochs=config.epochs,
            problem=problem,
            key=cell.key,
            precision=precision,
            **{name: getattr(result, name) for name in _MEASURED},
        )
        for result in (history or [nothing])
    ]


def score(run: Sequence[Row]) -> float:
    """Return how well a run ended, more being better: minus infinity if it diverged, or ended as no number.

    It is the accuracy on held-out (search) or test images (final); of a text, minus the perplexity.
    """
    last = run[-1]
    if last.problem:
        return -math.inf
    measure = measure_of(last.dataset)
    value = measure.of(last, "val" if last.phase == "search" else "test")
    return -math.inf if math.isnan(value) else -value if measure.falls else value


# Of settings of a run whose default has changed since runs were first recorded, the first: names and options go by it.
_FIRST_DEFAULTS: dict[str, Any] = {"clip": None}


def changed(value: Any) -> Any:
    """Turn settings into plain data, less those that have the defaults; rules and networks keep their class's name."""
    if isinstance(value, Mapping):
        return {key: changed(part) for key, part in value.items()}
    if not dataclasses.is_dataclass(value):
        return list(value) if isinstance(value, tuple) else value
    first = _FIRST_DEFAULTS if isinstance(value, TrainConfig) else {}
    defaults = {f.name: first.get(f.name, f.default) for f in dataclasses.fields(value)}
    plain = {
        name: changed(found)
        for name, default in defaults.items()
        if (found := getattr(value, name)) != default or default is dataclasses.MISSING
    }
    return plain if isinstance(value, TrainConfig) else {"class": type(value).__name__, **plain}


# Settings that have a column of their own, or are no part of what a run's row tells.
_COLUMNS = set(_FIELDS) - {"precision"} | {"data", "data_root", "validation", "alignment", "score_every"}


def _options(config: TrainConfig) -> str:
    """Name network, rule and all other settings that are not the defaults and have no column."""
    settings = changed(config)
    named = settings["rule"] if isinstance(config.rule, dict) else {"": settings["rule"]}
    parts = [_called(settings["model"])]
    parts += [f"{pattern}: {_called(rule)}" if pattern else _called(rule) for pattern, rule in named.items()]
    parts += [f"{k}={v}" for k, v in settings.items() if k not in _COLUMNS | {"model", "rule"}]
    return "; ".join(parts)


def _called(settings: dict[str, Any]) -> str:
    """Write a rule or network as a call, without what has a column."""
    inner = ", ".join(f"{k}={_brief(v)}" for k, v in settings.items() if k not in ("class", "init", "scale", "seed"))
    return f"{settings['class']}({inner})" if inner else settings["class"]


def _brief(value: Any) -> Any:
    """Write the widths of a hundred equal layers as one and its count."""
    alike = isinstance(value, list) and len(value) > 3 and len(set(value)) == 1
    return f"{value[:1]} * {len(value)}" if alike else value


def _parse(line: Mapping[str, Any]) -> Row | None:
    """Return a row, or None for one that was cut off."""
    if not line["key"]:
        return None
    try:
        return Row(**{name: kind(line.get(name) or _EMPTY[kind]) for name, kind in _KINDS.items()})
    except (TypeError, ValueError, KeyError):
        return None
