"""torchdfa track-bench: methods side by side on OTB sequences, each tuned alike; Han & Yoo's Figure 6."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout

from torchdfa.data.errors import DataError
from torchdfa.data.sources import data_root
from torchdfa.files import write_text
from torchdfa.rules import BDFA, BP, DFA, Rule
from torchdfa.settings import demand, some_of, whole
from torchdfa.tracking.backbones import load_trunk
from torchdfa.tracking.boxes import BoxError
from torchdfa.tracking.config import TrackerConfig
from torchdfa.tracking.follow import Follows
from torchdfa.tracking.peers import PEERS, OpenCVTracker
from torchdfa.tracking.pretrain import choose_head, fingerprint, videos_of
from torchdfa.tracking.scores import Score, evaluate, mean
from torchdfa.tracking.sequences import Sequence as Video
from torchdfa.tracking.sequences import halves, load_sequences, read_boxes, write_boxes
from torchdfa.tracking.tracker import Tracker
from torchdfa.tracking.video import read_image
from torchdfa.training import to_dict


@dataclass(frozen=True)
class Method:
    """A way to train the tracker's head.

    Attributes:
        rule: Of the hidden layers' errors.
        batch: Positives and negatives.
        hidden: Strengths of the hidden layers' learning that are tried when it is tuned, over the published one for BP
            and over "matched" feedback for DFA and BDFA: the size of the feedback is for them what the hidden layers'
            learning rate is for BP. The middle one is taken where nothing is tuned.
    """

    rule: Rule
    batch: tuple[int, int]
    hidden: tuple[float, float, float]

    def settings(self, config: TrackerConfig, trial: Trial | None = None) -> TrackerConfig:
        """Return the tracker's settings for this method, at a trial's learning rates."""
        trial = trial or Trial(1.0, self.hidden[1])
        positives, negatives = self.batch
        config = replace(
            config,
            positives=positives,
            negatives=negatives,
            first_lr=config.first_lr * trial.lr,
            update_lr=config.update_lr * trial.lr,
        )
        rule = self.rule
        if isinstance(rule, (DFA, BDFA)) and rule.scale != "unit":
            return replace(config, rule=replace(rule, scale=trial.hidden))
        return replace(
            config,
            rule=rule,
            first_lr=config.first_lr * trial.hidden,
            update_lr=config.update_lr * trial.hidden,
            last_lr=config.last_lr / trial.hidden,
        )


@dataclass(frozen=True)
class Trial:
    """Learning rates, over the published ones: of the whole head, and of its hidden layers on top of that."""

    lr: float
    hidden: float

    def __str__(self) -> str:
        return f"lr{self.lr:g}-hidden{self.hidden:g}"


_LARGE, _SMALL = (32, 96), (16, 48)
_BINARY = BDFA(init="product", center=True)
METHODS: dict[str, Method] = {
    "BP 128": Method(BP(), _LARGE, (0.3, 1, 3)),
    "BP 64": Method(BP(), _SMALL, (0.3, 1, 3)),
    "DFA 128": Method(DFA(init="product"), _LARGE, (10, 30, 100)),
    "DFA 64": Method(DFA(init="product"), _SMALL, (10, 30, 100)),
    "BDFA 128": Method(_BINARY, _LARGE, (10, 30, 100)),
    "BDFA 64": Method(_BINARY, _SMALL, (10, 30, 100)),
    "BDFA uncentred 128": Method(BDFA(init="product"), _LARGE, (10, 30, 100)),
    "BDFA unit 128": Method(BDFA(init="product", scale="unit"), _LARGE, (0.03, 0.1, 1)),
    "BDFA unit 64": Method(BDFA(init="product", scale="unit"), _SMALL, (0.03, 0.1, 1)),
}
FIGURE6 = ("BP 128", "BP 64", "BDFA 128", "BDFA 64", "BDFA unit 128")
LEARNING_RATES = (0.3, 1.0, 3.0)
# Seconds between looks at what other processes have finished.
_POLL = 2.0


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Settings of a comparison of trackers.

    Args:
        methods: Names, of ours or of OpenCV's; empty: those of Figure 6 and OpenCV's.
        sequences: Names of videos or targets; empty: all that are there.
        part: "all"; "tune", every other video; "report", the others, on which nothing was chosen.
        seeds: Of each of our methods, from 0 on; OpenCV's trackers have no chance in them and run once.
        tune: First try three learning rates times three strengths of the hidden layers for each of our methods on the
            tuning half of the videos, and take the best one of each.
        heads: Folder of pre-trained heads; each video gets one that has not seen it.
        tracker: Settings that all methods share.
        data_root: Folder that holds OTB's format, or the folder OTB. By default TORCHDFA_DATA.
    """

    methods: tuple[str, ...] = ()
    sequences: tuple[str, ...] = ()
    part: Literal["all", "tune", "report"] = "all"
    seeds: int = 3
    tune: bool = False
    heads: str | None = None
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    data_root: str | None = None

    def __post_init__(self) -> None:
        known = (*METHODS, *PEERS)
        if self.methods:
            demand(self, methods=some_of(self.methods, known))
        demand(self, seeds=whole(self.seeds))
        if self.heads is not None and self.tracker.head is not None:
            raise ValueError("heads= and tracker.head= name pre-trained layers both; give one.")

    @property
    def names(self) -> tuple[str, ...]:
        """The methods that run."""
        return self.methods or (*FIGURE6, *PEERS)


@dataclass(frozen=True)
class Run:
    """One method on one target with one seed, scored.

    Attributes:
        method: Its name.
        seed: Of the method.
        sequence: Name of the target.
        attributes: Of the sequence.
        score: Of its boxes.
        first: Seconds in the first frame.
        rate: Frames a second after it.
    """

    method: str
    seed: int
    sequence: str
    attributes: tuple[str, ...]
    score: Score
    first: float
    rate: float


class Bench:
    """A comparison in a folder: boxes in OTB's format and times, a file a target; what is there is not run again.

    Several processes may work on the same folder.

    Args:
        config: Settings.
        out: The folder: METHOD/seedN/TARGET.txt and TARGET_times.txt, search/ with the same for each trial.

    Raises:
        DataError: There are no sequences, or the folder holds results of other settings.
    """

    def __init__(self, config: BenchConfig, out: Path):
        self.config, self.out = config, out
        root = Path(config.data_root) if config.data_root else data_root()
        self.all = load_sequences(root, config.sequences or None)
        self._tuning, report = halves(self.all)
        self.sequences = {"all": self.all, "tune": self._tuning, "report": report}[config.part]
        if not self.sequences or (config.tune and not self._tuning):
            raise DataError(f"{root}: too few videos to split in halves: {len(self.all)} targets.")
        if config.tracker.head is not None:
            _demand_unseen(Path(config.tracker.head), self.all)
        self._trunk: Any = None

    # ---------------------------------------------------------------------------------------------------------- running

    def run(self, say: Callable[[str, int, int], None] = lambda text, done, total: None) -> None:
        """Run what is not there yet.

        Args:
            say: Called with what is going on, the frames done and the frames in all.
        """
        ours = sum(name in METHODS for name in self.config.names)
        searches = sum(len(self.trials(name)) for name in self._tuned_names())
        finals = ours * self.config.seeds + len(self.config.names) - ours
        total = searches * sum(len(s.frames) for s in self._tuning)
        total += finals * sum(len(s.frames) for s in self.sequences)

        def work(tuned: bool, done: int) -> int:
            for folder, make, sequences in self._plan(tuned):
                for sequence in sequences:
                    for i in self._follow(folder, make, sequence):
                        say(f"{folder.relative_to(self.out)} {sequence.name}", done + i, total)
                    done += len(sequence.frames)
            return done

        done = work(False, 0)
        # Rates are chosen when every trial is scored: what other processes are at is waited for, or taken over.
        while any(len(self.searched(name)) < len(self.trials(name)) for name in self._tuned_names()):
            say("waiting for the trials of other processes", done, total)
            time.sleep(_POLL)
            work(False, 0)
        work(True, done)

    def _plan(self, tuned: bool) -> Iterator[tuple[Path, Callable[[Video], Follows], list[Video]]]:
        """Yield the folders of runs, what makes their trackers, and their sequences: the search, then the rest.

        ``tuned`` tells which of the two; what is yielded for the second depends on the first one's results.
        """
        if not tuned:
            for name in self._tuned_names():
                for trial in self.trials(name):
                    settings = METHODS[name].settings(self.config.tracker, trial)
                    yield self._search_folder(name, trial), self._maker(settings), self._tuning
            return
        for name in self.config.names:
            if name in PEERS:
                yield self.out / name / "seed0", lambda _, n=name: OpenCVTracker(n), self.sequences
                continue
            settings = METHODS[name].settings(self.config.tracker, self.chosen(name))
            for seed in range(self.config.seeds):
                folder = self.out / _slug(name) / f"seed{seed}"
                yield folder, self._maker(replace(settings, seed=seed)), self.sequences

    def _tuned_names(self) -> list[str]:
        return [n for n in self.config.names if n in METHODS] if self.config.tune else []

    def _maker(self, settings: TrackerConfig) -> Any:
        def make(sequence: Video) -> Tracker:
            if self._trunk is None:
                c = self.config.tracker
                self._trunk = load_trunk(c.backbone, c.layers or None, c.weights, c.dtype)
            own = settings
            if self.config.heads is not None:
                own = replace(settings, head=str(choose_head(Path(self.config.heads), sequence)))
            return Tracker(own, trunk=self._trunk)

        make.settings = settings  # type: ignore[attr-defined]
        return make

    def _follow(self, folder: Path, make: Any, sequence: Video) -> Iterator[int]:
        """Follow a target through its sequence unless that was done; yield the number of frames gone."""
        boxes_file, times_file = folder / f"{sequence.name}.txt", folder / f"{sequence.name}_times.txt"
        folder.mkdir(parents=True, exist_ok=True)
        self._check_settings(folder, getattr(make, "settings", None))
        try:
            lock = FileLock(folder / f".{sequence.name}.lock")
            lock.acquire(timeout=0)
        except Timeout:
            return  # another process is at it
        try:
            if boxes_file.is_file():
                return
            tracker = make(sequence)
            boxes, times = [sequence.truth[0]], []
            for i, path in enumerate(sequence.frames):
                frame = read_image(path)
                started = time.perf_counter()
                if i == 0:
                    try:
                        tracker.init(frame, sequence.truth[0])
                    except BoxError as error:
                        raise DataError(f"{sequence.name}: its first annotation, counted from 0: {error}") from error
                else:
                    boxes.append(np.array(tracker.update(frame)[0]))
                times.append(time.perf_counter() - started)
                yield i + 1
            write_text(times_file, "".join(f"{t:.6f}\n" for t in times))
            write_boxes(boxes_file, boxes)
        finally:
            lock.release()

    @cached_property
    def _heads(self) -> str:
        """What tells the files of ``heads`` from others: read once, not for every target."""
        assert self.config.heads is not None
        files = sorted(Path(self.config.heads).glob("*.safetensors"))
        return hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).hexdigest()[:16]

    def _check_settings(self, folder: Path, settings: TrackerConfig | None) -> None:
        path = folder / "settings.json"
        stored = {} if settings is None else {k: v for k, v in to_dict(settings).items() if k != "precision"}
        if settings is not None and self.config.heads is not None:
            stored["head"] = f"one that has not seen the video, of the heads {self._heads}"
        text = json.dumps(stored, indent=1, sort_keys=True)
        if path.is_file():
            if path.read_text(encoding="utf-8") != text:
                raise DataError(f"{folder} holds results of other settings, see {path.name} there; give another --out.")
        else:
            write_text(path, text)

    # ---------------------------------------------------------------------------------------------------------- reading

    def trials(self, name: str) -> list[Trial]:
        """Return the learning rates that are tried for a method: nine, for each method."""
        return [Trial(lr, hidden) for lr, hidden in itertools.product(LEARNING_RATES, METHODS[name].hidden)]

    def searched(self, name: str) -> dict[Trial, float]:
        """Return the mean AUC on the tuning half of each trial of a method that is finished."""
        found = {}
        for trial in self.trials(name):
            runs = self._read(self._search_folder(name, trial), name, 0, self._tuning)
            if len(runs) == len(self._tuning):
                found[trial] = mean([run.score for run in runs]).auc
        return found

    def chosen(self, name: str) -> Trial | None:
        """Return the best trial of a method; None where nothing is tuned."""
        scores = self.searched(name) if name in self._tuned_names() else {}
        return max(scores, key=lambda trial: scores[trial]) if scores else None

    def runs(self) -> list[Run]:
        """Return what is finished."""
        found = []
        for name in self.config.names:
            for seed in range(1 if name in PEERS else self.config.seeds):
                found += self._read(self.out / _slug(name) / f"seed{seed}", name, seed, self.sequences)
        return found

    def boxes(self, name: str, seed: int, sequence: Video) -> Any:
        """Return the boxes of a finished run, (T, 4), or None."""
        path = self.out / _slug(name) / f"seed{seed}" / f"{sequence.name}.txt"
        return read_boxes(path) if path.is_file() else None

    def _read(self, folder: Path, name: str, seed: int, sequences: Sequence[Video]) -> list[Run]:
        found = []
        for sequence in sequences:
            path = folder / f"{sequence.name}.txt"
            if not path.is_file():
                continue
            boxes = read_boxes(path)
            if len(boxes) != len(sequence.truth):
                raise DataError(f"{path}: found {len(boxes)} boxes, expected {len(sequence.truth)}; remove the file.")
            times = np.loadtxt(folder / f"{sequence.name}_times.txt", ndmin=1)
            rate = 1 / times[1:].mean() if len(times) > 1 else math.nan
            score = evaluate(boxes, sequence.truth)
            found.append(Run(name, seed, sequence.name, sequence.attributes, score, float(times[0]), float(rate)))
        return found

    def _search_folder(self, name: str, trial: Trial) -> Path:
        return self.out / "search" / _slug(name) / str(trial) / "seed0"


def _demand_unseen(head: Path, sequences: Sequence[Video]) -> None:
    seen = videos_of(head)
    known = [s.name for s in sequences if s.video in seen or fingerprint(s) in seen.values()]
    if known:
        raise DataError(
            f"{head} was trained on {', '.join(known)}, which it would now be evaluated on. Give --heads a folder that "
            "track-pretrain wrote, from which each video gets a head that has not seen it."
        )


def _slug(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name)
