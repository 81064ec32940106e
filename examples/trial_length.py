"""Do short trials rank settings as whole ones do?

Experiments may search with trials shorter than their last runs. Whether that is fair is measured by searching twice:

    torchdfa reproduce hybrid-cnn --out runs/short --trial-epochs 4 --seeds 1
    torchdfa reproduce hybrid-cnn --out runs/whole
    python examples/trial_length.py runs/short runs/whole

prints, for each row, how the scores of the trials that both searches have correlate, and what it costs to have chosen
by the short ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scipy.stats import spearmanr

from torchdfa.experiments.markdown import table
from torchdfa.experiments.measure import measure_of
from torchdfa.experiments.results import Results, Row, score

Trial = tuple[float, float, str, float]


def main() -> None:
    """Compare two searches and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("short", type=Path, help="results.csv of the experiment with short trials, or its folder")
    parser.add_argument("whole", type=Path, help="that of the same experiment with whole ones")
    options = parser.parse_args()
    short, whole = searched(options.short), searched(options.whole)
    both = (name for name in whole if len(whole[name].keys() & short.get(name, {}).keys()) > 1)
    rows = [compared(name, short[name], whole[name]) for name in both]
    if not rows:
        raise SystemExit(f"{options.short} and {options.whole} have no row of which both hold two trials.")
    head = ("row", "trials", "epochs", "rank correlation", "best of the short", "best of the whole", "lost by it")
    print("\n".join(table(head, rows)))


def searched(place: Path) -> dict[str, dict[Trial, list[Row]]]:
    """Return the trials of each row of an experiment."""
    found: dict[str, dict[Trial, list[Row]]] = {}
    for run in Results(place / "results.csv" if place.is_dir() else place).read().values():
        first = run[0]
        if first.phase == "search":
            trial = first.lr, first.weight_decay, first.feedback_scale, first.head_lr
            found.setdefault(first.method, {})[trial] = run
    return found


def compared(name: str, short: dict[Trial, list[Row]], whole: dict[Trial, list[Row]]) -> tuple[str, ...]:
    """Return a row of the table, of the trials that both have; what is lost is scored by the whole ones."""
    common = [trial for trial in whole if trial in short]
    chosen, best = (max(common, key=lambda trial: score(trials[trial])) for trials in (short, whole))
    measure = measure_of(whole[best][0].dataset)
    value, most = (measure.scaled(abs(score(whole[trial]))) for trial in (chosen, best))
    return (
        name,
        str(len(common)),
        " and ".join(str(trials[best][0].epochs) for trials in (short, whole)),
        f"{spearmanr([score(short[t]) for t in common], [score(whole[t]) for t in common]).statistic:.2f}",
        _named(chosen),
        _named(best),
        f"{measure.difference(abs(value - most)):.2f}" + (" %" if measure.falls else ""),
    )


def _named(trial: Trial) -> str:
    lr, decay, size, head = trial
    second = f"× {size}" if size not in ("", "matched") else f"decay {decay:g}"
    return f"{lr:g}, {second}" + (f", head × {head:g}" if head != 1 else "")


if __name__ == "__main__":
    main()
