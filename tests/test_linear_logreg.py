"""Logistic regression: scikit-learn's answers, the grid, the choice of C, the whole task."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from mimbench.features.logistic import grid
from mimbench.features.logistic.grid import Grid, choose_and_fit, held_out_score, solve
from mimbench.features.logistic.objective import Objective, principal_axes
from mimbench.features.logistic.solver import Until, fit_grid
from mimbench.scores.metrics import rank_classes, top_percent
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.system.runtime import Ranks
from mimbench.vit.weights import VitSpec, random_weights
from transfer.classification import logreg
from transfer.classification.logreg import Config


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))


def features(count: int, width: int, classes: int, *, seed: int = 0, noise: float = 2.0):
    """Correlated features with a falling spectrum and an offset, as a backbone's are."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, width + 1) ** -0.8
    turn = np.linalg.qr(rng.standard_normal((width, width)))[0]
    centres = rng.standard_normal((classes, width)) * spectrum * 0.5
    rng = np.random.default_rng([1, seed])
    labels = rng.integers(0, classes, count)
    x = (centres[labels] + rng.standard_normal((count, width)) * spectrum * noise) @ turn
    return (5 * x + 1.5).astype(np.float32), labels.astype(np.int64)


def test_agrees_with_scikit_learn_over_the_grid():
    x, y = features(800, 24, 6, noise=1.5)
    test_x, test_y = features(20000, 24, 6, seed=1, noise=1.5)
    cs = np.geomspace(1e-2, 1e2, 3).tolist()
    solution = fit_grid(
        torch.from_numpy(x), torch.from_numpy(y), 6, cs, until=Until(tolerance=1e-11)
    )
    assert all(solution.converged)
    truth = torch.from_numpy(test_y)
    for i, c in enumerate(cs):
        model = LogisticRegression(C=c, max_iter=2000, tol=1e-6).fit(x, y)
        theirs = 100 * model.score(test_x, test_y)
        logits = solution.logits(i, torch.from_numpy(test_x))
        assert top_percent(rank_classes(logits), truth, 1) == pytest.approx(theirs, abs=0.1), c
        # ours has gone at least as far down scikit-learn's own objective
        weight = torch.from_numpy(model.coef_.T.copy())
        reference = cost(x, y, weight, torch.from_numpy(model.intercept_), c)
        assert cost(x, y, solution.weight[i], solution.bias[i], c) <= reference * (1 + 1e-6)


def cost(x: Any, y: Any, weight: torch.Tensor, bias: torch.Tensor, c: float) -> float:
    """scikit-learn's objective, in float64."""
    weight, features = weight.double(), torch.from_numpy(x).double()
    logits = features @ weight + bias.double()
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="sum")
    return (c * loss + 0.5 * weight.square().sum()).item()


def test_default_tolerance_costs_no_accuracy():
    x, y = features(1500, 48, 8)
    test_x, test_y = (torch.from_numpy(a) for a in features(6000, 48, 8, seed=1))
    cs = np.geomspace(1e-5, 1e3, 5).tolist()
    tops = [
        [top_percent(rank_classes(s.logits(i, test_x)), test_y, 1) for i in range(5)]
        for s in (
            fit_grid(torch.from_numpy(x), torch.from_numpy(y), 8, cs, until=Until(tolerance=t))
            for t in (1e-6, 1e-10)
        )
    ]
    np.testing.assert_allclose(tops[0], tops[1], atol=0.1)


def test_objective_is_scikit_learns_and_its_gradient_is_right():
    x, y = features(80, 6, 3)
    axes = principal_axes(torch.from_numpy(x).double())
    objective = Objective(
        axes, torch.from_numpy(y), 3, torch.tensor([0.1, 0.7], dtype=torch.float64)
    )
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    loss, gradient = objective(points, torch.arange(2))
    plain = (points / objective.scale).requires_grad_()
    for i, penalty in enumerate((0.1, 0.7)):
        logits = axes.features @ plain[i, :-1] + plain[i, -1]
        direct = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y))
        direct = direct + 0.5 * penalty * plain[i, :-1].square().sum()
        assert loss[i].item() == pytest.approx(direct.item(), rel=1e-9)
        (slope,) = torch.autograd.grad(direct, plain)
        torch.testing.assert_close(gradient[i], slope[i] / objective.scale[i])


def test_pieces_give_the_same_loss(monkeypatch: pytest.MonkeyPatch):
    x, y = (torch.from_numpy(a) for a in features(300, 12, 4))
    whole = fit_grid(x, y, 4, [0.1, 1.0])
    monkeypatch.setattr("mimbench.features.logistic.objective.LOGIT_BYTES", 400)
    pieces = fit_grid(x, y, 4, [0.1, 1.0])
    torch.testing.assert_close(whole.weight, pieces.weight, rtol=1e-2, atol=1e-3)


def test_wide_features_work_without_rotation(monkeypatch: pytest.MonkeyPatch):
    x, y = features(400, 24, 4)
    turned = fit_grid(
        torch.from_numpy(x), torch.from_numpy(y), 4, [0.01], until=Until(tolerance=1e-9)
    )
    monkeypatch.setattr("mimbench.features.logistic.objective.ROTATE_UP_TO", 10)
    straight = fit_grid(
        torch.from_numpy(x), torch.from_numpy(y), 4, [0.01], until=Until(tolerance=1e-9)
    )
    torch.testing.assert_close(turned.weight, straight.weight, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("classes", [2, 5])
def test_both_solvers_choose_and_score_alike(classes: int):
    x, y = features(600, 16, classes)
    test_x, test_y = (torch.from_numpy(a) for a in features(5000, 16, classes, seed=1))
    tops = {}
    for solver in ("torch", "scikit-learn"):
        grid = Grid(lowest=1e-3, highest=1e1, steps=3, solver=solver)
        fitted = choose_and_fit(torch.from_numpy(x), y, classes, grid, seed=0)
        tops[solver] = top_percent(rank_classes(fitted.solution.logits(0, test_x)), test_y, 1)
        assert fitted.record["held_out_accuracy"]
    assert tops["torch"] == pytest.approx(tops["scikit-learn"], abs=0.1)


def test_two_unequal_classes_have_scikit_learns_probabilities():
    """One row of scikit-learn's stands for both: with nine images of one class the intercept matters."""
    generator = torch.Generator().manual_seed(0)
    labels = np.array([0] * 9 + [1] * 51)
    vectors = torch.randn(60, 4, generator=generator) + 0.5 * torch.from_numpy(labels)[:, None]
    single = Grid(lowest=0.3, highest=0.3, steps=1)
    wanted = LogisticRegression(C=0.6, max_iter=1000).fit(vectors.numpy(), labels)
    for solver in ("scikit-learn", "torch"):
        found = solve(vectors, labels, 2, [0.3], replace(single, solver=solver))
        chances = found.logits(0, vectors).softmax(dim=1)
        np.testing.assert_allclose(chances, wanted.predict_proba(vectors.numpy()), atol=2e-3)


def test_what_is_held_out_is_scored_by_hits_or_by_minus_the_loss():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    labels = np.array([0, 1, 1])
    assert held_out_score(logits, labels, "accuracy") == pytest.approx(200 / 3)
    loss = [np.log1p(np.exp(-2)), np.log1p(np.exp(-1)), np.log1p(np.exp(3))]
    assert held_out_score(logits, labels, "loss") == pytest.approx(-np.mean(loss), abs=1e-6)


def test_the_edge_of_the_grid_is_said():
    x, y = features(300, 12, 3)
    grid = Grid(lowest=1e-9, highest=1e-8, steps=2)
    fitted = choose_and_fit(torch.from_numpy(x), y, 3, grid, seed=0)
    assert fitted.record["at_edge_of_grid"] is True


def test_warm_start_reaches_the_same_point():
    x, y = (torch.from_numpy(a) for a in features(400, 16, 4))
    cold = fit_grid(x, y, 4, [0.1], until=Until(tolerance=1e-8))
    warm = fit_grid(
        x, y, 4, [0.1], until=Until(tolerance=1e-8), start=(cold.weight[0], cold.bias[0])
    )
    assert warm.iterations[0] < cold.iterations[0]
    torch.testing.assert_close(warm.weight, cold.weight, rtol=1e-2, atol=1e-3)


def test_a_class_without_images_is_never_the_answer():
    x, y = features(200, 8, 3)
    y = np.where(y == 1, 2, y)
    for solver in ("torch", "scikit-learn"):
        solution = solve(torch.from_numpy(x), y, 3, [1.0], Grid(solver=solver))
        assert 1 not in rank_classes(solution.logits(0, torch.from_numpy(x)))[:, 0]


def test_the_task_end_to_end(
    painted_images: Callable[..., Path], small_spec: VitSpec, tmp_path: Path
):
    data = painted_images(tmp_path / "data", train=20, val=20)
    plain = {
        "data": str(data), "image_size": 32, "resize": None, "choices": ["avg", "cls"],
        "grid": {"lowest": 1e-2, "highest": 1e3, "steps": 6},
        "machine": {"device": "cpu", "workers": 0, "max_batch": 64},
    }  # fmt: skip
    weights = random_weights(small_spec, 0)
    settings = from_mapping(Config, plain)
    result = logreg.run(weights, settings, tmp_path / "one")
    metrics = result.metrics
    # chance is 25
    assert metrics["top1"] == metrics["avg_top1"] >= 60
    assert result.notes["views"] == 1
    assert result.notes["train_images"] == 80
    # the head that stays beside the result is the one that answered
    head = load_file(tmp_path / "one" / logreg.HEAD_FILE)
    _, val = settings.images()
    logits = settings.features(weights, val, Ranks()).load("avg") @ head["weight"] + head["bias"]
    assert top_percent(rank_classes(logits), torch.from_numpy(val.labels), 1) == metrics["top1"]
    reference = replace(settings, grid=replace(settings.grid, solver="scikit-learn"))
    theirs = logreg.run(weights, reference, tmp_path / "two").metrics
    assert metrics["top1"] == pytest.approx(theirs["top1"], abs=1.3)
    views = logreg.run(weights, replace(settings, views=3), tmp_path / "three").metrics
    assert views["top1"] >= 60
    top5 = result.outcomes[0].arrays()["top5"]
    assert top5.shape == (80, 5)
    assert (top5[:, 4] == -1).all()


def test_out_of_memory_halves_the_values_solved_at_once(monkeypatch: pytest.MonkeyPatch):
    x, y = features(300, 12, 3)
    solver = Grid(lowest=1e-2, highest=1e2, steps=5)
    whole = choose_and_fit(torch.from_numpy(x), y, 3, solver, seed=0)
    real, sizes = grid.fit_grid, []

    def tight(features: Any, labels: Any, classes: int, cs: Any, **options: Any):
        if len(cs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(cs))
        return real(features, labels, classes, cs, **options)

    monkeypatch.setattr(grid, "fit_grid", tight)
    pieces = choose_and_fit(torch.from_numpy(x), y, 3, solver, seed=0, label="pieces")
    # five values in pieces, and the last fit at one of them
    assert sizes == [2, 2, 1, 1]
    assert (pieces.record["values_at_once"], pieces.record["memory_halved"]) == (2, True)
    assert pieces.c == whole.c
    torch.testing.assert_close(pieces.solution.weight, whole.solution.weight, rtol=1e-2, atol=1e-3)


def test_features_too_large_for_the_device_are_solved_on_the_cpu(monkeypatch: pytest.MonkeyPatch):
    x, y = features(120, 6, 3)
    config = Config(data=Path("none"), grid=Grid(lowest=1.0, highest=1.0, steps=1))
    real, places = logreg.choose_and_fit, []

    def tight(features: Any, *arguments: Any, **options: Any):
        places.append(features.device.type)
        if features.device.type != "cpu":
            raise UserError("single image") from torch.OutOfMemoryError("CUDA out of memory")
        return real(features, *arguments, **options)

    monkeypatch.setattr(logreg, "choose_and_fit", tight)
    fitted = logreg._fit(torch.from_numpy(x), y, 3, "cls", config, torch.device("meta"))
    assert places == ["meta", "cpu"]
    assert fitted.c == 1.0


def test_what_half_storage_does_is_said(
    painted_images: Callable[..., Path], small_spec: VitSpec, tmp_path: Path
):
    data = painted_images(tmp_path / "data", train=12, val=8)
    settings = from_mapping(
        Config,
        {
            "data": str(data), "image_size": 32, "resize": None, "choices": ["avg"],
            "storage": "bf16", "grid": {"lowest": 1e-1, "highest": 1e1, "steps": 2},
            "machine": {"device": "cpu", "workers": 0, "max_batch": 64},
        },
    )  # fmt: skip
    found = logreg.run(random_weights(small_spec, 0), settings, tmp_path / "out")
    effect = found.notes["storage_effect"]
    assert effect["top1_bf16"] == pytest.approx(found.metrics["top1"], abs=3.2)
    assert effect["difference"] == effect["top1_bf16"] - effect["top1_fp32"]
    assert (effect["bank_images"], effect["images"]) == (48, 32)


def test_impossible_grids_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="is empty"):
        from_mapping(Config, {"data": str(tmp_path), "grid": {"lowest": 2.0, "highest": 1.0}})
    with pytest.raises(UserError, match="holdout 1.0 is not between"):
        from_mapping(Config, {"data": str(tmp_path), "grid": {"holdout": 1.0}})
