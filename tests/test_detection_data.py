"""Data in COCO's format: what is wrong is counted, crops are right, the order is a function of seed."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle
import pytest
from PIL import Image

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog

from mimbench.errors import UserError
from mimbench.sample import generate
from transfer.detection import data, recipe
from transfer.detection.crop import WindowCrop, polygon_area
from transfer.detection.order import Order, Positioned, Reader
from transfer.detection.protocol import Config

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample") / "s"
    generate(root, train_per_class=1, val_per_class=1, train_scenes=6, val_scenes=5)
    return root / "coco"


def names_of(split: data.Split) -> dict[str, str]:
    """Register one split as both data sets."""
    name = data.register(split)
    return {"train": name, "val": name}


def copy_with(coco: Path, tmp_path: Path, edit: Edit) -> Path:
    content = json.loads((coco / "annotations/instances_train2017.json").read_text())
    edit(content)
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(content))
    return path


def test_sample_data_is_understood_with_its_awkwardness(coco: Path) -> None:
    split = data.inspect(coco / "annotations/instances_train2017.json", coco / "train2017")
    assert split.pictures == 6
    assert split.empty == 1
    assert split.crowds == 1
    assert split.category_ids == (1, 2, 3, 5, 7, 11, 13, 17, 19, 23)
    assert len(split.classes) == 10
    assert split.codes == 0
    assert "6 pictures (1 without objects)" in split.summary


def first(content: dict[str, Any]) -> dict[str, Any]:
    return next(item for item in content["annotations"] if not item["iscrowd"])


def no_file(content: dict[str, Any]) -> None:
    for picture in content["images"][:2]:
        picture["file_name"] = "gone" + picture["file_name"]


def unknown_category(content: dict[str, Any]) -> None:
    first(content)["category_id"] = 4


def unknown_picture(content: dict[str, Any]) -> None:
    first(content)["image_id"] = 77


def shared_id(content: dict[str, Any]) -> None:
    content["annotations"][1]["id"] = content["annotations"][0]["id"]


def no_mask(content: dict[str, Any]) -> None:
    del first(content)["segmentation"]


def no_box(content: dict[str, Any]) -> None:
    first(content)["bbox"] = []


def shared_picture_id(content: dict[str, Any]) -> None:
    content["images"][1]["id"] = content["images"][0]["id"]


def no_pictures(content: dict[str, Any]) -> None:
    content["images"] = content["annotations"] = []


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (no_file, r"2 pictures are missing \(for example gone"),
        (unknown_category, r"1 annotations name an unknown category \(for example category 4\)"),
        (unknown_picture, r"1 annotations name an unknown picture \(for example picture 77\)"),
        (shared_id, "1 annotations share their id"),
        (no_mask, "1 annotations have no mask"),
        (no_box, "1 annotations have no box"),
        (shared_picture_id, "images share their id"),
        (no_pictures, "lists are empty"),
    ],
)
def test_what_cannot_be_trained_on_is_counted_before_training(
    coco: Path, tmp_path: Path, edit: Edit, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        data.inspect(copy_with(coco, tmp_path, edit), coco / "train2017")


def test_all_faults_come_in_one_message(coco: Path, tmp_path: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        no_file(content)
        unknown_category(content)

    with pytest.raises(UserError, match=r"(?s)2 pictures are missing.*1 annotations name an"):
        data.inspect(copy_with(coco, tmp_path, edit), coco / "train2017")


def test_boxes_outside_and_without_area_are_reported_and_survived(
    coco: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"] = [100, 100, 60, 60]
        content["annotations"][1]["bbox"] = [-5, 3, 20, 20]
        content["annotations"][2]["bbox"] = [5, 3, 0, 20]

    data.inspect(copy_with(coco, tmp_path, edit), coco / "train2017")
    assert "2 boxes reach outside their picture and are cut" in caplog.text
    assert "1 boxes without area are left out" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "no list of images, annotations, categories"),
        ('{"images": [], "categories": []}', "no list of annotations"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        data.inspect(path, tmp_path)


def test_absent_files_and_folders_are_named(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the annotations"):
        data.inspect(tmp_path / "none.json", tmp_path)
    with pytest.raises(UserError, match="no folder of pictures"):
        data.inspect(coco / "annotations/instances_train2017.json", tmp_path / "none")


def test_splits_must_agree_on_their_classes(coco: Path, tmp_path: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["categories"][0]["name"] = "other"

    good = data.inspect(coco / "annotations/instances_train2017.json", coco / "train2017")
    other = data.inspect(copy_with(coco, tmp_path, rename), coco / "train2017")
    data.check_same_classes(good, good)
    with pytest.raises(UserError, match="disagree on their categories: 2 differ"):
        data.check_same_classes(good, other)


def test_gaps_in_ids_become_places_and_back(coco: Path) -> None:
    split = data.inspect(coco / "annotations/instances_train2017.json", coco / "train2017")
    name = data.register(split)
    records = DatasetCatalog.get(name)
    places = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    assert places == {number: i for i, number in enumerate(split.category_ids)}
    assert MetadataCatalog.get(name).thing_classes == list(split.classes)
    assert len(records) == 6
    assert data.register(split) == name


def test_run_length_codes_and_polygons_can_be_mixed(coco: Path, tmp_path: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        item = first(content)
        code: Any = rle.merge(rle.frPyObjects(item["segmentation"], 128, 128))
        item["segmentation"] = {"size": [128, 128], "counts": code["counts"].decode()}

    split = data.inspect(copy_with(coco, tmp_path, edit), coco / "train2017")
    assert split.codes == 1
    names = names_of(split)
    config = Config(data=Path(), image_size=64)
    sets = recipe.build_data_config(config, names, bitmask=True)
    records, mapper = recipe.instantiate(sets.train.dataset), recipe.instantiate(sets.train.mapper)
    masks = [len(mapper(record)["instances"].gt_masks) for record in records]
    assert sum(masks) > 0


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
    alone = list(itertools.islice(Order(7, seed=3), 40))
    assert [position for position, _ in alone] == list(range(40))
    assert sorted(index for _, index in alone[:7]) == list(range(7))
    assert sorted(index for _, index in alone[7:14]) == list(range(7))
    assert alone[:7] != [(p, i) for (p, _), (_, i) in zip(alone, alone[7:14], strict=False)]
    for world in (2, 4):
        shares = [
            list(itertools.islice(Order(7, seed=3, rank=r, world=world), 40 // world))
            for r in range(world)
        ]
        assert sorted(itertools.chain(*shares)) == alone


def test_order_resumes_anywhere() -> None:
    whole = list(itertools.islice(Order(7, seed=3), 40))
    order = Order(7, seed=3)
    order.start = 17
    assert list(itertools.islice(order, 23)) == whole[17:]
    assert list(itertools.islice(Order(7, seed=4), 40)) != whole


def test_augmentation_is_a_function_of_the_position(coco: Path) -> None:
    split = data.inspect(coco / "annotations/instances_train2017.json", coco / "train2017")
    names = names_of(split)
    sets = recipe.build_data_config(Config(data=Path(), image_size=64), names, bitmask=False)
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


def test_training_drops_empty_pictures_and_crowds(coco: Path) -> None:
    split = data.inspect(coco / "annotations/instances_train2017.json", coco / "train2017")
    names = names_of(split)
    sets = recipe.build_data_config(Config(data=Path(), image_size=128), names, bitmask=False)
    assert len(recipe.instantiate(sets.train.dataset)) == 5
    assert len(recipe.instantiate(sets.val.dataset)) == 6


def test_a_broken_picture_is_named(coco: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in (coco / "train2017").iterdir():
        (folder / path.name).write_bytes(path.read_bytes()[:200])
    split = data.inspect(coco / "annotations/instances_train2017.json", folder)
    names = names_of(split)
    sets = recipe.build_data_config(Config(data=Path(), image_size=64), names, bitmask=False)
    pictures = Positioned(
        recipe.instantiate(sets.train.dataset),
        Reader(recipe.instantiate(sets.train.mapper)),
        seed=0,
    )
    with pytest.raises(UserError, match=r"cannot use the picture .*\.jpg"):
        pictures[(0, 0)]


def test_a_picture_of_another_size_is_named(coco: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in (coco / "train2017").iterdir():
        Image.new("RGB", (50, 40)).save(folder / path.name)
    split = data.inspect(coco / "annotations/instances_train2017.json", folder)
    names = names_of(split)
    sets = recipe.build_data_config(Config(data=Path(), image_size=64), names, bitmask=False)
    pictures = Positioned(
        recipe.instantiate(sets.train.dataset),
        Reader(recipe.instantiate(sets.train.mapper)),
        seed=0,
    )
    with pytest.raises(UserError, match="cannot use the picture"):
        pictures[(0, 0)]
