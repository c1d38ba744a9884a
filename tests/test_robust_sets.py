"""Robustness sets: published lists and maps, each layout in miniature, and which classes compete."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo
from timm.data.real_labels import RealLabelsImagenet
from torch import Tensor

from mimbench.data.lists import read_folder
from mimbench.data.preprocess import Preprocess
from mimbench.doctor import shifted as doctor
from mimbench.doctor.data import check_data
from mimbench.sample.shifted import shifted_root
from mimbench.system.errors import UserError
from mimbench.system.runtime import Ranks
from mimbench.task import Machine
from transfer.classification.robustness import sets
from transfer.classification.robustness.backgrounds import Backgrounds, numbered_classes
from transfer.classification.robustness.classifiers import Classifier
from transfer.classification.robustness.drops import DropFromClean
from transfer.classification.robustness.maps import in9_classes
from transfer.classification.robustness.scoring import BorderCut, HeadJudge, hits

MACHINE = Machine(device="cpu", workers=0, max_batch=64)
SYNSETS = tuple(ImageNetInfo().label_names())
NAMES = {name: i for i, name in enumerate(SYNSETS)}


def paint(path: Path, colour: Sequence[int] = (10, 20, 30), side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), tuple(colour)).save(path)


def judge_of(scores: Tensor, side: int = 8) -> HeadJudge:
    """A head that gives every image these logits."""
    classifier = Classifier(
        logits=lambda batch: scores.expand(len(batch), -1).clone(),
        preprocess=Preprocess(size=side, resize=None),
        device=torch.device("cpu"),
    )
    cell: Any = SimpleNamespace()
    return HeadJudge(cell=cell, classifier=classifier, machine=MACHINE, ranks=Ranks())


# lists and maps against the facts


@pytest.mark.parametrize(("which", "images"), [("a", 7_500), ("r", 30_000)])
def test_lists_of_200_classes(which: str, images: int) -> None:
    names = sets.published_folders(which)
    indices = [NAMES[name] for name in names]
    assert len(indices) == 200
    assert indices == sorted(set(indices))
    assert doctor.synsets(which) == names


def test_a_and_r_overlap_and_differ() -> None:
    a, r = (set(sets.published_folders(which)) for which in "ar")
    assert 0 < len(a & r) < 200


def test_real_has_its_published_counts_and_order() -> None:
    labels = sets.real_labels(None)
    assert len(labels) == 50_000
    assert min(labels, key=lambda k: int(k)) == 1
    assert sum(map(bool, labels.values())) == 46_837
    assert sum(not found for found in labels.values()) == 3_163
    assert sum(map(len, labels.values())) == 57_553
    # entry i is image i + 1, as timm's own reader has it
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 50_001)]
    official = RealLabelsImagenet(names).real_labels
    assert [official[name] for name in names] == [labels[i] for i in range(1, 50_001)]


def test_objectnet_has_113_groups_of_125_classes() -> None:
    groups = sets.overlapping(None)
    flat = [c for group in groups.values() for c in group]
    assert (len(groups), len(flat), len(set(flat))) == (113, 125, 125)
    assert {len(group) for group in groups.values()} == {1, 2, 3}


def test_nine_classes_hold_370() -> None:
    names, groups = in9_classes()
    assert names[0] == "dog"
    assert names[-1] == "fish"
    assert [len(group) for group in groups] == [116, 52, 42, 36, 35, 27, 26, 20, 16]
    assert len({c for group in groups for c in group}) == 1000 - 630


# each layout in miniature


def test_v2_folders_are_numbers(tmp_path: Path) -> None:
    for name in ("2", "10", "100"):
        paint(tmp_path / name / "x.png")
    test = sets.numbered(tmp_path, ".", 1000)
    truth = {
        n: test.groups[label]
        for n, label in zip(test.images.names, test.images.labels, strict=True)
    }
    assert truth == {"2/x.png": (2,), "10/x.png": (10,), "100/x.png": (100,)}
    # read as text, folder 10 would be class 0
    assert test.images.classes[0] == "10"
    paint(tmp_path / "n01440764" / "x.png")
    with pytest.raises(
        UserError, match='folder n01440764 is no class of 1000; expected folders "0" to "999"'
    ):
        sets.numbered(tmp_path, ".", 1000)


def test_real_goes_by_the_number_of_the_file(tmp_path: Path) -> None:
    for folder, number in (("n01", 3), ("n02", 1), ("n02", 2)):
        paint(tmp_path / "val" / folder / f"ILSVRC2012_val_{number:08d}.JPEG")
    val = read_folder(tmp_path, "val")
    test = sets.relabelled(val, {1: [7], 2: [], 3: [4, 5]})
    # the image with an empty list is gone, the others have the lists of their numbers
    assert [Path(n).name[-6:] for n in test.images.names] == ["3.JPEG", "1.JPEG"]
    assert test.groups == ((4, 5), (7,))
    right = hits(np.array([5, 6]), test.images.labels, test.groups)
    assert right.tolist() == [1.0, 0.0]
    table = tmp_path / "real.json"
    table.write_text(json.dumps([[7], [], [4, 5]]))
    assert sets.relabelled(val, sets.real_labels(table)).groups == test.groups
    with pytest.raises(UserError, match="has no entry among the 1 of ReaL"):
        sets.relabelled(val, {1: [7]})


def test_a_and_r_let_their_own_classes_compete_and_no_others(tmp_path: Path) -> None:
    for name in SYNSETS[2], SYNSETS[5]:
        paint(tmp_path / name / "x.png")
    test = sets.by_folder(tmp_path, ".", NAMES)
    scores = torch.zeros(1000)
    scores[[9, 5, 2]] = torch.tensor([3.0, 2.0, 1.0])
    judge = judge_of(scores)
    # a class outside the set has the largest logit
    assert judge.score(test).tolist() == [9, 9]
    assert judge.score(replace(test, restrict=True)).tolist() == [5, 5]
    with pytest.raises(UserError, match="differ in"):
        sets.by_folder(tmp_path, ".", NAMES, published=sets.published_folders("a"))
    paint(tmp_path / "dog" / "x.png")
    with pytest.raises(UserError, match="dog are no classes of the head"):
        sets.by_folder(tmp_path, ".", NAMES)


def test_objectnets_border_is_cut_and_its_two_rules_differ(tmp_path: Path) -> None:
    groups = {"alarm_clock": (1, 3), "banana": (4,)}
    for name in ("alarm_clock", "banana", "not_in_imagenet"):
        path = tmp_path / "images" / name / "x.png"
        path.parent.mkdir(parents=True)
        pixels = np.full((12, 12, 3), (255, 0, 0), dtype=np.uint8)
        pixels[2:-2, 2:-2] = 50
        Image.fromarray(pixels).save(path)
    largest = sets.objects(tmp_path, "images", groups, rule="max")
    assert (len(largest.images), largest.border, largest.restrict) == (2, 2, True)
    inner = BorderCut(inner=Preprocess(size=8, resize=None), border=2)
    assert (inner(largest.images.open(0)) == 50).all()
    scores = torch.tensor([[0.0, 1.0, 9.0, 3.0, 2.0]])
    judge = judge_of(scores)
    assert judge.score(largest).tolist() == [3, 3]
    every = sets.objects(tmp_path, "images", groups, rule="challenge")
    assert judge.score(every).tolist() == [2, 2]
    right = hits(judge.score(largest), largest.images.labels, largest.groups)
    assert right.tolist() == [1.0, 0.0]
    with pytest.raises(UserError, match="lacks mug: 2 of the 3 folders"):
        sets.objects(tmp_path, "images", {**groups, "mug": (0,)}, rule="max")


def test_nine_classes_are_folders_numbers_and_every_class_competes(tmp_path: Path) -> None:
    for i in range(9):
        paint(tmp_path / "original" / "val" / f"{i:02d}_thing" / "x.png")
    images = numbered_classes(read_folder(tmp_path / "original", "val"), 9)
    assert images.labels.tolist() == list(range(9))
    _, groups = in9_classes()
    unmapped = next(c for c in range(1000) if all(c not in g for g in groups))
    scores = torch.zeros(1000)
    scores[[unmapped, groups[0][0]]] = torch.tensor([2.0, 1.0])
    predicted = judge_of(scores).predict(images)
    assert hits(predicted, images.labels, groups).sum() == 0
    scores[unmapped] = 0
    assert hits(judge_of(scores).predict(images), images.labels, groups).tolist() == [1.0] + 8 * [
        0.0
    ]
    paint(tmp_path / "original" / "val" / "stray" / "x.png")
    with pytest.raises(UserError, match="expected 9 of them, from 00_ to 08_"):
        numbered_classes(read_folder(tmp_path / "original", "val"), 9)


# outcomes


def drops(paired: bool) -> DropFromClean:
    rng = np.random.default_rng(0)
    names = tuple(f"a/{i}" for i in range(200))
    clean = (rng.random(200) < 0.9).astype(float)
    right = clean * (rng.random(200) < 0.7)
    other = names if paired else tuple(f"b/{i}" for i in range(200))
    return DropFromClean(
        images=names,
        predicted=rng.integers(0, 5, 200),
        right=right,
        clean_images=other,
        clean_right=clean,
        paired=paired,
    )


def test_a_paired_drop_is_surer_than_one_between_two_sets() -> None:
    paired, other = ({s.metric: s for s in drops(p).statistics()} for p in (True, False))
    assert paired["drop"].whole() == pytest.approx(other["drop"].whole())
    assert paired["drop"].whole() == pytest.approx(
        paired["top1_clean"].whole() - paired["top1"].whole()
    )
    assert paired["drop"].interval().half < 0.9 * other["drop"].interval().half
    assert other["drop"].interval().covers(other["drop"].whole())


def test_outcomes_come_back_from_their_arrays() -> None:
    for found in (
        drops(True),
        Backgrounds(
            images=("mixed_same/a", "mixed_rand/a", "mixed_rand/b"), right=np.array([1.0, 0.0, 1.0])
        ),
    ):
        again = type(found).from_arrays(found.arrays())
        assert cast(Any, again).metrics() == cast(Any, found).metrics()
    assert Backgrounds(
        images=("mixed_same/a", "mixed_rand/a", "mixed_rand/b"), right=np.array([1.0, 0.0, 1.0])
    ).metrics() == {"mixed_same": 100, "mixed_rand": 50, "gap": 50}
    with pytest.raises(ValueError, match="for 1 images"):
        Backgrounds(images=("a",), right=np.zeros(2))


# the doctor


def test_doctor_knows_each_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(1000):
        (tmp_path / "imagenet-v2" / str(i)).mkdir(parents=True)
    for name in doctor.synsets("a")[:-1]:
        paint(tmp_path / "imagenet-a" / name / "x.jpg", side=1)
    (tmp_path / "bg_challenge" / "mixed_rand" / "val").mkdir(parents=True)
    found = {check.name: check for check in check_data(tmp_path)}
    assert "without images: 0, 1, 10" in found["ImageNet-V2"].detail
    assert "0 images, expected 10,000" in found["ImageNet-V2"].detail
    detail = found["ImageNet-A"].detail
    assert "199 images, expected 7,500" in detail
    assert f"lacks the class folders {doctor.synsets('a')[-1]}" in detail
    assert "original/val has 0 class folders, expected 9" in found["ImageNet-9"].detail
    # absent sets of this kind are worth no line; the three core ones are
    assert "ImageNet-R" not in found
    assert "COCO" in found


def test_doctor_accepts_whole_sets(tmp_path: Path) -> None:
    v2 = tmp_path / "v2"
    for i in range(1000):
        folder = v2 / str(i)
        folder.mkdir(parents=True)
        for k in range(10):
            (folder / f"{k}.jpeg").touch()
    assert doctor.SETS["imagenet-v2"].check(v2)[0].status == "ok"
    nine = tmp_path / "in9"
    for name in doctor.VARIATIONS:
        for i in range(9):
            paint(nine / name / "val" / f"{i:02d}_x" / "a.JPEG", side=1)
    [check] = doctor.SETS["imagenet-9"].check(nine)
    assert (check.status, "mixed_rand 9" in check.detail) == ("ok", True)
    objects = tmp_path / "objectnet"
    for i in range(312):
        paint(objects / "images" / f"thing_{i}" / "a.png", side=1)
    [check] = doctor.SETS["objectnet"].check(objects)
    assert "has 312 object folders, expected 313" in check.detail


def test_sample_sets_are_laid_out_as_the_real_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimbench.sample.shifted.CARDS", 40)
    root = shifted_root(tmp_path / "shifted")
    assert shifted_root(root) == root
    digits = {str(i): i for i in range(10)}
    assert len(sets.numbered(root / "imagenet-v2", ".", 10).images) == 40
    assert len(sets.by_folder(root / "imagenet-a", ".", digits).groups) == 4
    assert len(sets.by_folder(root / "imagenet-r", ".", digits).groups) == 6
    groups = sets.overlapping(root / "objectnet" / "classes.csv")
    objects = sets.objects(root / "objectnet", "images", groups, rule="max")
    assert (len(objects.groups), len(objects.images)) == (5, 40)
    red = np.asarray(objects.images.open(0))
    assert (red[0] == (255, 0, 0)).all()
    assert not (red[2:-2, 2:-2] == (255, 0, 0)).all(axis=-1).any()
    for name in doctor.VARIATIONS:
        found = numbered_classes(read_folder(root / "imagenet-9" / name, "val"), 9)
        assert len(found) == 36
    assert not list(tmp_path.glob(".shifted*"))
