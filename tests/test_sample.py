"""The sample data: layouts, awkwardness, truth, splits, determinism."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimbench.sample import generate, textures
from mimbench.sample.ade import CLASSES, FIRST_DIGIT_ID, TEXTURE_IDS, class_names, label_map
from mimbench.sample.cards import make_card
from mimbench.sample.coco import CATEGORY_IDS
from mimbench.sample.digits import digit_bank
from mimbench.sample.outlines import mask_to_box, mask_to_polygons, mask_to_rle
from mimbench.sample.scenes import MIN_PIXELS, has_bar, has_crowd, is_empty, make_scene, rim


def make_small(root: Path) -> Path:
    return generate(root, train_per_class=3, val_per_class=2, train_scenes=12, val_scenes=5)


def make_smallest(root: Path) -> Path:
    return generate(root, train_per_class=1, val_per_class=1, train_scenes=1, val_scenes=1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small(tmp_path_factory.mktemp("made") / "sample")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return make_smallest(tmp_path / "sample")


def load_instances(root: Path, split: str) -> dict:
    return json.loads((root / f"coco/annotations/instances_{split}2017.json").read_text())


# Layouts


def test_classification_is_an_image_folder_with_balanced_classes(small: Path):
    for split, count in (("train", 3), ("val", 2)):
        folders = sorted((small / "classification" / split).iterdir())
        assert [folder.name for folder in folders] == [str(digit) for digit in range(10)]
        for folder in folders:
            files = list(folder.glob("*.png"))
            assert len(files) == count
            picture = Image.open(files[0])
            assert (picture.size, picture.mode) == ((32, 32), "RGB")


def test_every_coco_picture_is_listed_and_has_the_stated_size(small: Path):
    for split, count in (("train", 12), ("val", 5)):
        instances = load_instances(small, split)
        names = {picture["file_name"] for picture in instances["images"]}
        assert names == {path.name for path in (small / f"coco/{split}2017").iterdir()}
        assert len(names) == count
        for picture in instances["images"]:
            image = Image.open(small / f"coco/{split}2017" / picture["file_name"])
            assert image.size == (picture["width"], picture["height"])


def test_ade_pictures_and_label_maps_pair_up_by_stem(small: Path):
    for split, count in (("training", 12), ("validation", 5)):
        pictures = {path.stem for path in (small / "ade/images" / split).glob("*.jpg")}
        maps = list((small / "ade/annotations" / split).glob("*.png"))
        assert pictures == {path.stem for path in maps}
        assert len(pictures) == count
        assert all(Image.open(path).mode == "L" for path in maps)


def test_object_info_has_the_real_columns_and_true_counts(small: Path):
    rows = (small / "ade/objectInfo150.txt").read_text().splitlines()
    assert rows[0].split("\t") == ["Idx", "Ratio", "Train", "Val", "Name"]
    table = [row.split("\t") for row in rows[1:]]
    assert [int(row[0]) for row in table] == list(range(1, CLASSES + 1))
    assert [table[label - 1][4] for label in TEXTURE_IDS] == ["wall", "grass", "earth"]
    assert table[140][4] == "zero"
    for split, column in (("training", 2), ("validation", 3)):
        maps = (small / "ade/annotations" / split).glob("*.png")
        seen = [np.unique(np.asarray(Image.open(path))) for path in maps]
        for row in table:
            assert int(row[column]) == sum(int(row[0]) in labels for labels in seen)


def test_genuine_names_sit_at_their_genuine_ids():
    names = class_names()
    assert len(names) == CLASSES == len(set(names))
    known = {1: "wall", 10: "grass", 14: "earth", 53: "path", 100: "buffet", 140: "fan"}
    assert {label: names[label - 1] for label in known} == known


def test_coco_and_ade_show_the_same_scenes(small: Path):
    coco = (small / "coco/train2017/000000000004.jpg").read_bytes()
    assert coco == (small / "ade/images/training/ADE_train_00000005.jpg").read_bytes()


# Awkward on purpose


def test_category_ids_have_gaps_and_image_ids_are_awkward(small: Path):
    train, val = load_instances(small, "train"), load_instances(small, "val")
    assert tuple(category["id"] for category in train["categories"]) == CATEGORY_IDS
    assert set(np.diff(CATEGORY_IDS)) != {1}
    by_file = [p["id"] for p in sorted(train["images"], key=lambda p: p["file_name"])]
    assert min(by_file) > 0
    assert by_file != sorted(by_file)
    assert not set(by_file) & {picture["id"] for picture in val["images"]}
    ids = [annotation["id"] for annotation in train["annotations"] + val["annotations"]]
    assert len(set(ids)) == len(ids)
    assert 0 not in ids


def test_there_is_a_picture_without_objects_an_object_in_pieces_and_a_crowd(small: Path):
    for split in ("train", "val"):
        instances = load_instances(small, split)
        annotations = instances["annotations"]
        used = {annotation["image_id"] for annotation in annotations}
        assert {picture["id"] for picture in instances["images"]} - used
        outlines = [a["segmentation"] for a in annotations if not a["iscrowd"]]
        assert any(len(polygons) > 1 for polygons in outlines)
        crowds = [a["segmentation"] for a in annotations if a["iscrowd"]]
        assert crowds
        assert all(isinstance(crowd["counts"], list) for crowd in crowds)


def test_a_barred_object_is_in_pieces_that_do_not_touch():
    scene = make_scene("train", 1)
    rows = scene.things[0].mask.any(axis=1)
    assert has_bar(1)
    assert np.diff(np.flatnonzero(rows)).max() > 1


def test_about_one_annotation_in_a_hundred_is_a_crowd():
    scenes = [make_scene("train", index) for index in range(120)]
    crowds = sum(thing.crowd for scene in scenes for thing in scene.things)
    assert crowds == sum(has_crowd(index) for index in range(120))
    assert 0.005 < crowds / sum(len(scene.things) for scene in scenes) < 0.015
    assert [i for i, scene in enumerate(scenes) if not scene.things] == [
        i for i in range(120) if is_empty(i)
    ]


def test_rims_of_things_are_not_labelled_and_nothing_else():
    scene = make_scene("train", 0)
    labels = label_map(scene)
    thing = scene.things[-1]
    assert (labels[thing.mask] == FIRST_DIGIT_ID + thing.digit).all()
    assert (labels[rim(thing.mask)] == 0).all()
    rims = np.any([rim(thing.mask) for thing in scene.things], axis=0)
    assert not (labels == 0)[~rims].any()
    assert set(np.unique(labels)) <= {0, *TEXTURE_IDS, *range(FIRST_DIGIT_ID, CLASSES + 1)}


def test_a_rim_is_one_pixel_wide_and_stops_at_the_border():
    mask = np.zeros((4, 5), dtype=bool)
    mask[0, 1] = True
    expected = np.zeros_like(mask)
    expected[:2, :3] = True
    expected[0, 1] = False
    assert (rim(mask) == expected).all()


# Truth


def test_masks_are_disjoint_and_large_enough():
    for index in range(30):
        masks = [thing.mask for thing in make_scene("val", index).things]
        assert all(mask.sum() >= MIN_PIXELS for mask in masks)
        if masks:
            assert np.sum(masks, axis=0).max() == 1


def test_outlines_decode_to_exactly_the_masks():
    coder = pytest.importorskip("pycocotools.mask", reason="needs the detection extra")
    seen = 0
    for index in range(45):
        for thing in make_scene("train", index).things:
            polygons = coder.merge(coder.frPyObjects(mask_to_polygons(thing.mask), 96, 96))
            runs = coder.frPyObjects(mask_to_rle(thing.mask), 96, 96)
            for code in (polygons, runs):
                assert (coder.decode(code).astype(bool) == thing.mask).all()
                assert coder.toBbox(code).tolist() == mask_to_box(thing.mask)
                assert int(coder.area(code)) == thing.mask.sum()
            seen += 1
    assert seen > 80


def test_polygons_of_a_ring_and_of_pixels_touching_at_a_corner():
    ring = np.ones((3, 3), dtype=bool)
    ring[1, 1] = False
    assert len(mask_to_polygons(ring)) >= 2
    corner = np.array([[True, False], [False, True]])
    squares = [{(0, 0), (1, 0), (1, 1), (0, 1)}, {(1, 1), (2, 1), (2, 2), (1, 2)}]
    traced = [set(zip(p[::2], p[1::2], strict=True)) for p in mask_to_polygons(corner)]
    assert traced == squares


def test_runs_begin_with_empty_space():
    mask = np.array([[True, False], [True, True]])
    assert mask_to_rle(mask) == {"counts": [0, 2, 1, 1], "size": [2, 2]}
    assert mask_to_rle(~mask) == {"counts": [2, 1, 1], "size": [2, 2]}


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_truth_scores_full_marks_in_pycocotools(small: Path, kind: str):
    coco = pytest.importorskip("pycocotools.coco", reason="needs the detection extra")
    scorer = pytest.importorskip("pycocotools.cocoeval", reason="needs the detection extra")
    truth = coco.COCO(str(small / "coco/annotations/instances_train2017.json"))
    found = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": a["bbox"],
            "segmentation": truth.annToRLE(a),
            "score": 0.9,
        }
        for a in truth.dataset["annotations"]
        if not a["iscrowd"]
    ]
    evaluation = scorer.COCOeval(truth, truth.loadRes(found), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


# Splits and determinism


def test_validation_scans_and_texture_columns_are_not_in_training():
    train = np.concatenate(list(digit_bank("train").scans.values()))
    val = np.concatenate(list(digit_bank("val").scans.values()))
    assert (len(train), len(val)) == (1260, 537)
    marked = tuple(np.zeros((512, 512)) for _ in range(3))
    for image in marked:
        image[:, : textures.TRAIN_COLUMNS] = np.arange(512)[:, None] % 2
    bank = textures.TextureBank(source="marked", images=marked)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert np.ptp(bank.patch(rng, 0, "val", 128), axis=(0, 1)).max() == 0
        assert np.ptp(bank.patch(rng, 0, "train", 128), axis=(0, 1)).max() > 0


def test_an_item_does_not_depend_on_how_many_are_made(small: Path, copy: Path):
    for name in (
        "classification/train/7/000007.png",
        "coco/train2017/000000000000.jpg",
        "ade/annotations/validation/ADE_val_00000001.png",
    ):
        assert (small / name).read_bytes() == (copy / name).read_bytes()
    big, one = (load_instances(root, "val") for root in (small, copy))
    number = one["images"][0]["id"]
    assert one["annotations"] == [a for a in big["annotations"] if a["image_id"] == number]


def test_two_makings_agree_and_match_the_published_content(small: Path, tmp_path: Path):
    again = make_small(tmp_path / "again")
    first, second = (json.loads((r / "manifest.json").read_text()) for r in (small, again))
    assert first == second
    assert first["content_sha256"] == PUBLISHED


PUBLISHED = {
    "classification": "7e4f14c0f975bfd85baa3cceb6b8f4c1b4eaf924ee7fd083fb0c8ac3777b1e0a",
    "coco": "8d8fd0fcf4d7137de5015151105a6007d9563a010662b287340bd2b4c3fd1924",
    "ade": "a3137afe93017af21ff60d03aa210fd21ded569d83624d88d0444c9cabdb9dea",
}


def test_splits_and_classes_give_different_pictures():
    assert (make_card("train", 4) != make_card("val", 4)).any()
    assert (make_card("train", 4) != make_card("train", 14)).any()
    assert (make_scene("train", 0).image != make_scene("val", 0).image).any()


def test_drawn_textures_stand_in_without_scikit_image(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(textures, "find_spec", lambda name: None)
    textures.texture_bank.cache_clear()
    try:
        bank = textures.texture_bank()
    finally:
        textures.texture_bank.cache_clear()
    assert bank.source == textures.DRAWN
    for image in bank.images:
        assert image.shape == (512, 512)
        assert image.std() == pytest.approx(1)
    drawn, photographed = make_scene("train", 0, bank), make_scene("train", 0)
    assert (label_map(drawn) == label_map(photographed)).all()


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def refuse(*args: object, **kwargs: object):
        raise AssertionError("the sample data went to the network")

    monkeypatch.setattr(socket, "socket", refuse)
    textures.texture_bank.cache_clear()
    make_smallest(tmp_path / "sample")
