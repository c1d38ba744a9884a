"""Scores: against an independent computation, on hand-made cases, and on the ground truth itself."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from sklearn.metrics import jaccard_score

from mimbench.scores.confusion import Confusion
from mimbench.scores.outcomes import read_outcomes, write_outcomes
from transfer.segmentation.data import IGNORED, open_source
from transfer.segmentation.labels import label_files
from transfer.segmentation.protocol import SegmentationConfig
from transfer.segmentation.score import ConfusionMetric, Score, sample_parts, score

Maps = list[np.ndarray]


def scored(predictions: Maps, labels: Maps, names: list[str]) -> tuple[Score, Confusion]:
    """Send label maps through the metric as mmengine does."""
    metric = ConfusionMetric()
    metric.dataset_meta = {"classes": names}
    for i, (prediction, label) in enumerate(zip(predictions, labels, strict=True)):
        sample = SegDataSample(metainfo={"img_path": f"img/{i}.jpg"})
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(prediction)[None].long())
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(label)[None].long())
        metric.process({}, [sample.to_dict()])
    metrics = metric.evaluate(len(labels))
    assert metric.confusion is not None
    found = score(metric.confusion, names)
    assert metrics["miou"] == found.miou
    return found, metric.confusion


def test_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(9)]
    labels = [rng.choice([0, 1, 2, 3, 5, 7, IGNORED], (40, 50)).astype(np.uint8) for _ in range(6)]
    noise = [rng.integers(0, 9, (40, 50)).astype(np.uint8) for _ in range(6)]
    predictions = [
        np.where((rng.random(a.shape) < 0.6) & (a != IGNORED), a, b)
        for a, b in zip(labels, noise, strict=True)
    ]
    found, _ = scored(predictions, labels, names)
    truth = np.concatenate([a.ravel() for a in labels])
    guess = np.concatenate([a.ravel() for a in predictions])
    truth, guess = truth[truth != IGNORED], guess[np.concatenate(labels).ravel() != IGNORED]
    occurring = [0, 1, 2, 3, 5, 7]
    each = 100 * np.asarray(
        [jaccard_score(truth == c, guess == c) for c in occurring], dtype=np.float64
    )
    assert found.miou == pytest.approx(each.mean(), abs=1e-6)
    assert list(found.iou.values()) == pytest.approx(list(each), abs=1e-6)
    assert found.aacc == pytest.approx(100 * (truth == guess).mean(), abs=1e-6)
    accuracies = [100 * (guess[truth == c] == c).mean() for c in occurring]
    assert found.macc == pytest.approx(np.mean(accuracies), abs=1e-6)
    assert found.averaged == 6
    assert found.miou_mmseg == pytest.approx(each.sum() / 9, abs=1e-6)


def test_large_counts_lose_no_pixel() -> None:
    counts = np.full((3, 1), 2**24 + 1, dtype=np.int64)
    found = score(
        Confusion(
            images=("a", "b", "c"), intersect=counts - 1, union=counts, predicted=counts,
            labelled=counts,
        ),
        ["x"],
    )  # fmt: skip
    assert found.miou == pytest.approx(100 * 2**24 / (2**24 + 1), abs=1e-9)
    assert found.miou < 100


def test_hand_made_case_with_an_absent_class_and_ignored_pixels() -> None:
    label = np.array([[0, 0, 1, IGNORED]], dtype=np.uint8)
    prediction = np.array([[0, 1, 1, 2]], dtype=np.uint8)
    found, confusion = scored([prediction], [label], ["a", "b", "c"])
    assert dict(found.iou) == {"a": 50.0, "b": 50.0}
    assert (found.miou, found.averaged) == (50.0, 2)
    assert found.aacc == pytest.approx(200 / 3)
    assert confusion.images == ("img/0.jpg",)
    assert confusion.intersect.tolist() == [[1, 1, 0]]
    assert confusion.union.tolist() == [[2, 2, 0]]
    assert confusion.predicted.tolist() == [[1, 2, 0]]
    assert confusion.labelled.tolist() == [[2, 1, 0]]


@pytest.fixture(scope="module")
def ade(scenes: Callable[[int, int], Path]) -> Path:
    return scenes(2, 12) / "ade"


def test_ground_truth_against_itself_and_one_off(ade: Path) -> None:
    source = open_source(SegmentationConfig(data=ade))
    labels = [maps for _, maps in label_files(source, "val")]
    assert len(labels) == 12
    perfect, _ = scored(labels, labels, list(source.names))
    assert (perfect.miou, perfect.aacc, perfect.macc) == (100, 100, 100)
    assert perfect.averaged == 13
    parts = sample_parts(perfect, source.names)
    assert parts == {"miou_stuff": 100, "miou_things": 100}
    shifted = [np.where(a == IGNORED, a, (a + 1) % 150).astype(np.uint8) for a in labels]
    off, _ = scored(shifted, labels, list(source.names))
    assert off.miou < 1
    assert sample_parts(perfect, ["a", "b"]) == {}


def test_counts_are_kept_for_each_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    labels = [rng.integers(0, 3, (8, 8)).astype(np.uint8) for _ in range(4)]
    predictions = [rng.integers(0, 3, (8, 8)).astype(np.uint8) for _ in range(4)]
    found, confusion = scored(predictions, labels, ["a", "b", "c"])
    write_outcomes(tmp_path / "confusion.npz", confusion)
    read = read_outcomes(tmp_path / "confusion.npz", Confusion)
    assert read.images == confusion.images
    assert read.intersect.dtype == np.int64
    assert score(read, ["a", "b", "c"]) == found
    alone, _ = scored(predictions[2:3], labels[2:3], ["a", "b", "c"])
    part = Confusion(
        images=read.images[2:3], intersect=read.intersect[2:3], union=read.union[2:3],
        predicted=read.predicted[2:3], labelled=read.labelled[2:3],
    )  # fmt: skip
    assert score(part, ["a", "b", "c"]) == alone


def test_equal_names_stay_apart() -> None:
    counts = np.array([[1, 2]], dtype=np.int64)
    confusion = Confusion(
        images=("a",), intersect=counts, union=counts, predicted=counts, labelled=counts
    )
    assert list(score(confusion, ["screen", "screen"]).iou) == ["screen (1)", "screen (2)"]
