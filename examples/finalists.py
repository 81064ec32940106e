"""Does a comparison hang on which trial the search chose?

A search scores each trial once, on few held-out images, so that the trial it chooses may be a lucky one. This gives the
next best trials their last runs too, with every seed, and compares the rows at each:

    torchdfa reproduce recipe1000 --out runs/recipe
    python examples/finalists.py recipe1000 runs/recipe --rows BP "CBDFA (9)" --best 4 --out runs/finalists --jobs 2

Runs that are there already, in --out or in the experiment's folder, are not made again. Prints each trial's held-out
and test accuracy, then each row's mean at the trial that was chosen, over all of these trials, and at the one that is
best on the test images: no search knows that one, it is what luck in choosing could add.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics as stats
from collections.abc import Sequence
from pathlib import Path

from torchdfa.experiments import EXPERIMENTS
from torchdfa.experiments.markdown import spread, table
from torchdfa.experiments.progress import watch
from torchdfa.experiments.reproduce.page import Standing, standings
from torchdfa.experiments.results import Cell, Results, Row, score
from torchdfa.experiments.runner import Workers, run_cells


def main() -> None:
    """Run the finalists and print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=list(EXPERIMENTS), help="that was run")
    parser.add_argument("folder", type=Path, help="its results")
    parser.add_argument("--rows", nargs="+", required=True, help="of its table")
    parser.add_argument("--best", type=int, default=4, help="trials of each row, the chosen one included")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new results.csv")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--data-root", help="folder of all data; else TORCHDFA_DATA")
    options = parser.parse_args()
    try:
        found = chosen_rows(options.experiment, options.folder, options.rows)
        finals = run(found, options)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    print("\n".join(report(found, finals)))


def chosen_rows(experiment: str, folder: Path, rows: Sequence[str]) -> list[Standing]:
    """Return what the rows came to."""
    found = {s.name: s for s in standings(EXPERIMENTS[experiment], folder)}
    if missing := [name for name in rows if name not in found or not found[name].finals]:
        raise ValueError(f"{folder} has no last runs of {missing}, but those of {', '.join(map(repr, found))}.")
    return [found[name] for name in rows]


def run(found: Sequence[Standing], options: argparse.Namespace) -> dict[str, list[list[list[Row]]]]:
    """Return, for each row, the last runs of each of its best trials."""
    results = Results(options.out / "results.csv")
    known = Results(options.folder / "results.csv").read()
    cells: dict[str, list[list[Cell]]] = {
        s.name: [finalist(s, trial, options) for trial in best(s, options)] for s in found
    }
    wanted = [cell for trials in cells.values() for trial in trials for cell in trial]
    for cell in wanted:
        if cell.key in known:
            results.adopt(cell, known[cell.key])
    with watch(True, len(wanted)) as watcher, Workers(options.jobs) as workers:
        runs = {}
        for cell, rows in run_cells(wanted, options.out, workers):
            runs[cell.key] = rows
            watcher.count(cell)
    results.sort([s.name for s in found])
    return {name: [[runs[cell.key] for cell in trial] for trial in trials] for name, trials in cells.items()}


def best(s: Standing, options: argparse.Namespace) -> list[list[Row]]:
    """Return a row's best trials, the one that was chosen first."""
    chosen = s.line.trial(next(iter(s.finals.values()))[0])
    ranked = sorted(s.searched, key=lambda trial: (s.line.trial(trial[0]) != chosen, -score(trial)))
    return ranked[: options.best]


def finalist(s: Standing, trial: list[Row], options: argparse.Namespace) -> list[Cell]:
    """Return the last runs of a trial, one a seed."""
    first = next(iter(s.finals.values()))[0]
    config = dataclasses.replace(s.line.config, data_root=options.data_root, epochs=first.epochs)
    line = dataclasses.replace(s.line, config=config)
    setting = line.trial(trial[0])
    seeds = sorted(s.finals)
    return [Cell(first.experiment, s.name, "final", line.settings(setting, seed), first.scale) for seed in seeds]


def report(found: Sequence[Standing], finals: dict[str, list[list[list[Row]]]]) -> list[str]:
    """Return both tables."""
    trials, summary = [], []
    for s in found:
        scores = [[score(run) for run in trial] for trial in finals[s.name]]
        held_out = {s.line.trial(trial[0]): score(trial) for trial in s.searched}
        for i, (trial, values) in enumerate(zip(finals[s.name], scores, strict=True)):
            row = trial[0][0]
            setting = (f"{row.lr:g}", f"{row.weight_decay:g}", row.feedback_scale, f"{row.head_lr:g}")
            trials.append(
                (s.name, *setting, f"{held_out[s.line.trial(row)]:.2f}", spread(values), "" if i else "chosen")
            )
        means = [stats.fmean(values) for values in scores]
        summary.append((s.name, f"{means[0]:.2f}", spread(means), f"{max(means):.2f}"))
    head = ("row", "learning rate", "weight decay", "feedback", "head's rate", "held-out", "test", "")
    return [*table(head, trials), "", *table(("row", "chosen", "all", "best on the test images"), summary)]


if __name__ == "__main__":
    main()
