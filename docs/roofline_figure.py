"""Draw docs/roofline.svg: the binary product and torch.mm under the roofs of one core, from the committed record.

python docs/roofline_figure.py
"""

import csv
import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RECORD = Path(__file__).parents[1] / "records/2026-11-22-binary-product/binary_product.csv"
SIZES = {(50257, 1024): "50257 × 1024", (1000, 4096): "1000 × 4096"}
# Candidate, its name, bytes read for one entry of the feedback, colour, marker, where its batch sizes are written.
CANDIDATES = (
    ("mm", "torch.mm, float32", 4.0, "#444444", "o", (0, -11)),
    ("mm bfloat16", "torch.mm, bfloat16", 2.0, "#9a7d0a", "s", (9, -9)),
    ("stored", "one bit an entry", 1 / 8, "#c1440e", "^", (0, 6)),
)


def main() -> None:
    """Plot multiply-adds a second against multiply-adds for each byte that is moved."""
    found: dict[tuple[int, int, int, str], list[float]] = defaultdict(list)
    with RECORD.open() as file:
        for row in csv.DictReader(file):
            if row["part"] == "speed":
                key = int(row["errors"]), int(row["features"]), int(row["batch"]), row["candidate"]
                found[key].append(float(row["us"]))
    plt.rcParams.update({"svg.hashsalt": "torchdfa", "font.size": 9})
    figure, all_axes = plt.subplots(1, 2, figsize=(9.4, 4.1), sharey=True, sharex=True)
    for axes, ((k, h), title) in zip(all_axes, SIZES.items(), strict=True):
        for candidate, name, entry, colour, marker, place in CANDIDATES:
            points = []
            for n in sorted({key[2] for key in found if key[:2] == (k, h)}):
                moved = k * h * entry + 4 * n * (k + h)
                points.append((n * k * h / moved, n * k * h / statistics.median(found[k, h, n, candidate]) / 1e3, n))
            axes.plot(*list(zip(*points, strict=True))[:2], marker + "-", color=colour, label=name, markersize=5)
            for x, y, n in points:
                axes.annotate(f"{n}", (x, y), place, textcoords="offset points", ha="center", fontsize=7, color=colour)
        reach = statistics.median(found[50257, 1024, 1, "mm"])
        bandwidth = 4 * 50257 * 1024 / reach / 1e3  # GB/s: what torch.mm reads where it waits for nothing else
        best = max(k_h_n(key) / statistics.median(us) for key, us in found.items() if key[3] == "mm") / 1e3
        xs = [0.2, best / bandwidth]
        axes.plot([*xs, 400], [x * bandwidth for x in xs] + [best], "--", color="#888888", lw=1)
        axes.text(0.42, 0.56 * bandwidth, f"memory, {bandwidth:.0f} GB/s", rotation=43, fontsize=7.5, color="#666666")
        axes.text(0.23, best * 1.04, f"best of torch.mm, float32: {best:.0f}", fontsize=7.5, color="#666666")
        axes.set(xscale="log", yscale="log", xlim=(0.2, 400), ylim=(1.5, 400), title=title)
        axes.set_xlabel("multiply-adds for each byte of feedback, errors and result")
        axes.grid(True, which="major", color="#eeeeee")
    all_axes[0].set_ylabel("10⁹ multiply-adds a second, one thread")
    all_axes[0].legend(frameon=False, loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("roofline.svg"), metadata={"Date": None})


def k_h_n(key: tuple[int, int, int, str]) -> int:
    """Return the multiply-adds of a product."""
    return key[0] * key[1] * key[2]


if __name__ == "__main__":
    main()
