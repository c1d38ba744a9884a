"""Pictures of a run: right colours at the right places, letters that stay legible, a size with a bound."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mimbench.scores.boxes import draw_detections
from mimbench.scores.label_pictures import (
    ENTRIES,
    MARGIN,
    REST,
    SMALL,
    WRONG,
    by_area,
    compose,
    errors,
    painted,
)
from mimbench.scores.lettering import BLACK, TONES, WHITE, cut, font_for, ink_on
from mimbench.suite.report.markup import BROAD

NAMES = ["wall", "building", "sky"]
PHONE = 320
"""Pixels that a picture has at least in the page."""


def maps(height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a picture, and labels: sky above, wall below, a corner that is not labelled."""
    image = np.full((height, width, 3), 200, dtype=np.uint8)
    labels = np.zeros((height, width), dtype=np.uint8)
    labels[: height // 4] = 2
    labels[-2:, -2:] = 255
    return image, labels


def test_panels_stand_two_by_two() -> None:
    image, truth = maps(128, 96)
    # tasks count in integers of many sizes
    prediction = np.zeros(truth.shape, dtype=np.int64)
    canvas = np.asarray(compose(image, prediction, truth, NAMES))
    width, height = 2 * 96, 2 * 128
    assert canvas.shape[1] == 2 * width + 3 * MARGIN
    line = int(font_for(canvas.shape[1]).getbbox("Ag")[3]) + 6

    def at(panel: int, x: int, y: int) -> list[int]:
        left = MARGIN + panel % 2 * (width + MARGIN)
        top = line + panel // 2 * (line + height + MARGIN)
        return canvas[top + y, left + x].tolist()

    wall, sky = (list(TONES[i]) for i in range(2))
    assert [at(i, 4, 4) for i in range(3)] == [[200, 200, 200], sky, wall]
    assert at(1, width - 1, height - 1) == list(BLACK), "not labelled"
    red, green, blue = at(3, 4, 4)
    assert red > green > blue, "the sky was missed"
    assert at(3, 4, height - 9) == [227, 227, 227], "the wall was not"


def test_wrong_pixels_are_shares_of_the_labelled_ones() -> None:
    image, truth = maps(8, 8)
    pixels, share = errors(image, np.zeros_like(truth), truth)
    assert share == pytest.approx(16 / 60)
    assert errors(image, truth, truth)[1] == 0
    assert np.abs(pixels[0, 0].astype(int) - np.array(WRONG)).sum() < 250
    assert errors(image, truth, np.full_like(truth, 255))[1] == 0, "nothing is labelled"


def test_every_class_of_a_picture_looks_different() -> None:
    order = list(range(3 * len(TONES)))
    looks = {painted(np.full((12, 12), c, dtype=np.uint8), order).tobytes() for c in order}
    assert len(looks) == len(order)
    beyond = painted(np.full((2, 2), 99, dtype=np.uint8), [*order, 99])
    assert beyond.reshape(-1, 3).tolist() == [list(REST)] * 4


def seen_by(matrix: NDArray[np.float64], tone: tuple[int, int, int]) -> NDArray[np.float64]:
    linear = (np.asarray(tone) / 255) ** 2.2
    return np.clip(matrix @ linear, 0, 1) ** (1 / 2.2) * 255


@pytest.mark.parametrize("kind", ["protan", "deutan"])
def test_the_colour_blind_tell_the_tones_apart(kind: str) -> None:
    """Viénot, Brettel and Mollon's projections (1999) in linear RGB."""
    rows = {
        "protan": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
        "deutan": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
    }
    matrix = np.array(rows[kind])
    apart = [
        float(np.linalg.norm(seen_by(matrix, a) - seen_by(matrix, b)))
        for a, b in itertools.combinations(TONES, 2)
    ]
    assert min(apart) > 25
    red_green = [seen_by(matrix, tone) for tone in ((200, 60, 60), (110, 110, 50))]
    assert kind != "deutan" or np.linalg.norm(red_green[0] - red_green[1]) < 40, "the test can fail"


def test_the_legend_names_what_occurs_most_first() -> None:
    image, truth = maps(128, 96)
    assert by_area(np.zeros_like(truth), truth) == [0, 2]
    canvas = np.asarray(compose(image, truth, truth, NAMES))
    legend = canvas[-60:].reshape(-1, 3)
    shown = {tuple(colour) for colour in np.unique(legend, axis=0).tolist()}
    assert {TONES[0], TONES[1], BLACK} <= shown
    assert TONES[2] not in shown
    many = np.arange(64, dtype=np.uint8).reshape(8, 8)
    names = [f"class {i}" for i in range(64)]
    tall = compose(np.zeros((8, 8, 3), np.uint8), many, many, names).height
    assert tall < 800, f"{ENTRIES} classes and how many more"


@pytest.mark.parametrize(("height", "width"), [(600, 900), (3000, 40), (40, 3000), (256, 256)])
def test_panels_stay_below_the_bound(height: int, width: int) -> None:
    image, labels = maps(height, width)
    canvas = compose(image, labels, labels, NAMES, largest=SMALL)
    assert canvas.width <= 2 * SMALL + 3 * MARGIN <= BROAD, "the page does not let it scroll"
    panel = (canvas.width - 3 * MARGIN) / 2
    assert panel == pytest.approx(width * min(1, SMALL / max(width, height)), abs=1)
    whole = compose(image, labels, labels, NAMES)
    assert whole.width == 2 * width + 3 * MARGIN


@pytest.mark.parametrize("width", [320, 480, 640, 2000])
def test_letters_have_ten_pixels_on_a_phone(width: int) -> None:
    font = font_for(width)
    assert font.size * min(1.0, PHONE / width) >= 10  # pyright: ignore[reportAttributeAccessIssue]
    for tone in TONES:
        light = [sum(c) for c in (tone, ink_on(tone))]
        assert abs(light[0] - light[1]) > 200


def test_long_names_are_cut_to_their_column() -> None:
    font = font_for(300)
    assert cut("wall", 158, font) == "wall"
    short = cut("a thing with a name that goes on and on and on", 100, font)
    assert short.startswith("a thing")
    assert short.endswith("..")
    assert font.getlength(short) <= 100
    assert cut("wall", 1, font) == ".."


def test_maps_of_another_size_are_refused() -> None:
    image, labels = maps(64, 64)
    with pytest.raises(ValueError, match="differ in size"):
        compose(image, labels[:32], labels, NAMES)


def test_detections_are_thick_boxes_with_labels_and_the_truth_is_thin(tmp_path: Path) -> None:
    Image.new("RGB", (120, 80), (90, 90, 90)).save(tmp_path / "a.png")
    truth = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 2, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 2, "bbox": [60, 20, 40, 40]}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    items = [{"image_id": 1, "category_id": 2, "bbox": [10, 30, 30, 40], "score": 0.9}]
    [drawn] = draw_detections(items, tmp_path / "truth.json", tmp_path)
    pixels = np.asarray(drawn.image)
    assert pixels.shape == (320, 480, 3)
    tone = list(TONES[2])
    assert pixels[4 * 50, 4 * 10].tolist() == pixels[4 * 50, 4 * 10 + 2].tolist() == tone
    assert pixels[4 * 40, 4 * 60 + 1].tolist() == list(WHITE)
    plate = pixels[4 * 30 - 20 : 4 * 30 - 2, 44:90].reshape(-1, 3)
    assert {tuple(tone), ink_on(TONES[2])} <= {tuple(p) for p in plate.tolist()}
