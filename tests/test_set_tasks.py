"""Transfer to other sets: the recipe's arithmetic, each set's rule, means, oracles and strangers."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mimbench.benchmarks.manifest import load_manifest
from mimbench.data.contents import Splits
from mimbench.data.lists import read_folder
from mimbench.data.sets import published
from mimbench.features.logistic.grid import Grid
from mimbench.scores.outcomes import read_outcomes, write_outcomes
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.system.runtime import Ranks
from mimbench.task import load_task
from mimbench.training.batches import Repeats, StepSampler
from mimbench.training.optim import plan_batch
from mimbench.vit.weights import VitSpec, random_weights
from transfer.classification.sets import finetune, fitting, logreg, twelve
from transfer.classification.sets.fitting import fit_and_score
from transfer.classification.sets.outcomes import SetHits, SetMean, SetTags, eleven_points

GRID = {"lowest": 0.01, "highest": 10.0, "steps": 3, "max_iterations": 50}


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))


def machine() -> dict[str, Any]:
    return {"device": "cpu", "workers": 0, "max_batch": 16}


def hits(labels: list[int], best: list[int], *, per_class: bool) -> SetHits:
    return SetHits(
        images=tuple(map(str, range(len(labels)))),
        labels=np.array(labels),
        best=np.array(best),
        per_class=per_class,
    )


def test_the_mean_over_classes_is_not_the_share_of_right_answers() -> None:
    labels, best = [0] * 8 + [1] * 2, [0] * 8 + [0, 1]
    one = np.ones((1, 10))
    assert hits(labels, best, per_class=False).score(one).tolist() == [90]
    assert hits(labels, best, per_class=True).score(one).tolist() == [75]
    # a resample without the second class is scored on the first alone
    weights = np.array([[1.0] * 8 + [0.0] * 2])
    assert hits(labels, best, per_class=True).score(weights).tolist() == [100]


def test_outcomes_are_kept_and_read_again(tmp_path: Path) -> None:
    kept = hits([0, 0, 1], [0, 1, 1], per_class=True)
    tags = SetTags(
        images=("a", "b"),
        tags=np.array([[1, 0], [0, 1]], dtype=np.int8),
        scores=np.array([[1, 0], [0, 1]], dtype=np.float32),
    )
    mean = SetMean(parts={"pets": kept, "voc2007": tags})
    for number, one in enumerate((kept, tags, mean)):
        write_outcomes(tmp_path / f"{number}.npz", one)
        again = read_outcomes(tmp_path / f"{number}.npz", type(one))
        assert [s.whole() for s in again.statistics()] == [s.whole() for s in one.statistics()]
    assert [s.whole() for s in mean.statistics()] == [87.5, 75, 100]
    assert mean.statistics()[0].interval().half > 0


def test_the_eleven_point_average_precision() -> None:
    one = np.ones((1, 5))
    tags = np.array([1, 0, 1, 0, -1], dtype=np.int8)
    perfect = np.array([5, 1, 4, 2, 9], dtype=np.float32)
    assert eleven_points(perfect, tags, one).tolist() == [1]
    # precision 1 up to recall 0.5 (6 points), then 2/3 (5 points)
    mixed = np.array([5, 4, 3, 1, 9], dtype=np.float32)
    assert eleven_points(mixed, tags, one)[0] == pytest.approx((6 + 5 * 2 / 3) / 11)
    # an image drawn twice is like two images
    twice = eleven_points(mixed, tags, np.array([[1.0, 2.0, 1.0, 1.0, 1.0]]))
    longer = eleven_points(np.append(mixed, mixed[1]), np.append(tags, tags[1]), np.ones((1, 6)))
    assert twice[0] == pytest.approx(longer[0])


def test_every_set_of_the_manifest_is_scored_by_its_own_rule() -> None:
    manifest = load_manifest()
    named = {
        name: benchmark
        for name, benchmark in manifest.benchmarks.items()
        if benchmark.task.startswith("transfer.classification.sets.")
    }
    alone = {n: b for n, b in named.items() if "published" in b.config}
    for name, benchmark in alone.items():
        assert benchmark.config["published"] == benchmark.dataset, name
        assert "rule" not in benchmark.config, name
    frozen = {b.dataset for n, b in alone.items() if n.startswith("xfer-logreg-")}
    assert frozen == {*twelve.TWELVE, "folder"}
    tuned = {b.dataset for n, b in alone.items() if n.startswith("xfer-ft-")}
    assert tuned >= {
        "cifar10", "cifar100", "flowers", "cars", "pets", "aircraft", "food", "cub", "inat18",
        "inat19", "places205", "sun397", "dtd", "caltech101", "folder",
    }  # fmt: skip


def test_the_learning_rate_is_for_512_images_and_steps_by_epochs(tmp_path: Path) -> None:
    manifest = load_manifest()
    _, recipe = manifest.recipe("xfer-ft-cifar10", "paper")
    config = from_mapping(finetune.Config, {**recipe, "data": str(tmp_path)})
    chosen = config.resolve(384)
    assert (chosen.batch, chosen.epochs, chosen.layer_decay, chosen.pool) == (900, 500, 1, "cls")
    rate = config.schedule(chosen)
    peak = 7.5e-6 * 900 / 512
    assert [rate(e) for e in (0, 0.9, 1)] == pytest.approx([1e-6, 1e-6, 1e-6 + (peak - 1e-6) / 5])
    # timm's cosine goes on as if it had begun at epoch 0
    assert rate(5.5) == pytest.approx(1e-5 + (peak - 1e-5) * (1 + math.cos(math.pi * 5 / 500)) / 2)
    assert rate(500) == pytest.approx(1e-5)
    views = config.repeats(chosen)
    assert views is not None
    assert (views.views, views.unit, views.group) == (3, 256, 150)


def test_repeated_augmentation_shows_three_views_of_a_third_of_the_images() -> None:
    repeats = Repeats(views=3, unit=16, group=8)
    ranks = Ranks()
    sampler = StepSampler(
        size=100, batch=24, plan=plan_batch(24, world=1, at_most=24), ranks=ranks, seed=0,
        start=0, stop=8, repeats=repeats,
    )  # fmt: skip
    assert repeats.length(100) == 96
    assert sampler.steps_per_epoch == 4
    steps = [[key for _, key in step] for step in sampler]
    for epoch in (steps[:4], steps[4:]):
        seen = np.concatenate(epoch)
        # no view twice, each image three times
        assert len(set(seen.tolist())) == 96
        assert np.unique(seen % 100, return_counts=True)[1].tolist() == [3] * 32
        for step in epoch:
            for group in np.array(step).reshape(3, 8):
                assert len(set((group % 100).tolist())) == 8
    assert set(np.concatenate(steps[:4]) % 100) != set(np.concatenate(steps[4:]) % 100)


def test_fine_tuning_learns_and_reports_the_rule(
    painted_images: Callable[..., Path], small_spec: VitSpec, tmp_path: Path
) -> None:
    data = painted_images(tmp_path / "data", classes=3, train=24, val=8)
    (data / "val").rename(data / "test")
    plain = {
        "data": str(data), "image_size": 32, "resize": None, "epochs": 3, "batch": 24, "warmup": 0,
        "lr": 0.01, "min_lr": 1e-4, "drop_path": 0.0, "unit": 24, "precision": "fp32",
        "eval_every": 3, "rule": "per class", "machine": machine(),
        "augment": {"randaugment": None, "scale": [0.8, 1.0], "erase": 0.0, "mixup": 0.0, "cutmix": 0.0},
    }  # fmt: skip
    config = from_mapping(finetune.Config, plain)
    result = finetune.run(random_weights(small_spec, 0), config, tmp_path / "out")
    assert result.metrics["score"] == pytest.approx(result.metrics["top1"])
    # chance is 33
    assert result.metrics["score"] > 50
    assert result.notes["rule"] == "per class"
    [kept] = result.outcomes
    assert isinstance(kept, SetHits)
    assert kept.per_class
    with pytest.raises(UserError, match="several classes"):
        from_mapping(finetune.Config, {**plain, "published": "voc2007", "rule": "published"})


def small_splits(data: Path, **changes: Any) -> Splits:
    return Splits(train=read_folder(data, "train"), test=read_folder(data, "val"), **changes)


def test_c_is_chosen_on_the_official_validation_part_and_never_on_test(
    painted_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = painted_images(tmp_path / "data", classes=2, train=10, val=5)
    seen: list[Any] = []
    choose = fitting.choose_and_fit

    def spy(*args: Any, seed: Any, **rest: Any) -> Any:
        seen.append((len(args[0]), seed))
        return choose(*args, seed=seed, **rest)

    monkeypatch.setattr(fitting, "choose_and_fit", spy)
    held = np.array([4, 5, 14, 15])
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 10)
    train = torch.from_numpy((labels[:, None] + 0.1 * rng.standard_normal((20, 4))).astype("f4"))
    test = torch.from_numpy((np.repeat([0, 1], 5)[:, None] * np.ones((10, 4))).astype("f4"))
    grid = Grid(**GRID)
    for validation in (held, None):
        splits = small_splits(data, validation=validation)
        kept, record = fit_and_score(train, test, splits, "overall", grid, 7)
        assert kept.score(np.ones((1, 10))).tolist() == [100]
        assert ("official" in record["chosen_on"]) is (validation is not None)
    assert seen[0][0] == seen[1][0] == 20
    assert seen[0][1].tolist() == held.tolist()
    assert seen[1][1] == 7


def test_45_values_of_c_from_1e_6_to_1e5() -> None:
    manifest = load_manifest()
    for name in ("xfer-logreg-flowers", "xfer-logreg-12"):
        task = load_task(manifest.benchmarks[name].task)
        _, recipe = manifest.recipe(name, "paper")
        grid = from_mapping(task.Config, {**recipe, "data": "."}).grid
        assert (len(grid.values), grid.holdout, grid.max_iterations) == (45, 0.1, 1000)
        assert (grid.values[0], grid.values[-1]) == pytest.approx((1e-6, 1e5))


def test_several_tags_an_image_take_a_regression_each(
    painted_images: Callable[..., Path], tmp_path: Path
) -> None:
    data = painted_images(tmp_path / "data", classes=2, train=30, val=20)
    rng = np.random.default_rng(0)
    shown, wanted = (rng.integers(0, 2, (n, 3)).astype(np.int8) for n in (60, 40))
    shown[:5, 0] = -1
    splits = small_splits(data, tags=(shown, wanted))
    noise = [0.2 * rng.standard_normal((n, 3)) for n in (60, 40)]
    train, test = (
        torch.from_numpy((t.clip(0) + e).astype("f4"))
        for t, e in zip((shown, wanted), noise, strict=True)
    )
    kept, record = fit_and_score(train, test, splits, "tags", Grid(**GRID), 0)
    assert isinstance(kept, SetTags)
    assert kept.score(np.ones((1, 40)))[0] > 90
    assert record["C"] in Grid(**GRID).values
    train, test = (torch.from_numpy(rng.standard_normal((n, 3)).astype("f4")) for n in (60, 40))
    found, _ = fit_and_score(train, test, splits, "tags", Grid(**GRID), 0)
    assert found.score(np.ones((1, 40)))[0] < 75


def painted_set(root: Path, make: Callable[..., Path]) -> Path:
    make(root, classes=3, train=12, val=6)
    (root / "val").rename(root / "test")
    return root


def test_one_set_and_the_mean_of_several_agree(
    painted_images: Callable[..., Path], small_spec: VitSpec, tmp_path: Path
) -> None:
    for name in ("pets", "food-101"):
        painted_set(tmp_path / "data" / name, painted_images)
    (tmp_path / "data" / "food-101" / "test" / "class_0" / "val_0_001.png").unlink()
    weights = random_weights(small_spec, 0)
    features = {"image_size": 32, "resize": None}
    common = {"features": features, "grid": GRID, "machine": machine()}
    alone = {}
    for name, folder in {"pets": "pets", "food": "food-101"}.items():
        plain = {**common, "published": name, "data": str(tmp_path / "data" / folder)}
        result = logreg.run(weights, from_mapping(logreg.Config, plain), tmp_path / name)
        alone[name] = result.metrics["score"]
        assert result.notes["rule"] == published()[name].score
        # chance is 33
        assert result.metrics["score"] > 50
    plain = {**common, "sets": ["pets", "food"], "data": str(tmp_path / "data")}
    result = twelve.run(weights, from_mapping(twelve.Config, plain), tmp_path / "both")
    assert {n: result.metrics[n] for n in alone} == pytest.approx(alone)
    assert result.metrics["mean"] == pytest.approx(sum(alone.values()) / 2)
    with pytest.raises(UserError, match=r"lacks 1 of the 3 sets: cub"):
        from_mapping(twelve.Config, {**plain, "sets": ["pets", "food", "cub"]})
    with pytest.raises(UserError, match="did you mean 'food'"):
        from_mapping(twelve.Config, {**plain, "sets": ["pets", "foods"]})


def test_a_stranger_scores_at_chance_and_an_oracle_is_perfect(
    painted_images: Callable[..., Path], tmp_path: Path
) -> None:
    data = painted_images(tmp_path / "data", classes=4, train=40, val=40)
    splits = small_splits(data)
    rng = np.random.default_rng(0)
    known, asked = (torch.eye(4)[torch.from_numpy(s.labels)] for s in (splits.train, splits.test))
    noise, more = (torch.from_numpy(rng.standard_normal((160, 8)).astype("f4")) for _ in range(2))
    one, grid = np.ones((1, 160)), Grid(**GRID)
    for rule in ("overall", "per class"):
        assert fit_and_score(known, asked, splits, rule, grid, 0)[0].score(one)[0] == 100
        # chance is 25, three standard deviations are 10
        assert abs(fit_and_score(noise, more, splits, rule, grid, 0)[0].score(one)[0] - 25) < 10


def test_any_folder_serves(tmp_path: Path, small_spec: VitSpec) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for label in ("left", "right"):
            for i in range(count):
                path = tmp_path / "mine" / part / label / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 80, (32, 32, 3), dtype=np.uint8)
                pixels[:, : 16 if label == "left" else None] += np.uint8(150)
                Image.fromarray(pixels).save(path)
    plain = {
        "data": str(tmp_path / "mine"), "features": {"image_size": 32, "resize": None},
        "grid": {**GRID, "holdout": 0.25}, "machine": machine(),
    }  # fmt: skip
    result = logreg.run(
        random_weights(small_spec, 0), from_mapping(logreg.Config, plain), tmp_path / "out"
    )
    assert result.metrics["score"] == 100
    config = from_mapping(logreg.Config, {**plain, "data": str(tmp_path / "mine" / "train")})
    with pytest.raises(UserError, match="expected train and test"):
        logreg.run(random_weights(small_spec, 0), config, tmp_path / "out")
