"""Intervals cover what they should; AP and mIoU as functions of image weights equal the real ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mimbench.scores.confidence import (
    Interval,
    bootstrap,
    bootstrap_mean,
    bootstrap_p,
    mean_iou,
    percentile_interval,
    wilson,
)
from mimbench.scores.hits import Hits
from mimbench.scores.matches import (
    RECALLS,
    ClassMatches,
    average_precision,
    hits_needed,
    match_detections,
)
from mimbench.scores.verdicts import (
    compare_functions,
    compare_shares,
    holm,
    mcnemar,
    verdict,
    welch,
)


def equal_models(rng: np.random.Generator, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Hits of two models that are equally good (70 %) and agree on most images."""
    easy = rng.random(images)
    a, b = (np.where(rng.random(images) < 0.6, easy, rng.random(images)) < 0.7 for _ in range(2))
    return a.astype(float), b.astype(float)


def test_interval_of_two_equal_models_covers_zero_in_95_percent() -> None:
    rng = np.random.default_rng(0)
    covered = sum(
        compare_shares("top1", [a], [b], rng).sampling.covers(0)
        for a, b in (equal_models(rng, 1000) for _ in range(1000))
    )
    assert 930 <= covered <= 970


def test_mcnemar_rejects_equal_models_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    rejected = sum(mcnemar(*equal_models(rng, 1000)) < 0.05 for _ in range(1000))
    assert 20 <= rejected <= 60, "the exact test is a little conservative"


def test_interval_of_miou_covers_the_truth_in_95_percent() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(1000):
        labelled = rng.integers(50, 150, (2, 120, 3))
        share = rng.beta(8, 4, (2, 120, 3))
        hit = labelled * share
        functions = [mean_iou(h, 2 * n - h, n) for h, n in zip(hit, labelled, strict=True)]
        found = compare_functions("miou", functions[:1], functions[1:], 120, rng, resamples=400)
        covered += found.sampling.covers(0)
    assert 930 <= covered <= 970


def test_resampling_by_counts_equals_resampling_by_images() -> None:
    rng = np.random.default_rng(3)
    values = rng.choice([-1.0, 0.0, 1.0], 300, p=[0.2, 0.5, 0.3])
    fast = bootstrap_mean(values, rng, 20_000)
    slow = values[rng.integers(0, 300, (20_000, 300))].mean(axis=1)
    same: Any = stats.ks_2samp(fast, slow)
    assert same.pvalue > 0.001
    assert np.std(fast) == pytest.approx(np.std(slow), rel=0.03)


def test_a_real_difference_is_found_and_named() -> None:
    rng = np.random.default_rng(4)
    a, b = equal_models(rng, 5000)
    better = np.maximum(a, rng.random(5000) < 0.2)
    found = compare_shares("top1", [better], [b], rng)
    assert found.mcnemar
    assert found.p < 1e-6
    assert verdict("x", "y", found, trains=False).startswith("x is better than y (x - y = +")
    assert verdict("y", "x", compare_shares("top1", [b], [better], rng), trains=False).startswith(
        "x is better than y (y - x = -"
    )
    assert "no difference shown" in verdict("x", "y", compare_shares("top1", [a], [a], rng))


def test_seeds_are_kept_apart_from_sampling() -> None:
    rng = np.random.default_rng(5)
    base = (rng.random(20_000) < 0.7).astype(float)
    worse = base * (rng.random(20_000) > 0.01)
    # seeds that scatter by more than the difference: images say yes, seeds say no
    a = [np.where(np.arange(20_000) < cut, 0.0, base) for cut in (0, 2000)]
    b = [np.where(np.arange(20_000) < cut, 0.0, worse) for cut in (0, 2000)]
    found = compare_shares("top1", a, b, rng)
    assert found.sampling.low > 0
    assert found.seeds is not None
    assert found.seeds.interval.low < 0 < found.seeds.interval.high
    assert found.sampling_p < 0.05 < found.p
    assert not found.mcnemar
    said = verdict("x", "y", found)
    assert said.startswith("no difference shown between x and y")
    assert said.count("(n=2)") == 2, "both spreads stand in the verdict"
    assert found.seed_sd[0] == pytest.approx(np.std([100 * h.mean() for h in a], ddof=1))
    assert welch([1.0], [2.0, 3.0]) is None
    assert welch([1.0, 1.0], [2.0, 2.0]) == (Interval(-1.0, -1.0), 0.0)


def test_welch_equals_scipy() -> None:
    a, b = [80.1, 80.4, 79.9], [79.0, 79.8, 79.5, 79.1]
    found = welch(a, b)
    test: Any = stats.ttest_ind(a, b, equal_var=False)
    wanted = test.confidence_interval()
    assert found is not None
    ends = (found.interval.low, found.interval.high)
    assert ends == pytest.approx((wanted.low, wanted.high))
    assert found.p == pytest.approx(test.pvalue)


def test_miou_of_all_images_is_the_dataset_miou() -> None:
    intersect, union = np.array([[4, 0], [2, 0]]), np.array([[8, 1], [4, 3]])
    labelled = np.array([[6, 0], [3, 0]])
    assert mean_iou(intersect, union, labelled)(np.ones((1, 2))) == pytest.approx(50.0)
    assert mean_iou(intersect, union, labelled)(np.array([[1.0, 0.0]])) == pytest.approx(50.0)
    assert mean_iou(intersect, union, np.ones((2, 2)))(np.ones((1, 2))) == pytest.approx(25.0)


def scenes(rng: np.random.Generator, folder: Path, images: int = 25) -> tuple[Path, Path]:
    """Write a random ground truth (with crowds) and detections that are shifted copies and noise."""
    truth: dict[str, Any] = {
        "info": {},
        "images": [],
        "annotations": [],
        "categories": [{"id": c, "name": str(c)} for c in (1, 5, 7)],
    }
    found = []
    for i in range(images):
        image = 100 - i
        truth["images"].append({"id": image, "width": 128, "height": 128, "file_name": f"{i}.png"})
        for _ in range(rng.integers(0, 5)):
            box = [float(x) for x in [*rng.uniform(0, 80, 2), *rng.uniform(10, 40, 2)]]
            category = int(rng.choice([1, 5, 7]))
            crowd = int(rng.random() < 0.1)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": crowd,
                }
            )
            for _ in range(rng.integers(0, 3)):
                near = [float(x) for x in np.array(box) + rng.normal(0, 3, 4)]
                found.append(
                    {
                        "image_id": image,
                        "category_id": category,
                        "bbox": near,
                        "score": float(rng.random()),
                    }
                )
        noise = [float(x) for x in rng.uniform(5, 60, 4)]
        found.append(
            {
                "image_id": image,
                "category_id": int(rng.choice([1, 5])),
                "bbox": noise,
                "score": float(rng.random()),
            }
        )
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(found))
    return folder / "found.json", folder / "truth.json"


def test_ap_equals_pycocotools_on_all_images_and_on_a_resample(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools", reason="detection is not installed")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(6)
    found, truth = scenes(rng, tmp_path)
    images, classes = match_detections(json.loads(found.read_text()), truth, "bbox")
    ap = average_precision(classes)

    def official(ids: list[int]) -> float:
        coco = COCO(str(truth))
        judge: Any = COCOeval(coco, coco.loadRes(str(found)), "bbox")
        judge.params.imgIds = ids
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        return 100 * float(judge.stats[0])

    assert ap(np.ones((1, len(images))))[0] == pytest.approx(official(images), abs=1e-9)
    some = (rng.random(len(images)) < 0.6).astype(float)
    subset = [i for i, w in zip(images, some, strict=True) if w]
    assert ap(some[None])[0] == pytest.approx(official(subset), abs=1e-9)
    draws = bootstrap([ap], len(images), rng, resamples=100)[0]
    interval = percentile_interval(draws)
    assert interval.covers(ap(np.ones((1, len(images))))[0])
    assert interval.half > 1


def test_one_training_seed_speaks_of_these_test_images_only() -> None:
    """Five fine-tunes of one checkpoint gave "better" in 3 of 10 pairs: McNemar sees images alone."""
    rng = np.random.default_rng(8)
    _, b = equal_models(rng, 5000)
    better = np.maximum(b, rng.random(5000) < 0.2)
    one = compare_shares("top1", [better], [b], rng)
    said = verdict("x", "y", one)
    assert said.startswith(
        "on these test images x does better than y; one training seed says no more"
    )
    assert "is better" not in said
    again = [np.where(rng.random(5000) < 0.01, 1 - side, side) for side in (better, b)]
    two = compare_shares("top1", [better, again[0]], [b, again[1]], rng)
    assert verdict("x", "y", two).startswith("x is better than y")
    assert verdict("x", "y", two, lower=True).startswith("y is better than x")


def test_equal_recipes_under_other_seeds_are_rarely_called_better() -> None:
    """Two recipes that differ in nothing, three seeds each, whose scores scatter by 0.5 points."""
    rng = np.random.default_rng(9)
    wrong = 0
    for _ in range(200):
        easy = rng.random(2000)
        seeds = [(easy < 0.7 + rng.normal(0, 0.005)).astype(float) for _ in range(6)]
        found = compare_shares("top1", seeds[:3], seeds[3:], rng)
        wrong += "is better than" in verdict("x", "y", found)
    assert wrong <= 16, "five per cent of 200, and what chance adds"


def test_several_verdicts_are_corrected_by_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    rng = np.random.default_rng(10)
    a, b = equal_models(rng, 400)
    found = compare_shares("top1", [a], [b], rng)
    alone = verdict("x", "y", found, trains=False)
    assert "Holm" not in alone
    many = verdict("x", "y", found, trains=False, among=[found.p, 0.9, 0.9])
    assert f"p = {min(1.0, 3 * found.p):.2g} by Holm over 3 verdicts" in many


def test_all_right_answers_leave_doubt_by_wilson() -> None:
    """20 of 20 showed 100 ± 0: a resample of hits alone never holds a miss."""
    found = wilson(20, 20)
    assert (found.low, found.high) == (pytest.approx(83.887, abs=0.001), 100.0)
    wanted = stats.binomtest(37, 120).proportion_ci(method="wilson")
    some = wilson(37, 120)
    assert (some.low / 100, some.high / 100) == pytest.approx((wanted.low, wanted.high))


def test_top_5_has_an_interval_as_top_1_has_it() -> None:
    """The five best classes are kept; their metric had no interval and `verify` could not prove it."""
    rng = np.random.default_rng(13)
    labels = rng.integers(0, 10, 200)
    top5 = np.stack([rng.permutation(10)[:5] for _ in labels])
    kept = Hits(images=tuple(map(str, range(200))), labels=labels, top5=top5)
    one, five = kept.statistics()
    among = int((top5 == labels[:, None]).any(axis=1).sum())
    assert (one.metric, five.metric) == ("top1", "top5")
    assert five.whole() == pytest.approx(among / 2)
    assert five.interval() == wilson(among, 200)
    some = (rng.random((3, 200)) < 0.5).astype(float)
    wanted = [100 * np.mean([labels[i] in top5[i] for i in np.flatnonzero(row)]) for row in some]
    assert five.value(some) == pytest.approx(wanted)
    several = replace(kept, draws=np.stack([top5[:, 0], top5[:, 1]]))
    assert [s.metric for s in several.statistics()] == ["top1", "top1_sd"], "five of one draw only"


def test_the_monte_carlo_error_of_an_interval_is_what_other_resamples_show() -> None:
    rng = np.random.default_rng(11)
    many = [percentile_interval(rng.normal(size=1000)) for _ in range(300)]
    told = np.mean([one.error for one in many])
    seen = np.std([one.high for one in many])
    assert told == pytest.approx(seen, rel=0.25)
    assert percentile_interval(rng.normal(size=16000)).error < told / 2.5
    assert bootstrap_p(np.linspace(-1, 3, 1000)) == pytest.approx(0.5, abs=0.01)


def test_ties_of_recall_are_decided_as_pycocotools_decides_them() -> None:
    """Recalls were shifted before they were compared: the same resample gave another AP in another row."""
    rng = np.random.default_rng(12)
    image = rng.integers(0, 30, 60)
    hit = rng.random((2, 60)) < 0.6
    objects = np.bincount(rng.integers(0, 30, 40), minlength=30).astype(float)
    ap = average_precision([ClassMatches(image, hit, np.ones_like(hit), objects)])
    weights = rng.multinomial(30, np.full(30, 1 / 30), size=64).astype(float)
    together = ap(weights)
    alone = np.array([ap(row[None])[0] for row in weights])
    np.testing.assert_array_equal(together, alone)
    for total in (1, 7, 10, 49, 100, 333):
        needed = hits_needed(np.array([float(total)]))[0]
        recall = np.arange(total + 1) / total
        np.testing.assert_array_equal(needed, np.searchsorted(recall, RECALLS, side="left"))


def test_resamples_without_an_object_are_left_out() -> None:
    """Four test pictures, two of them empty: a sixteenth of the resamples hold nothing to find."""
    draws = np.array([np.nan, *np.linspace(0, 100, 1001)])
    found, whole = percentile_interval(draws), percentile_interval(draws[1:])
    assert found == whole
    assert found.half > 40
