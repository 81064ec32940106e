"""The tracker's commands: track, track-pretrain, track-bench."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torchdfa.tracking.bench import Bench, BenchConfig
from torchdfa.tracking.config import TrackerConfig
from torchdfa.tracking.follow import Track, follow, parse_box, progress_bar
from torchdfa.tracking.pretrain import PretrainConfig, pretrain
from torchdfa.tracking.report import write_report
from torchdfa.tracking.sequences import load_sequences
from torchdfa.tracking.tracker import Tracker
from torchdfa.tracking.video import open_source

_TRACK = "Follow one object through a video, a folder of frames or a webcam's picture, learning it on the way."
_PRETRAIN = (
    "Train the first layers of the tracker's head over many annotated videos (OTB's format): one head that has seen "
    "all, and one for each video that has not seen that one."
)
_BENCH = (
    "Compare trackers on annotated videos (OTB's format) by one-pass evaluation: BP and BDFA at 128 and 64 samples a "
    "batch (Han & Yoo's Figure 6), OpenCV's CSRT, KCF and MIL. What is finished is not run again; several processes "
    "may share the work."
)
_CONFIG = "Read options from a YAML or JSON file."
_PRINT = "Print the configuration, as --config reads it, and exit."


def add_commands(commands: Any, make_parser: Any) -> dict[str, tuple[Any, Any, Any]]:
    """Add the commands to the command line.

    Args:
        commands: jsonargparse's subcommands.
        make_parser: Makes a parser.

    Returns:
        By the command's name: the class of its configuration, what runs it, and its parser.
    """
    track = make_parser(description=_TRACK, print_config=None)
    track.add_argument("source", type=str, help="Video file, folder of images, or a webcam's number.")
    track.add_argument("--config", action="config", help=_CONFIG)
    track.add_class_arguments(TrackerConfig)
    track.add_argument(
        "--box", type=str | None,
        help="The object in the first frame: x,y,w,h in pixels, the left upper corner being 0,0 "
        "(NAME.txt counts from 1, as OTB does). By default the annotated one of a folder in OTB's format, else it is "
        "drawn in a window.",
    )  # fmt: skip
    track.add_argument(
        "--out", type=str | None,
        help="Folder for NAME.mp4, NAME.txt (x,y,w,h a line, counted from 1), NAME_scores.txt and NAME_times.txt.",
    )  # fmt: skip
    track.add_argument("--name", type=str | None, help="NAME; by default that of the source.")
    track.add_argument("--overwrite", type=bool, default=False, help="Replace files that are there.")
    track.add_argument("--video", type=bool, default=True, help="Write NAME.mp4.")
    track.add_argument("--show", type=bool, default=False, help="Show the frames in a window.")
    track.add_argument("--limit", type=int | None, help="Frames after which it ends.")
    track.add_argument("--print_config", action="store_true", help=_PRINT)
    commands.add_subcommand("track", track, help=_TRACK)

    pre = make_parser(description=_PRETRAIN, print_config=None)
    pre.add_argument("root", type=str, help="Folder of the sequences.")
    pre.add_argument("--config", action="config", help=_CONFIG)
    pre.add_class_arguments(PretrainConfig)
    pre.add_argument("--sequences", type=list[str], default=[], help="Names of videos to learn from; by default all.")
    pre.add_argument("--out", type=str, default="heads", help="Folder of the heads.")
    pre.add_argument("--print_config", action="store_true", help=_PRINT)
    commands.add_subcommand("track-pretrain", pre, help=_PRETRAIN)

    bench = make_parser(description=_BENCH, print_config=None)
    bench.add_argument("--config", action="config", help=_CONFIG)
    bench.add_class_arguments(BenchConfig)
    bench.add_argument("--out", type=str, default="runs/track-bench", help="Folder of the results.")
    bench.add_argument("--report", action="store_true", help="Run nothing; make the page from what is there.")
    bench.add_argument("--print_config", action="store_true", help=_PRINT)
    commands.add_subcommand("track-bench", bench, help=_BENCH)
    return {
        "track": (TrackerConfig, _track, track),
        "track-pretrain": (PretrainConfig, _pretrain, pre),
        "track-bench": (BenchConfig, _bench, bench),
    }


def _track(config: TrackerConfig, options: dict[str, Any]) -> int:
    box, out = options.pop("box"), options.pop("out")
    box = None if box is None else parse_box(box)
    if options["limit"] is not None and options["limit"] < 1:
        raise ValueError(f"--limit {options['limit']}: expected 1 or more.")
    source = open_source(options.pop("source"))
    if not out and not options["show"]:
        print("torchdfa track: neither --out nor --show is given; only the summary is printed.", file=sys.stderr)
    tracker = Tracker(config)
    track = follow(source, tracker, box, out=Path(out) if out else None, **options)
    for problem in track.problems[:5]:
        print(f"torchdfa track: {problem} The box before it is repeated.", file=sys.stderr)
    if len(track.problems) > 5:
        print(f"torchdfa track: and {len(track.problems) - 5} frames more.", file=sys.stderr)
    if source.count and not track.stopped and options["limit"] is None and len(track.boxes) < source.count:
        print(f"torchdfa track: the source ends after {len(track.boxes)} of {source.count} frames.", file=sys.stderr)
    print(_summary(track))
    if out:
        name = options["name"] or source.name
        suffixes = [".mp4"] * options["video"] + [".txt", "_scores.txt", "_times.txt"]
        print(f"written to {out}: {', '.join(name + s for s in suffixes)}")
    return 130 if track.stopped and not options["show"] else 0


def _summary(track: Track) -> str:
    x, y, w, h = track.boxes[-1]
    frames = f"{len(track.boxes)} frames, first frame {track.seconds[0]:.1f} s"
    if len(track.boxes) < 2:
        return frames
    which = "those that could be read" if track.problems else "them"
    return (
        f"{frames}, then {track.rate:.1f} frames/s; target found in {100 * track.held:.0f} % of {which}; "
        f"last box {x:.1f},{y:.1f},{w:.1f},{h:.1f}"
    )


def _pretrain(config: PretrainConfig, options: dict[str, Any]) -> int:
    sequences = load_sequences(options["root"], options["sequences"] or None)
    paths = pretrain(config, sequences, Path(options["out"]), lambda text: print(text, file=sys.stderr))
    print(f"written to {options['out']}: {', '.join(path.name for path in paths)}")
    return 0


def _bench(config: BenchConfig, options: dict[str, Any]) -> int:
    out = Path(options["out"])
    bench = Bench(config, out)
    if not options["report"]:
        last = 0
        try:
            with progress_bar(True, sys.maxsize) as bar:

                def say(text: str, done: int, total: int) -> None:
                    nonlocal last
                    bar(f"{100 * done / total:.0f} %  {text}", done - last)
                    last = done

                bench.run(say)
        except KeyboardInterrupt:
            print(f"\ntorchdfa: stopped. Run the same command to go on; what is done is in {out}.", file=sys.stderr)
            raise
    page = write_report(bench)
    text = page.read_text(encoding="utf-8")
    print(text[text.index("| method") : text.index("\n\n", text.index("| method"))])
    print(f"written to {out}: {page.name}, plots.png, frames.png, results.csv")
    return 0
