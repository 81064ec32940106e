"""Draw docs/modules.svg: how errors travel under back-propagation, HybridDFA and ModuleDFA.

python docs/modules_figure.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

BACK, DIRECT = "#444444", "#c1440e"
ROWS = (
    ("BP", "every error through\nthe layer above"),
    ("HybridDFA", "direct inside modules,\nback-propagated between"),
    ("ModuleDFA", "direct inside modules\nand between them"),
)
LEFT = [0.0, 1.4, 2.8, 4.7, 6.1, 7.5]
WIDE, HIGH = 0.95, 0.5


def main() -> None:
    """Draw three rows of two modules of three layers."""
    plt.rcParams.update({"svg.hashsalt": "torchdfa", "font.size": 9})
    figure, axes = plt.subplots(figsize=(9.4, 4.4))
    for row, (name, note) in enumerate(ROWS):
        y = -1.75 * row
        axes.text(-2.6, y + 0.36, name, weight="bold", va="center")
        axes.text(-2.6, y - 0.02, note, fontsize=7.5, va="center", color="#555555")
        for module in (LEFT[:3], LEFT[3:]):
            size = module[-1] + WIDE - module[0] + 0.3
            box = FancyBboxPatch(
                (module[0] - 0.15, y - 0.15), size, HIGH + 0.3, boxstyle="round,pad=0.03", fc="#f4f1e8"
            )
            box.set_edgecolor("#bbbbbb")
            axes.add_patch(box)
        for i, x in enumerate(LEFT):
            axes.add_patch(FancyBboxPatch((x, y), WIDE, HIGH, boxstyle="round,pad=0.01", fc="white", ec="#333333"))
            axes.text(x + WIDE / 2, y + HIGH / 2, f"layer {i + 1}", ha="center", va="center")
        end = LEFT[-1] + WIDE
        arrow(axes, (end + 0.75, y + HIGH / 2), (end + 0.03, y + HIGH / 2), BACK)
        axes.text(end + 0.82, y + HIGH / 2, "$e$", va="center")
        for i in range(1, 6):
            begin, below = LEFT[i], LEFT[i - 1] + WIDE
            output = LEFT[i // 3 * 3 + 2] + WIDE
            if name == "BP" or (name == "HybridDFA" and i % 3 == 0):
                arrow(axes, (begin - 0.02, y + HIGH / 2), (below + 0.03, y + HIGH / 2), BACK)
            else:
                arrow(
                    axes, (output + 0.02, y + HIGH), (below + 0.22 - 0.04 * (2 - i % 3), y + HIGH + 0.02), DIRECT, 0.32
                )
    axes.plot([], [], color=BACK, label="through a layer's transposed weights")
    axes.plot([], [], color=DIRECT, label="through feedback: a dilated, grouped convolution, or a sparse matrix")
    axes.legend(loc="lower center", ncols=2, frameon=False, bbox_to_anchor=(0.5, -0.06), fontsize=8)
    axes.set(xlim=(-2.7, 9.5), ylim=(-4.25, 1.5))
    axes.axis("off")
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("modules.svg"), metadata={"Date": None})


def arrow(
    axes: plt.Axes, start: tuple[float, float], stop: tuple[float, float], colour: str, bend: float = 0.0
) -> None:
    """Draw an arrow, bent upwards by a share of its length."""
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(start, stop, arrowstyle="-|>", mutation_scale=9, color=colour, connectionstyle=style, lw=1.3)
    )


if __name__ == "__main__":
    main()
