"""The drawing behind `pretrain.show`: columns of pictures, a legend, and words for newcomers."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.viewing.view import HARD, RANDOM, Stage, View

Picture = NDArray[np.float32]

HEAT = colormaps["inferno"]
GREY, ORANGE, INK, QUIET = "#9aa0a6", "#f57d15", "#202124", "#5f6368"
CELL, MARGIN = 1.75, 0.12
"""Inches."""


def draw(view: View, names: Sequence[str]) -> Figure:
    """Return the drawing: a row for each image, the legend and a caption below."""
    columns = arrange(view)
    rows, count = len(view.images), len(columns)
    width = max(count * (CELL + MARGIN) + 0.6, 7.0)
    caption = textwrap.wrap(describe(view), width=int(width * 15.5))
    foot, head = 0.7 + 0.16 * len(caption), 0.95
    height = head + rows * (CELL + MARGIN) + foot
    fig = Figure(figsize=(width, height))
    FigureCanvasAgg(fig)
    fig.text(0.42 / width, 1 - 0.22 / height, "What the model expects to be hard, what is hidden, what it fills in",
             size=13, weight="bold", color=INK, va="center")  # fmt: skip
    left = 0.42
    for row in range(rows):
        for column, (title, detail, pictures) in enumerate(columns):
            box = (
                (left + column * (CELL + MARGIN)) / width,
                (foot + (rows - 1 - row) * (CELL + MARGIN)) / height,
                CELL / width,
                CELL / height,
            )
            axes = fig.add_axes(box)
            show(axes, pictures[row])
            if row == 0:
                axes.text(
                    0, 1.14, title, transform=axes.transAxes, size=9.5, color=INK, va="bottom"
                )
                axes.text(
                    0, 1.04, detail, transform=axes.transAxes, size=8, color=QUIET, va="bottom"
                )
            if column == 0:
                axes.set_ylabel(shortened(names[row]), size=8, color=QUIET, labelpad=4)
    legend(fig, view, left / width, (foot - 0.42) / height, 1 / width, 1 / height)
    fig.text(left / width, (foot - 0.6) / height, "\n".join(caption),
             size=8, color=INK, va="top", linespacing=1.35)  # fmt: skip
    return fig


def arrange(view: View) -> list[tuple[str, str, list[Picture]]]:
    """Return title, detail and pictures of each column."""
    images = [picture(image) for image in view.images]
    columns = [("Image", "as the model gets it", images)]
    if view.difficulty is not None:
        heat = [over(i, d, view) for i, d in zip(images, view.difficulty, strict=True)]
        columns.append(("Expected difficulty", "predicted loss, ranked", heat))
    for stage in view.stages:
        covered = [cover(i, k, view) for i, k in zip(images, stage.kinds, strict=True)]
        columns.append((*name_of(stage, len(view.stages)), covered))
    if view.filled is not None:
        title = "Filled in by the model"
        columns.append((title, "from the visible patches", [picture(f) for f in view.filled]))
    return columns


def name_of(stage: Stage, stages: int) -> tuple[str, str]:
    """Return a mask's title and detail."""
    when = {0.0: "Hidden at first", 0.5: "Hidden halfway", 1.0: "Hidden at the end"}
    title = when[stage.progress] if stages > 1 else "Hidden"
    hidden = (stage.kinds[0] != 0).float().mean().item()
    how = f"{stage.share:.0%} of it as hard" if stage.share else "at random"
    return title, f"{hidden:.0%} hidden, {how}"


def describe(view: View) -> str:
    """Return the caption, for readers who know nothing of the method."""
    said = ["The model learns by filling in hidden patches of pictures."]
    if view.difficulty is not None:
        said.append(
            "A second part of it predicts, for each patch, how badly that will go (bright: hard)."
        )
        if any(stage.share for stage in view.stages):
            said.append(
                "Training first hides patches at random, later more and more of those that are "
                "expected to be hard: a curriculum from easy to hard."
            )
        if view.agreement is not None:
            said.append(
                f"On these pictures, expected and true difficulty of hidden patches agree with a "
                f"rank correlation of {view.agreement:.2f} (1: same order, 0: by chance)."
            )
    else:
        said.append("This file has no loss predictor (MAE), so patches are hidden at random.")
    guess = " (found by trying both, the file does not say)" if view.guessed else ""
    if view.pixels == "normalised":
        said.append(
            "It predicts patches without their brightness and contrast; these were taken from "
            f"the image{guess}."
        )
    elif view.pixels is None:
        said.append("It predicts features of another network, no pixels: nothing can be drawn.")
    elif guess:
        said.append(f"It predicts plain pixels{guess}.")
    return " ".join(said)


def picture(image: Tensor) -> Picture:
    """Return an image (3, H, W) as matplotlib wants it."""
    return image.permute(1, 2, 0).numpy().astype(np.float32)


def over(image: Picture, difficulty: Tensor, view: View) -> Picture:
    """Return the heat map laid over the image in grey."""
    grey = image.mean(axis=2, keepdims=True)
    heat = HEAT(spread(difficulty, view))[..., :3]
    return (0.2 * grey + 0.8 * heat).astype(np.float32)


def cover(image: Picture, kinds: Tensor, view: View) -> Picture:
    """Return the image with hidden patches painted over by their kind."""
    wide, out = spread(kinds, view), image.copy()
    for kind, colour in ((RANDOM, GREY), (HARD, ORANGE)):
        out[wide == kind] = rgb(colour)
    return out


def spread(values: Tensor, view: View) -> NDArray[Any]:
    """Return one value for each patch (n,) as one for each pixel (H, W)."""
    size = view.spec.patch_size
    return np.kron(values.reshape(view.spec.grid).numpy(), np.ones((size, size), dtype=np.int8))


def rgb(colour: str) -> tuple[float, ...]:
    """Return '#rrggbb' as numbers from 0 to 1."""
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def show(axes: Axes, content: Picture) -> None:
    """Draw one picture without ticks, in a thin frame."""
    axes.imshow(content, interpolation="nearest", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#dadce0")


def legend(fig: Figure, view: View, left: float, bottom: float, *inch: float) -> None:
    """Draw what the colours mean."""
    across, up = inch
    if view.difficulty is not None:
        axes = fig.add_axes((left + 0.5 * across, bottom + 0.06 * up, 1.3 * across, 0.1 * up))
        bar = fig.colorbar(
            ScalarMappable(Normalize(0, 1), HEAT), cax=axes, orientation="horizontal"
        )
        bar.set_ticks([])
        bar.outline.set_visible(False)
        for x, text, side in ((-0.05, "easy", "right"), (1.05, "hard", "left")):
            axes.text(
                x, 0.5, text, transform=axes.transAxes, size=8, color=INK, ha=side, va="center"
            )
    handles = [Patch(color=GREY, label="hidden at random")]
    if any(stage.share for stage in view.stages):
        handles.append(Patch(color=ORANGE, label="hidden because expected to be hard"))
    start = left + (2.4 * across if view.difficulty is not None else 0)
    fig.legend(handles=handles, loc="center left", bbox_to_anchor=(start, bottom + 0.11 * up),
               ncols=2, frameon=False, fontsize=8, borderpad=0, handlelength=1.2)  # fmt: skip


def shortened(name: str, most: int = 26) -> str:
    """Return a file's name, its middle left out where it is long."""
    return name if len(name) <= most else f"{name[: most - 13]}…{name[-12:]}"
