"""Draw the picture of the README from its own table: `python docs/tools/chart.py`."""

import re
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "pictures" / "demo.svg"
COLOURS = ("#b8bcc4", "#2f6fde")


def read_table(text: str) -> tuple[list[str], dict[str, list[tuple[float, float]]]]:
    """Return the columns of the first table with intervals, and row -> (value, half) pairs."""
    rows = [
        line.strip().strip("|").split("|") for line in text.splitlines() if line.startswith("|")
    ]
    cells = [[cell.strip() for cell in row] for row in rows]
    measured = [row for row in cells if "±" in row[-1]]
    width = len(measured[0])
    columns = next(row for row in cells if len(row) == width)[1:]
    values = {
        row[0]: [(float(a), float(b)) for a, b in (cell.split("±") for cell in row[1:])]
        for row in measured
    }
    return columns, values


def draw(columns: list[str], values: dict[str, list[tuple[float, float]]]) -> Figure:
    """Return grouped bars with their 95 % intervals."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    width = 0.38
    for i, ((name, pairs), colour) in enumerate(zip(values.items(), COLOURS, strict=True)):
        at = [x + (i - 0.5) * width for x in range(len(columns))]
        heights, halves = [v for v, _ in pairs], [h for _, h in pairs]
        axes.bar(
            at, heights, width, yerr=halves, label=name, color=colour, capsize=2.5, ecolor="#444"
        )
        for x, value, half in zip(at, heights, halves, strict=True):
            axes.text(x, value + half + 1.5, f"{value}", ha="center", fontsize=8)
    axes.set_xticks(range(len(columns)), [name.replace(" ", "\n", 1) for name in columns])
    axes.set_ylabel("percent")
    axes.set_ylim(0, 92)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.legend(frameon=False, loc="upper right")
    return figure


def main() -> int:
    """Write the picture."""
    columns, values = read_table((ROOT / "README.md").read_text(encoding="utf-8"))
    # text stays text, and the same table gives the same file
    style = {"svg.fonttype": "none", "svg.hashsalt": "mimbench", "font.family": "sans-serif"}
    with mpl.rc_context(style):
        draw(columns, values).savefig(PICTURE, format="svg", metadata={"Date": None})
    # matplotlib leaves blanks at the ends of lines
    PICTURE.write_text(re.sub(r"[ \t]+\n", "\n", PICTURE.read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
