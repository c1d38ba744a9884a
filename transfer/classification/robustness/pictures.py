"""What the report shows: images that the head got wrong, and the corruptions that hurt it most."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torchvision.transforms import functional as TF

from mimbench.data.lists import ImageList
from mimbench.data.preprocess import Pixels
from mimbench.scores.figures import Picture
from mimbench.system.errors import UserError
from transfer.classification.robustness.finished import HeadRun
from transfer.classification.robustness.sets import TestSet

SIDE, LINE = 112, 14
SHOWN = 12
COLUMNS = 6


def sheet(tiles: Sequence[tuple[Image.Image, Sequence[str]]], columns: int) -> Image.Image:
    """Return images side by side, each above its lines of text."""
    lines = max(len(text) for _, text in tiles)
    height = SIDE + lines * LINE
    rows = -(-len(tiles) // columns)
    canvas = Image.new("RGB", (columns * SIDE, rows * height), "white")
    draw: Any = ImageDraw.Draw(canvas)
    for i, (image, text) in enumerate(tiles):
        left, top = i % columns * SIDE, i // columns * height
        canvas.paste(image.resize((SIDE - 2, SIDE - 2)), (left + 1, top + 1))
        for row, line in enumerate(text):
            draw.text((left + 2, top + SIDE + row * LINE), line[:18], fill="black")
    return canvas


def mistakes(
    test: TestSet,
    predicted: NDArray[np.int64],
    right: NDArray[np.float64],
    cell: HeadRun,
) -> list[Picture]:
    """Return a picture of wrong answers, spread over the set; none where there are none."""
    wrong = np.flatnonzero(right == 0)
    if not len(wrong):
        return []
    names = _names(cell)
    tiles = []
    for row in wrong[np.unique(np.linspace(0, len(wrong) - 1, SHOWN).astype(int))]:
        truth = test.groups[int(test.images.labels[row])]
        said = [names.get(c, str(c)) for c in (truth[0], int(predicted[row]))]
        tiles.append((test.images.open(int(row)), [f"is {said[0]}", f"not {said[1]}"]))
    caption = f"{len(wrong):,} of {len(right):,} answered wrongly; some of them"
    return [Picture(name="mistakes", image=sheet(tiles, COLUMNS), caption=caption)]


def worst_corruptions(
    clean: ImageList,
    opened: Callable[[str, int], tuple[ImageList, Pixels]],
    errors: Mapping[str, float],
) -> list[Picture]:
    """Return a picture of two images under the corruptions with the largest error, mild and strong."""
    worst = sorted(errors, key=lambda name: -errors[name])[: COLUMNS - 1]
    tiles = []
    for row in np.unique([0, len(clean) // 2]):
        for severity in (3, 5):
            tiles.append((clean.open(int(row)), ["clean"]))
            for name in worst:
                images, pixels = opened(name, severity)
                shown = TF.to_pil_image(pixels(images.open(int(row)), int(row)))
                tiles.append((shown, [f"{name[:14]} {severity}"]))
    caption = "the corruptions that hurt most: " + ", ".join(
        f"{name} {errors[name]:.0f}" for name in worst
    )
    return [Picture(name="worst_corruptions", image=sheet(tiles, COLUMNS), caption=caption)]


def _names(cell: HeadRun) -> dict[int, str]:
    try:
        return {index: name for name, index in cell.class_names().items()}
    except UserError:
        # only a picture's text: numbers do
        return {}
