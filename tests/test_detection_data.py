"""Data in COCO's format: what is wrong is counted, crops are right, the order is a function of seed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pycocotools.mask as rle
import pytest
from PIL import Image

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog

from mimbench.system.errors import UserError
from transfer.detection import data, loading, recipe
from transfer.detection.order import Positioned, Reader
from transfer.detection.protocol import Config

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def coco(scenes: Callable[[int, int], Path]) -> Path:
    return scenes(6, 5) / "coco"


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
        code: Any = rle.merge(rle.frPyObjects(item["segmentation"], 96, 96))
        item["segmentation"] = {"size": [96, 96], "counts": code["counts"].decode()}

    split = data.inspect(copy_with(coco, tmp_path, edit), coco / "train2017")
    assert split.codes == 1
    names = names_of(split)
    config = Config(data=Path(), image_size=64)
    sets = loading.build_data_config(config, names, bitmask=True)
    records, mapper = recipe.instantiate(sets.train.dataset), recipe.instantiate(sets.train.mapper)
    masks = [len(mapper(record)["instances"].gt_masks) for record in records]
    assert sum(masks) > 0


def test_training_drops_empty_pictures_and_crowds(coco: Path) -> None:
    split = data.inspect(coco / "annotations/instances_train2017.json", coco / "train2017")
    names = names_of(split)
    sets = loading.build_data_config(Config(data=Path(), image_size=128), names, bitmask=False)
    assert len(recipe.instantiate(sets.train.dataset)) == 5
    assert len(recipe.instantiate(sets.val.dataset)) == 6


def test_a_broken_picture_is_named(coco: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in (coco / "train2017").iterdir():
        (folder / path.name).write_bytes(path.read_bytes()[:200])
    split = data.inspect(coco / "annotations/instances_train2017.json", folder)
    names = names_of(split)
    sets = loading.build_data_config(Config(data=Path(), image_size=64), names, bitmask=False)
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
    sets = loading.build_data_config(Config(data=Path(), image_size=64), names, bitmask=False)
    pictures = Positioned(
        recipe.instantiate(sets.train.dataset),
        Reader(recipe.instantiate(sets.train.mapper)),
        seed=0,
    )
    with pytest.raises(UserError, match="cannot use the picture"):
        pictures[(0, 0)]
