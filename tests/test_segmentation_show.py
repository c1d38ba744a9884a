"""Pictures of a run: right colours at the right places, a legend, and a size that has a bound."""

import numpy as np
import pytest
from numpy.typing import NDArray

from mimbench.scores.label_pictures import FONT, MARGIN, ROW, SMALL, _by_area, _cut, compose

PALETTE = [[120, 120, 120], [180, 120, 120], [6, 230, 230]]
NAMES = ["wall", "building", "sky"]


def maps(height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a picture, and labels: sky above, wall below, a corner that is not labelled."""
    image = np.full((height, width, 3), 200, dtype=np.uint8)
    labels = np.zeros((height, width), dtype=np.uint8)
    labels[: height // 4] = 2
    labels[-2:, -2:] = 255
    return image, labels


def test_panels_stand_side_by_side_in_the_palettes_colours() -> None:
    image, truth = maps(128, 96)
    prediction = np.zeros_like(truth)
    canvas = np.asarray(compose(image, prediction, truth, PALETTE, NAMES))
    width, height = 2 * 96, 2 * 128
    assert canvas.shape[1] == 3 * width + 4 * MARGIN
    tops = [canvas[ROW + 4, MARGIN + i * (width + MARGIN) + 4] for i in range(3)]
    assert [top.tolist() for top in tops] == [[200, 200, 200], PALETTE[0], PALETTE[2]]
    corner = canvas[ROW + height - 1, MARGIN + 2 * (width + MARGIN) + width - 1]
    assert corner.tolist() == [0, 0, 0]


def test_the_legend_names_what_occurs_most_first() -> None:
    _, truth = maps(128, 96)
    assert _by_area(np.zeros_like(truth), truth) == [0, 2]
    image, labels = maps(128, 96)
    canvas = np.asarray(compose(image, labels, labels, PALETTE, NAMES))
    legend = canvas[ROW + 256 + MARGIN :].reshape(-1, 3)
    shown = {tuple(colour) for colour in np.unique(legend, axis=0).tolist()}
    assert {tuple(PALETTE[0]), tuple(PALETTE[2])} <= shown
    assert tuple(PALETTE[1]) not in shown


@pytest.mark.parametrize(("height", "width"), [(600, 900), (3000, 40), (40, 3000), (256, 256)])
def test_panels_stay_below_the_bound(height: int, width: int) -> None:
    image, labels = maps(height, width)
    canvas = compose(image, labels, labels, PALETTE, NAMES, largest=SMALL)
    assert canvas.height <= SMALL + 6 * ROW
    assert canvas.width <= 3 * SMALL + 4 * MARGIN
    panel = (canvas.width - 4 * MARGIN) / 3
    assert panel == pytest.approx(width * min(1, SMALL / max(width, height)), abs=1)
    whole = compose(image, labels, labels, PALETTE, NAMES)
    assert whole.width == 3 * width + 4 * MARGIN


def test_long_names_are_cut_to_their_column() -> None:
    assert _cut("wall", 158) == "wall"
    cut = _cut("a thing with a name that goes on and on and on", 100)
    assert cut.startswith("a thing with")
    assert cut.endswith("..")
    assert FONT.getlength(cut) <= 100
    assert _cut("wall", 1) == ".."


def test_maps_of_another_size_are_refused() -> None:
    image, labels = maps(64, 64)
    with pytest.raises(ValueError, match="differ in size"):
        compose(image, labels[:32], labels, PALETTE, NAMES)
