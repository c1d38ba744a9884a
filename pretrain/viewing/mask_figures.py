"""Figures of the mask laboratory: masks side by side, and where strategies hide."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from mimbench.system.files import atomic_path
from pretrain.viewing.laboratory import Observation
from pretrain.viewing.mask_statistics import StrategyStatistics

INK, FAINT, PAPER, VEIL = "#1b1f24", "#6b7280", "#ffffff", "#e7e5df"
HEAT, WHERE = "magma", "BuPu"
FONT: dict[Any, Any] = {"font.family": "DejaVu Sans", "text.color": INK, "axes.labelcolor": INK}
CELL = 1.25
"""Inches of one picture."""
MOST = 10
"""Pictures beside each other, behind the image."""
LEGEND = (
    "Heat maps: bright is much. Veiled patches are hidden; what follows a schedule is shown at its end, "
    "where half of HPM's hidden patches are the hardest and the others random."
)


def show_masks(
    path: Path,
    observation: Observation,
    masks: Mapping[str, Tensor],
    *,
    title: str,
    names: Sequence[str],
) -> None:
    """Draw each image in a row: itself, what the checkpoint says of it, and every strategy's mask.

    Strategies that do not fit beside each other go on below, each line with its images in front.
    """
    # only its order counts, and one patch often outshines all others
    guides = {"attention\n(rank)": observation.attention.argsort(dim=1).argsort(dim=1).float()}
    if observation.difficulty is not None:
        guides["predicted loss"] = observation.difficulty
    if observation.log_probability is not None:
        guides["generator"] = observation.log_probability.exp()
    lines, rows = _lines([*guides, *masks]), len(observation.images)
    columns, tall = 1 + max(map(len, lines)), rows * CELL + 0.55
    width, height = columns * CELL + 0.9, len(lines) * tall + 0.6
    with mpl.rc_context(FONT):
        figure = _figure(width, height)
        left, side = 0.8 / width, CELL * 0.94
        for number, line in enumerate(lines):
            top = 1 - (0.72 + number * tall) / height
            for row, image in enumerate(observation.images):
                picture = image.permute(1, 2, 0).numpy()
                for column, label in enumerate(["image", *line]):
                    # a little air between what is seen and what is hidden
                    gap = (0.06 if column else 0.0) + (0.06 if label in masks else 0.0)
                    x, y = left + (column * CELL + gap) / width, top - (row * CELL + side) / height
                    axis = figure.add_axes((x, y, side / width, side / height))
                    if label in guides:
                        heat = guides[label][row].unflatten(0, observation.grid)
                        _heat(axis, heat.numpy())
                    elif label in masks:
                        _picture(axis, veiled(picture, masks[label][row], observation.grid))
                    else:
                        _picture(axis, picture)
                        axis.set_ylabel(names[row], fontsize=6.5, color=FAINT, labelpad=4)
                    if not row:
                        axis.set_title(_two_lines(label), fontsize=8, pad=5, linespacing=1.05, va="baseline")  # fmt: skip
                    if row == rows - 1 and label in masks:
                        share = 100 * masks[label].float().mean().item()
                        axis.set_xlabel(f"{share:.0f} % hidden", fontsize=6.5, color=FAINT, labelpad=3)  # fmt: skip
        figure.text(left, 1 - 0.14 / height, title, fontsize=10, weight="bold", va="top")
        figure.text(left, 0.1 / height, LEGEND, fontsize=6.5, color=FAINT, va="bottom")
        _save(figure, path)


def _lines(labels: Sequence[str]) -> list[list[str]]:
    """Return labels in as few lines as fit a page, of about equal length."""
    count = -(-len(labels) // MOST)
    length = -(-len(labels) // count)
    return [list(labels[i : i + length]) for i in range(0, len(labels), length)]


def _two_lines(label: str) -> str:
    return label.replace(" ", "\n", 1)


def veiled(picture: Any, mask: Tensor, grid: tuple[int, int]) -> Any:
    """Return a picture (H, W, 3) whose hidden patches lie under paper, with a hairline between."""
    veil = np.array(to_rgb(VEIL))
    tall, wide = picture.shape[0] // grid[0], picture.shape[1] // grid[1]
    # enlarged, so that hairlines are thinner than a pixel of a small picture
    by = max(1, 320 // max(picture.shape[:2]))
    out = np.repeat(np.repeat(picture, by, 0), by, 1).copy()
    for row, column in mask.unflatten(0, grid).nonzero().tolist():
        place = out[
            row * tall * by : (row + 1) * tall * by, column * wide * by : (column + 1) * wide * by
        ]
        place[:] = 0.07 * place + 0.93 * veil
        place[-1:] = place[:, -1:] = veil * 0.95
    return out


def show_statistics(
    path: Path, rows: Sequence[StrategyStatistics], *, kind: str, title: str
) -> None:
    """Draw where each strategy hides, and its figures as bars on common scales.

    Args:
        path: The figure's file.
        rows: The strategies.
        kind: What annotations show, `objects` or `segments`.
        title: What stands above.
    """
    measures: list[tuple[str, list[float | None], float | None]] = [
        ("ratio\n", [r.ratio for r in rows], None),
        ("spatial entropy\n1: everywhere alike", [r.spatial_entropy for r in rows], None),
        ("clumping\n1: none", [r.clumping for r in rows], 1.0),
        (f"{kind} hidden\n1: as by chance", [r.objects for r in rows], 1.0),
        ("rank correlation\nwith true loss", [r.rank_correlation for r in rows], 0.0),
    ]
    measures = [m for m in measures if any(v is not None for v in m[1])]
    height, width = 0.62 * len(rows) + 1.1, 2.6 + 1.5 * len(measures)
    with mpl.rc_context(FONT):
        figure = _figure(width, height)
        top, step = 1 - 0.85 / height, 0.62 / height
        highest = max(row.where.max().item() for row in rows)
        for index, row in enumerate(rows):
            y = top - (index + 1) * step
            figure.text(
                1.45 / width, y + step / 2, row.label, fontsize=8.5, ha="right", va="center"
            )
            axis = figure.add_axes((1.55 / width, y + step * 0.06, 0.54 / width, step * 0.88))
            axis.imshow(row.where.numpy(), cmap=WHERE, vmin=0, vmax=highest)
            _bare(axis)
        for column, (name, values, reference) in enumerate(measures):
            axis = figure.add_axes(
                (
                    (2.4 + 1.5 * column) / width,
                    top - len(rows) * step,
                    1.2 / width,
                    len(rows) * step,
                )
            )
            _bars(axis, name, values, reference)
        figure.text(0.2 / width, 1 - 0.14 / height, title, fontsize=10, weight="bold", va="top")
        where = figure.text(1.82 / width, top + 0.06 / height, "where", fontsize=8, ha="center")
        where.set_color(INK)
        _save(figure, path)


def _bars(axis: Any, name: str, values: Sequence[float | None], reference: float | None) -> None:
    places = range(len(values))
    origin = reference or 0.0
    known = [0.0 if v is None else v - origin for v in values]
    axis.barh(places, known, left=origin, height=0.5, color="#4c6a92")
    span = max([abs(k) for k in known] + [1e-9])
    for place, value in zip(places, values, strict=True):
        text = "-" if value is None else f"{value:.2f}"
        ahead = value is None or value >= origin
        at = (origin if value is None else value) + (0.06 if ahead else -0.06) * span
        axis.text(
            at, place, text, fontsize=7, va="center", ha="left" if ahead else "right", color=INK
        )
    low = min([*known, 0.0])
    axis.set_xlim(origin + (low - 0.5 * span if low < 0 else 0.0), origin + 1.5 * span)
    axis.set_ylim(len(values) - 0.5, -0.5)
    axis.axvline(origin, color=FAINT, linewidth=0.7)
    axis.set_title(name, fontsize=8, pad=5, linespacing=1.05)
    _bare(axis)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=200, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def _picture(axis: Any, picture: Any) -> None:
    axis.imshow(picture.clip(0, 1), interpolation="nearest")
    _bare(axis)


def _heat(axis: Any, values: Any) -> None:
    axis.imshow(values, cmap=HEAT, interpolation="nearest")
    _bare(axis)


def _bare(axis: Any) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as part:
        figure.savefig(part, format=path.suffix.lstrip(".").lower() or "png")
