"""Draw docs/concepts.svg: back-propagation, and the same network cut, its output's error broadcast.

python docs/concepts_figure.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FORWARD, BACK, DIRECT = "#444444", "#7a5195", "#c1440e"
LEFT = [1.2, 4.0, 6.8]
WIDE, HIGH = 1.3, 0.62
OUT = LEFT[-1] + WIDE + 0.75
Point = tuple[float, float]


def main() -> None:
    """Draw two rows: errors through every layer, and errors from the output to each cut."""
    plt.rcParams.update({"svg.hashsalt": "torchdfa", "font.size": 10})
    figure, axes = plt.subplots(figsize=(9.6, 4.9))
    chain(axes, 0.0, cut=False)
    axes.text(-0.6, 1.12, "Back-propagation", weight="bold", fontsize=11)
    axes.text(2.05, 1.12, "the error comes down through every layer's transposed weights", color="#555555")
    for i, right in enumerate([LEFT[1], LEFT[2], OUT]):
        arrow(axes, (right - 0.03, -0.08), (LEFT[i] + 0.5 * WIDE, -0.08), BACK, bend=-0.32)
        label = ("$W_2^\\top e_2$", "$W_3^\\top e$", "$e$")[i]
        axes.text((right + LEFT[i] + 0.5 * WIDE) / 2, -0.62, label, color=BACK, ha="center", va="center")
    low = -3.0
    chain(axes, low, cut=True)
    axes.text(-0.6, low + 1.85, "Cut and broadcast", weight="bold", fontsize=11)
    axes.text(2.05, low + 1.85, "each cut gets the output's error at once, through its own feedback", color="#555555")
    for i in (0, 1):
        arrow(axes, (OUT + 0.36, low + HIGH + 0.02), (LEFT[i] + WIDE + 0.42, low + HIGH + 0.02), DIRECT, bend=0.26)
    axes.text(LEFT[0] + WIDE + 2.1, low + 1.42, "$e\\,B_2$", color=DIRECT, ha="center")
    axes.text(LEFT[1] + WIDE + 1.75, low + 0.78, "$e\\,B_3$", color=DIRECT, ha="center")
    for i, right in enumerate([LEFT[0] + WIDE + 0.42, LEFT[1] + WIDE + 0.42, OUT]):
        arrow(axes, (right - 0.03, low - 0.08), (LEFT[i] + 0.5 * WIDE, low - 0.08), BACK, bend=-0.35)
        label = "$f'$: autograd, within a piece" if i == 0 else ("autograd" if i == 1 else "$e$")
        axes.text((right + LEFT[i] + 0.5 * WIDE) / 2, low - 0.5, label, color=BACK, ha="center", va="center", size=9)
    axes.set(xlim=(-0.7, 10.3), ylim=(-3.8, 1.4))
    axes.axis("off")
    figure.tight_layout(pad=0.3)
    figure.savefig(Path(__file__).with_name("concepts.svg"), metadata={"Date": None}, facecolor="white")


def chain(axes: plt.Axes, y: float, cut: bool) -> None:
    """Draw the input, three layers and the output, with the cuts between them."""
    middle = y + HIGH / 2
    axes.text(0.0, middle, "$x$", va="center", ha="center", fontsize=12)
    ends = [0.2, *(x + WIDE for x in LEFT)]
    for i, (end, begin) in enumerate(zip(ends, [*LEFT, OUT - 0.1], strict=True)):
        if cut and i in (1, 2):
            place = end + 0.42
            arrow(axes, (end + 0.04, middle), (place - 0.02, middle), FORWARD)
            arrow(axes, (place + 0.16, middle), (begin - 0.04, middle), FORWARD)
            for shift in (0.02, 0.11):
                axes.plot([place + shift - 0.05, place + shift + 0.05], [middle - 0.24, middle + 0.24], c=DIRECT, lw=2)
        else:
            arrow(axes, (end + 0.04, middle), (begin - 0.04, middle), FORWARD)
        if i in (1, 2):
            axes.text(begin - 0.42, middle + 0.17, f"$h_{i}$", ha="center", color=FORWARD)
    for i, x in enumerate(LEFT):
        axes.add_patch(
            FancyBboxPatch((x, y), WIDE, HIGH, boxstyle="round,pad=0.01,rounding_size=0.08", fc="#f4f1e8", ec="#333333")
        )
        axes.text(x + WIDE / 2, middle, f"$W_{i + 1}$, $f$" if i < 2 else "$W_3$", ha="center", va="center")
    if cut:
        axes.add_patch(
            FancyBboxPatch((OUT, y), 0.7, HIGH, boxstyle="round,pad=0.01,rounding_size=0.3", fc="#fbe3d8", ec=DIRECT)
        )
        axes.text(OUT + 0.35, middle, "one\nnode", ha="center", va="center", fontsize=8)
        axes.text(OUT + 0.98, middle, "loss", va="center")
    else:
        axes.text(OUT, middle, "loss", va="center")


def arrow(axes: plt.Axes, start: Point, stop: Point, colour: str, bend: float = 0.0) -> None:
    """Draw an arrow, bent by a share of its length."""
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(start, stop, arrowstyle="-|>", mutation_scale=11, color=colour, connectionstyle=style, lw=1.4)
    )


if __name__ == "__main__":
    main()
