"""The data: layouts, class lists, and label files that are one off, out of range or unreadable."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mimbench.sample import generate
from mimbench.system.errors import UserError
from transfer.segmentation.data import IGNORED, open_source
from transfer.segmentation.labels import check_labels, read_labels
from transfer.segmentation.order import PositionSampler, SeededDataset, SettleLabels, StreamItem
from transfer.segmentation.pipelines import test_pipeline as plain_pipeline
from transfer.segmentation.pipelines import train_pipeline
from transfer.segmentation.protocol import SegmentationConfig


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample")
    generate(root, train_per_class=1, val_per_class=1, train_scenes=8, val_scenes=4)
    return root / "ade"


@pytest.fixture
def ade(sample: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    root = tmp_path / "ade"
    for file in sample.rglob("*"):
        if file.is_file():
            target = root / file.relative_to(sample)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return root


def rewrite(root: Path, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> None:
    for file in root.rglob("*.png"):
        Image.fromarray(change(np.asarray(Image.open(file)).copy())).save(file)


def pairs_folder(root: Path, values: list[int], **fields: object) -> SegmentationConfig:
    """Write image and label folders of our own layout, and return their configuration."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(3):
            for folder in (root / split / "img", root / split / "lab" / ""):
                folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / "img" / f"{i}.png")
            labels = rng.choice(np.array(values, dtype=np.uint8), (20, 30))
            Image.fromarray(labels).save(root / split / "lab" / f"{i}.png")
    (root / "names.txt").write_text("road\nsky\ntree\n")
    plain: dict[str, object] = {
        "train_images": "train/img", "train_labels": "train/lab", "val_images": "val/img",
        "val_labels": "val/lab", "classes": "names.txt", "reduce_zero_label": False,
    }  # fmt: skip
    return SegmentationConfig(data=root, **(plain | fields))  # pyright: ignore[reportArgumentType]


def test_sample_is_read_as_ade20k(sample: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(SegmentationConfig(data=sample))
    assert source.is_ade
    assert source.names[:1] + source.names[140:142] == ("wall", "zero", "one")
    assert source.suffixes == {"train": ".jpg", "val": ".jpg"}
    with caplog.at_level(logging.INFO):
        report = check_labels(source, "train")
    assert (report.files, report.suspicion) == (8, "")
    assert 0 < report.unlabelled < 10
    assert 10 <= report.occurring <= 13
    assert "8 files read" in caplog.text


def test_folder_pairs_with_a_class_list(tmp_path: Path) -> None:
    source = open_source(pairs_folder(tmp_path, [0, 1, 2, 255]))
    assert (source.names, source.is_ade) == (("road", "sky", "tree"), False)
    assert len(source.palette) == 3
    report = check_labels(source, "val")
    assert (report.occurring, report.suspicion) == (3, "")
    assert 20 < report.unlabelled < 30
    entry = source.dataset("train", [{"type": "LoadAnnotations"}])
    assert entry["type"] == "BaseSegDataset"
    assert entry["metainfo"]["classes"] == ["road", "sky", "tree"]


def test_labels_one_too_high_are_refused_with_the_cost(ade: Path) -> None:
    rewrite(ade / "annotations", lambda x: np.where(x > 0, x + 1, 0).astype(np.uint8))
    source = open_source(SegmentationConfig(data=ade))
    with pytest.raises(UserError) as caught:
        check_labels(source, "train")
    assert "holds label 151" in str(caught.value)
    assert "shifted by one" in str(caught.value)
    assert "mIoU of 0" in str(caught.value)


def test_labels_one_too_low_are_warned_of_with_the_cost(
    ade: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(ade / "annotations", lambda x: np.where(x > 0, x - 1, 0).astype(np.uint8))
    with caplog.at_level(logging.WARNING):
        report = check_labels(open_source(SegmentationConfig(data=ade)), "val")
    assert "agree with objectInfo150.txt when labels are read -1" in report.suspicion
    assert "val labels look wrong" in caplog.text
    assert "mIoU of 0 (no pixel can agree)" in caplog.text
    assert "reduce_zero_label (now true)" in caplog.text


def test_shift_without_a_table_is_seen_by_the_range(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match="holds label 3; with 3 classes.*shifted by one"):
        check_labels(open_source(pairs_folder(tmp_path / "a", [1, 2, 3])), "train")
    config = pairs_folder(tmp_path / "b", [0, 1, 2], reduce_zero_label=True, ignore_index=255)
    with caplog.at_level(logging.WARNING):
        suspicion = check_labels(open_source(config), "train").suspicion
    assert suspicion == "" or "never occurs" in suspicion
    config = pairs_folder(tmp_path / "c", [1, 2])
    assert "label 0 never occurs" in check_labels(open_source(config), "train").suspicion


def test_own_ignore_value(tmp_path: Path) -> None:
    config = pairs_folder(tmp_path, [0, 1, 2, 99], ignore_index=99)
    source = open_source(config)
    check_labels(source, "train")
    labels = np.array([[0, 2, 99]], dtype=np.uint8)
    assert source.loaded(labels).tolist() == [[0, 2, IGNORED]]
    with pytest.raises(UserError, match="holds label 99"):
        check_labels(replace(source, ignore_index=255), "train")


@pytest.mark.parametrize("ignore", [255, 7, 0])
@pytest.mark.parametrize("reduce", [True, False])
def test_settled_labels_equal_our_own_reading(ignore: int, reduce: bool, sample: Path) -> None:
    from mmseg.datasets.transforms import LoadAnnotations

    source = open_source(SegmentationConfig(data=sample))
    source = replace(source, ignore_index=ignore, reduce_zero_label=reduce, names=("x",) * 151)
    path = next((sample / "annotations" / "validation").glob("*.png"))
    found = {"seg_map_path": str(path), "reduce_zero_label": reduce, "seg_fields": []}
    LoadAnnotations().transform(found)
    settle = SettleLabels(151, ignore, reduce_zero_label=reduce)
    settled = settle.transform(found)["gt_seg_map"]
    assert np.array_equal(settled, source.loaded(read_labels(path)))


def test_a_stray_label_is_refused_where_it_is_used(tmp_path: Path) -> None:
    labels = np.array([[0, 5]], dtype=np.uint8)
    with pytest.raises(UserError, match=r"x\.png holds a label that is none of the 3"):
        SettleLabels(3, 255, reduce_zero_label=False).transform(
            {"gt_seg_map": labels, "seg_map_path": "x.png"}
        )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: (r / "names.txt").write_text("one\none\n"), "different classes"),
        (lambda r: (r / "names.txt").unlink(), "does not exist"),
        (lambda r: (r / "val/lab/1.png").unlink(), "1 of 3 pictures.*have no label map"),
        (lambda r: (r / "val/img/1.png").rename(r / "val/img/1.jpg"), "several kinds"),
        (lambda r: (r / "val/lab").rename(r / "val/labels"), "has no folder 'val/lab'"),
    ],
)
def test_broken_layouts_are_refused(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    config = pairs_folder(tmp_path, [0, 1, 2])
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        open_source(config)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.write_bytes(b"none"), "cannot read the label map"),
        (lambda f: Image.new("RGB", (30, 20)).save(f), "has mode RGB"),
        (lambda f: Image.new("L", (31, 20)).save(f), "has size"),
    ],
)
def test_broken_label_maps_are_refused(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    source = open_source(pairs_folder(tmp_path, [0, 1, 2]))
    spoil(tmp_path / "train/lab/0.png")
    with pytest.raises(UserError, match=message):
        check_labels(source, "train")


def test_draws_are_the_same_for_any_number_of_processes() -> None:
    def draws(world: int) -> list[StreamItem]:
        samplers = [PositionSampler(list(range(7)), seed=3) for _ in range(world)]
        for rank, sampler in enumerate(samplers):
            sampler.rank, sampler.world_size = rank, world
        streams = [sampler._indices_of_rank() for sampler in samplers]
        return [next(streams[i % world]) for i in range(24)]

    assert draws(1) == draws(2) == draws(3)
    assert sorted(d.picture for d in draws(1)[:7]) == list(range(7))
    assert [d.position for d in draws(1)] == list(range(24))
    resumed = PositionSampler(list(range(7)), seed=3)
    resumed.skip(10)
    stream = iter(resumed)
    assert [next(stream) for _ in range(14)] == draws(1)[10:]


def test_crops_depend_on_seed_and_position_alone(sample: Path) -> None:
    config = SegmentationConfig(data=sample, crop=(64, 64), scale=(256, 64))
    entry = open_source(config).dataset("train", train_pipeline(config))
    dataset = SeededDataset(entry, seed=1)
    first = dataset[StreamItem(2, 5)]["inputs"]
    np.random.seed(99)  # noqa: NPY002
    before = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    assert torch.equal(dataset[StreamItem(2, 5)]["inputs"], first)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], before)  # noqa: NPY002
    assert not torch.equal(dataset[StreamItem(2, 6)]["inputs"], first)
    assert not torch.equal(SeededDataset(entry, seed=2)[StreamItem(2, 5)]["inputs"], first)


def test_validation_labels_keep_their_size(sample: Path) -> None:
    config = SegmentationConfig(data=sample, crop=(64, 64), scale=(256, 64))
    entry = open_source(config).dataset("val", plain_pipeline(config))
    from transfer.segmentation.framework import DATASETS

    item = DATASETS.build(entry)[0]
    assert item["inputs"].shape == (3, 64, 64)
    assert item["data_samples"].gt_sem_seg.data.shape == (1, 96, 96)


def test_joined_labels_are_one_class_in_training_and_test(ade: Path) -> None:
    """By hand: 142 to 150 become 141, in the pipeline and where truth is drawn; a fault is refused."""
    digits = (tuple(range(141, 151)),)
    config = SegmentationConfig(data=ade, crop=(96, 96), scale=(384, 96), joined=digits)
    source, plain = open_source(config), open_source(replace(config, joined=()))
    assert source.names[140] == "zero to nine"
    assert source.names[:140] == plain.names[:140]
    settle = source.dataset("val", plain_pipeline(config))["pipeline"][3]
    assert settle["type"] == "SettleLabels"
    for _, path in source.pairs("val"):
        truth = read_labels(path)
        by_hand = np.where(truth > 141, 141, truth).astype(int) - 1
        by_hand[truth == 0] = IGNORED
        np.testing.assert_array_equal(source.loaded(truth), by_hand)
        step = SettleLabels(**{k: v for k, v in settle.items() if k != "type"})
        sample = {"gt_seg_map": plain.loaded(truth), "seg_map_path": "x"}
        np.testing.assert_array_equal(step.transform(sample)["gt_seg_map"], by_hand)
    with pytest.raises(UserError, match="a group has two labels or more"):
        open_source(replace(config, joined=((141,),)))
