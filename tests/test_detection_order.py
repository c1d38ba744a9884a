"""Crops are right, and the order and augmentation of pictures are functions of the seed."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycocotools.mask as rle
import pytest

pytest.importorskip("detectron2")

from transfer.detection import data, loading, recipe
from transfer.detection.crop import WindowCrop, polygon_area
from transfer.detection.order import EndlessSampler, Positioned, Reader
from transfer.detection.protocol import Config


@pytest.fixture(scope="module")
def coco(scenes: Callable[[int, int], Path]) -> Path:
    return scenes(6, 5) / "coco"


def star(rng: np.random.Generator) -> np.ndarray:
    """A concave polygon around the middle of a 60 x 60 picture that leaves it on all sides."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
    radii = rng.uniform(5, 45, 12)
    return 30 + np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def raster(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    if not polygons:
        return np.zeros((height, width), dtype=bool)
    codes = rle.frPyObjects([p.reshape(-1).tolist() for p in polygons], height, width)
    return rle.decode(rle.merge(codes)).astype(bool)


@pytest.mark.parametrize("seed", range(20))
def test_clipped_polygons_cover_what_the_cropped_mask_covers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    polygon = star(rng) + 60
    x, y, w, h = (int(v) for v in (*rng.integers(60, 90, 2), *rng.integers(10, 60, 2)))
    whole = raster([polygon], 180, 180)
    clipped = WindowCrop(x, y, w, h, 180, 180).apply_polygons([polygon.copy()])
    assert all(p.min() >= 0 and p[:, 0].max() <= w and p[:, 1].max() <= h for p in clipped)
    # the rasteriser may round a pixel on the outline either way
    outline = 2 * (w + h)
    wanted = whole[y : y + h, x : x + w]
    assert np.sum(raster(clipped, h, w) != wanted) <= 0.1 * outline
    if wanted.any():
        corners = np.concatenate(clipped)
        rows, columns = np.nonzero(wanted)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose([*corners.min(axis=0), *corners.max(axis=0)], box, atol=2.5)


def test_a_polygon_that_leaves_and_comes_back_gives_tight_boxes() -> None:
    # a hook around the window's corner: only its two tips are inside, at (0, 8) and (8, 0)
    hook = np.array(
        [[2.0, 8], [-4, 8], [-4, -4], [8, -4], [8, 2], [9, 2], [9, -5], [-5, -5], [-5, 9], [2, 9]]
    )
    parts = WindowCrop(0, 0, 20, 20, 60, 60).apply_polygons([hook])
    corners = sorted((p.min(axis=0).tolist(), p.max(axis=0).tolist()) for p in parts)
    assert corners == [([0, 8], [2, 9]), ([8, 0], [9, 2])]
    # a comb whose back is outside falls into its teeth
    comb = [[-3.0, 0.0]]
    for tooth in range(3):
        comb += [[-1, 4 * tooth], [5, 4 * tooth], [5, 4 * tooth + 2], [-1, 4 * tooth + 2]]
    teeth = WindowCrop(0, 0, 20, 20, 60, 60).apply_polygons([np.array([*comb, [-3.0, 12.0]])])
    assert [polygon_area(p) for p in teeth] == [10, 10, 10]


def test_clipping_keeps_inside_polygons_and_drops_outside_ones() -> None:
    crop = WindowCrop(10, 10, 20, 20, 60, 60)
    inside = np.array([[12.0, 12], [20, 12], [20, 25]])
    outside = np.array([[40.0, 40], [50, 40], [50, 50]])
    [kept] = crop.apply_polygons([inside, outside])
    np.testing.assert_array_equal(kept, inside - 10)
    assert crop.apply_polygons([np.array([[0.0, 0], [10, 0], [10, 60]])]) == []
    [half] = crop.apply_polygons([np.array([[0.0, 0], [20, 0], [20, 60], [0, 60]])])
    assert polygon_area(half) == 10 * 20


def test_order_is_the_same_for_every_number_of_processes() -> None:
    alone = list(itertools.islice(EndlessSampler(7, seed=3), 40))
    assert [position for position, _ in alone] == list(range(40))
    assert sorted(index for _, index in alone[:7]) == list(range(7))
    assert sorted(index for _, index in alone[7:14]) == list(range(7))
    assert [index for _, index in alone[:7]] != [index for _, index in alone[7:14]]
    for world in (2, 4):
        shares = [
            list(itertools.islice(EndlessSampler(7, seed=3, rank=r, world=world), 40 // world))
            for r in range(world)
        ]
        assert sorted(itertools.chain(*shares)) == alone


def test_order_resumes_anywhere() -> None:
    whole = list(itertools.islice(EndlessSampler(7, seed=3), 40))
    order = EndlessSampler(7, seed=3)
    order.start = 17
    assert list(itertools.islice(order, 23)) == whole[17:]
    assert list(itertools.islice(EndlessSampler(7, seed=4), 40)) != whole


def test_augmentation_is_a_function_of_the_position(coco: Path) -> None:
    split = data.inspect(coco / "annotations/instances_train2017.json", coco / "train2017")
    names: dict[str, str] = dict.fromkeys(("train", "val"), data.register(split))
    sets = loading.build_data_config(Config(data=Path(), image_size=64), names, bitmask=False)
    records = recipe.instantiate(sets.train.dataset)
    pictures = Positioned(records, Reader(recipe.instantiate(sets.train.mapper)), seed=0)
    once = pictures[(5, 1)]
    np.random.seed(99)  # noqa: NPY002
    again = pictures[(5, 1)]
    other = pictures[(6, 1)]
    assert once["image"].equal(again["image"])
    assert not (once["image"].shape == other["image"].shape and once["image"].equal(other["image"]))
    assert max(once["image"].shape[1:]) <= 64
    boxes = once["instances"].gt_boxes.tensor
    assert boxes.isfinite().all()
