"""COCO scores: known answers, two engines, awkward files."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pycocotools.mask as rle
import pytest

pytest.importorskip("detectron2")

from mimbench.benchmarks.evaluation import intervals
from mimbench.system.errors import UserError
from mimbench.system.runtime import Ranks
from transfer.detection import vitdet
from transfer.detection.data import inspect
from transfer.detection.protocol import Config
from transfer.detection.score import read_detections, score, truth_as_detections
from transfer.detection.show import show


@pytest.fixture(scope="module")
def coco(scenes: Callable[[int, int], Path]) -> Path:
    return scenes(5, 45) / "coco"


@pytest.fixture(scope="module")
def truth(coco: Path) -> Path:
    return coco / "annotations/instances_val2017.json"


def worsen(detections: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Shift, drop, rename and double detections, with scores that tie."""
    rng = np.random.default_rng(seed)
    categories = sorted({d["category_id"] for d in detections})
    out = []
    for item in detections:
        for _ in range(rng.integers(0, 3)):
            mask = np.roll(rle.decode(item["segmentation"]), tuple(rng.integers(-6, 7, 2)), (0, 1))
            code: Any = rle.encode(np.asfortranarray(mask))
            box = (np.array(item["bbox"]) + rng.normal(0, 3, 4)).clip(1).tolist()
            wrong = rng.random() < 0.2
            out.append(
                {
                    "image_id": item["image_id"],
                    "category_id": int(rng.choice(categories)) if wrong else item["category_id"],
                    "bbox": box,
                    "score": round(float(rng.random()), 1),
                    "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
                }
            )
    return out


def test_ground_truth_scored_against_itself_is_perfect(truth: Path) -> None:
    for engine in ("pycocotools", "faster"):
        found = score(truth, truth_as_detections(truth), engine=engine)
        assert found.metrics["box_ap"] == pytest.approx(100.0, abs=1e-9)
        assert found.metrics["mask_ap"] == pytest.approx(100.0, abs=1e-9)
        assert dict.fromkeys(found.metrics, 100.0) == pytest.approx(dict(found.metrics))
        assert all(
            values == pytest.approx({"box": 100.0, "mask": 100.0})
            for values in found.per_class.values()
        )


@pytest.mark.parametrize("seed", range(3))
def test_engines_agree_to_1e_9(truth: Path, seed: int) -> None:
    detections = worsen(truth_as_detections(truth), seed)
    first = score(truth, detections, engine="pycocotools")
    second = score(truth, detections, engine="faster")
    assert 5 < first.metrics["box_ap"] < 95
    assert first.metrics.keys() == second.metrics.keys()
    for name, value in first.metrics.items():
        assert second.metrics[name] == pytest.approx(value, abs=1e-9), name
    assert first.per_class.keys() == second.per_class.keys()
    for name, values in first.per_class.items():
        assert second.per_class[name] == pytest.approx(dict(values), abs=1e-9)


def test_per_class_figures_average_to_the_whole(truth: Path) -> None:
    found = score(truth, worsen(truth_as_detections(truth), 0))
    assert found.engine == "faster-coco-eval"
    for kind in ("box", "mask"):
        mean = np.mean([values[kind] for values in found.per_class.values()])
        assert mean == pytest.approx(found.metrics[f"{kind}_ap"])


def test_no_detections_are_worth_nothing_and_no_error(truth: Path) -> None:
    for engine in ("pycocotools", "faster"):
        found = score(truth, [], engine=engine)
        assert found.metrics["box_ap"] == found.metrics["mask_ap"] == 0.0


def test_a_crowd_forgives_detections_inside_it(tmp_path: Path) -> None:
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    crowd = {"size": [64, 64], "counts": [64 * 40, 64 * 24]}
    content = {
        "images": [{"id": 5, "file_name": "a.jpg", "width": 64, "height": 64}],
        "categories": [{"id": 3, "name": "x"}],
        "annotations": [
            annotation(1, square, [10, 10, 20, 20], 400, 0),
            annotation(2, crowd, [40, 0, 24, 64], 64 * 24, 1),
        ],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    hit = truth_as_detections(path)
    inside = np.zeros((64, 64), dtype=np.uint8)
    inside[10:30, 45:60] = 1
    stray = {**detection(inside), "bbox": [45, 10, 15, 20], "score": 1.0}
    elsewhere = np.zeros((64, 64), dtype=np.uint8)
    elsewhere[40:60, 0:15] = 1
    false = {**detection(elsewhere), "bbox": [0, 40, 15, 20], "score": 1.0}
    for engine in ("pycocotools", "faster"):
        assert score(path, [stray, *hit], engine=engine).metrics["box_ap"] == pytest.approx(100)
        assert score(path, [false, *hit], engine=engine).metrics["box_ap"] == pytest.approx(50)


def annotation(number: int, outline: Any, box: list[int], area: int, crowd: int) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": 5,
        "category_id": 3,
        "bbox": box,
        "area": area,
        "iscrowd": crowd,
        "segmentation": outline,
    }


def detection(mask: np.ndarray) -> dict[str, Any]:
    code: Any = rle.encode(np.asfortranarray(mask))
    return {
        "image_id": 5,
        "category_id": 3,
        "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
    }


def test_figures_without_ground_truth_are_absent(truth: Path) -> None:
    found = score(truth, truth_as_detections(truth))
    # nothing in these pictures is as large as 96 x 96
    assert "box_ap_large" not in found.metrics
    assert {"box_ap", "box_ap50", "box_ap75", "box_ap_small", "mask_ap"} <= found.metrics.keys()


def test_detections_of_other_pictures_are_refused(truth: Path) -> None:
    stranger = {**truth_as_detections(truth)[0], "image_id": 1}
    with pytest.raises(UserError, match="1 detected pictures are not in"):
        score(truth, [stranger])


def test_nothing_is_printed(truth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score(truth, truth_as_detections(truth), engine="pycocotools")
    assert capsys.readouterr().out == ""


def test_pictures_show_truth_beside_detections(
    coco: Path, truth: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from PIL import Image

    kept = tmp_path / "detections.json"
    kept.write_text(json.dumps(truth_as_detections(truth)))
    assert read_detections(kept)
    paths = show(tmp_path / "pictures", kept, Config(data=coco), count=3, threshold=0.5)
    assert len(set(paths)) == 3
    left_right = np.asarray(Image.open(paths[0]))
    assert left_right.shape == (400, 808, 3)
    # objects are drawn on both sides of the same picture
    assert (left_right[:, :400] != left_right[:, 408:]).mean() < 0.5
    assert "lower --threshold" not in caplog.text
    bare = np.asarray(
        Image.open(show(tmp_path, kept, Config(data=coco), count=1, threshold=1.1)[0])
    )
    assert (bare[:, 408:] != left_right[:, 408:]).any()
    assert "no detection scores 1.10 or more (the best has 1.00)" in caplog.text
    with pytest.raises(UserError, match="at least one picture"):
        show(tmp_path, kept, Config(data=coco), count=0, threshold=0.5)
    with pytest.raises(UserError, match="no readable detections"):
        show(tmp_path, tmp_path / "none.json", Config(data=coco), count=1, threshold=0.5)


def test_a_validation_file_of_another_name_keeps_its_interval(
    truth: Path, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "holdout.json"
    own.write_bytes(truth.read_bytes())
    detections = worsen(truth_as_detections(own), 0)
    (tmp_path / vitdet.DETECTIONS).write_text(json.dumps(detections))
    found = score(own, detections)
    monkeypatch.setattr(vitdet, "judge", lambda job, keep: SimpleNamespace(scores=found))
    monkeypatch.setattr(vitdet, "_notes", lambda job, scores: {})
    job: Any = SimpleNamespace(
        ranks=Ranks(), val=inspect(own, coco / "val2017"), design=SimpleNamespace(ran={})
    )
    result = vitdet.conclude(job, tmp_path)
    halves = {metric: interval.half for metric, interval in intervals(result).items()}
    assert halves.keys() == {"box_ap", "mask_ap"}
    assert all(0 < half < 50 for half in halves.values())
    assert result.pictures
