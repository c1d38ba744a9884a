"""The last value that means something is accepted, the first that does not is refused by name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from knn import classify
from mimbench.data.preprocess import Preprocess
from mimbench.data.subsets import draw_fraction, draw_per_class, first_per_class
from mimbench.features.logistic.grid import Grid
from mimbench.scores.spectra import alpha_req, lidar, mean_cosine, two_nn
from mimbench.system.errors import UserError
from pretrain.masks import (
    MaskInput,
    adversarial,
    attention,
    colour,
    even,
    grid,
    hard,
    harder,
    multiblock,
    rolled,
    salience,
)
from pretrain.models.generator import Discriminator
from transfer.classification import heads, layers, logreg, lowshot
from transfer.classification.augmentation import Augmentation
from transfer.classification.pooling import EfficientPooling, SplitQuery, capi_pooling
from transfer.classification.training import Crop
from transfer.dense import layers as dense_layers
from transfer.dense import patch_logreg

Make = Callable[..., object]
HERE: dict[str, Any] = {"data": Path("x")}
TINY = 1e-9
LOWSHOT = partial(lowshot.Config, **HERE)
KNN = partial(classify.Config, **HERE)
HEADS = partial(heads.Config, **HERE)

EFFICIENT = partial(EfficientPooling, queries=4, reduction=2)
SPLIT = partial(SplitQuery, bias=True)

BOUNDS: list[tuple[Make, dict[str, Any], dict[str, Any], str]] = [
    # what is made, the last values that are accepted, the first that is refused, what is said of it
    (Grid, {"lowest": 0.5, "highest": 0.5, "steps": 1}, {"steps": 0}, "0 values"),
    (Grid, {"lowest": TINY}, {"lowest": 0.0}, "from 0.0"),
    (Grid, {}, {"lowest": 2.0, "highest": 1.0}, "is empty"),
    (Grid, {"holdout": TINY}, {"holdout": 0.0}, "holdout 0.0"),
    (Grid, {"holdout": 1 - TINY}, {"holdout": 1.0}, "holdout 1.0"),
    (KNN, {"k": (5,), "main_k": 5}, {"k": (5,), "main_k": 20}, "main_k 20"),
    (KNN, {"temperature": (TINY,), "main_temperature": TINY}, {"temperature": (0.0,), "main_temperature": 0.0}, "not positive"),
    (KNN, {}, {"temperature": (0.1,)}, "main_temperature 0.07"),
    (KNN, {"choices": ("cls",)}, {"choices": ()}, "at least one"),
    (KNN, {}, {"k": ()}, "at least one"),
    (KNN, {}, {"temperature": ()}, "at least one"),
    (HEADS, {"choices": ("cls",), "learning_rates": (1.0,)}, {"choices": ()}, "at least one"),
    (HEADS, {}, {"learning_rates": ()}, "at least one"),
    (HEADS, {"holdout": 0.0, "report": "best"}, {"holdout": 0.1, "report": "best"}, "report must be last"),
    (HEADS, {"holdout": 1 - TINY}, {"holdout": 1.0}, "holdout 1.0"),
    (HEADS, {}, {"holdout": -TINY}, "holdout -"),
    (partial(layers.Config, **HERE), {"parts": ("cls",), "norms": (True,)}, {"parts": ()}, "parts needs"),
    (partial(layers.Config, **HERE), {}, {"norms": (False,)}, "norms needs true"),
    (partial(logreg.Config, **HERE), {"views": 1, "choices": ("avg",)}, {"views": 0}, "views 0"),
    (partial(logreg.Config, **HERE), {}, {"choices": ()}, "at least one"),
    (LOWSHOT, {"per_class": 1, "draws": 2}, {"per_class": 1, "draws": 1}, "draws is 1"),
    (LOWSHOT, {"files": (Path("a"),), "draws": 1}, {}, "exactly one of"),
    (LOWSHOT, {"fraction": 0.1}, {"fraction": 0.1, "per_class": 1}, "exactly one of"),
    (LOWSHOT, {"fraction": 0.1, "methods": ("knn",)}, {"fraction": 0.1, "methods": ()}, "methods needs"),
    (partial(patch_logreg.Config, **HERE), {"stride": 1}, {"stride": 0}, "stride is 0"),
    (partial(dense_layers.Config, **HERE), {"norms": (True,)}, {"norms": (False,)}, "norms needs true"),
    (partial(Preprocess, size=32), {"resize": 32}, {"resize": 31}, "resize 31"),
    (Crop, {"scale": (1.0, 1.0), "flip": 1.0}, {"scale": (0.5, 1 + TINY)}, "not possible"),
    (Crop, {"scale": (TINY, TINY), "flip": 0.0}, {"scale": (0.0, 1.0)}, "not possible"),
    (Crop, {}, {"scale": (0.5, 0.4)}, "not possible"),
    (Crop, {}, {"flip": -TINY}, "not possible"),
    (Crop, {}, {"flip": 1 + TINY}, "not possible"),
    (EFFICIENT, {"width": 8}, {"width": 12}, "width 12 does not divide by 4 queries x reduction 2"),
    (EFFICIENT, {"width": 24}, {"width": 4}, "width 4 does not divide"),
    (SPLIT, {"width": 12, "heads": 3}, {"width": 12, "heads": 5}, "width 12 does not divide into 5 heads"),
    (capi_pooling, {"width": 64}, {"width": 96}, "width 96 is no multiple"),
    (adversarial.Strategy, {"boost": 0.0, "weight": 0.0}, {"boost": -TINY}, "boost is -"),
    (adversarial.Strategy, {}, {"weight": -TINY}, "weight -"),
    (attention.Strategy, {"show": 0.0, "soft": 0.0}, {"show": -TINY}, "show is -"),
    (attention.Strategy, {"show": 1.0, "probability": 1.0}, {"show": 1 + TINY}, "show is 1"),
    (attention.Strategy, {"probability": 0.0}, {"probability": -TINY}, "probability is -"),
    (attention.Strategy, {}, {"probability": 1 + TINY}, "probability is 1"),
    (attention.Strategy, {}, {"soft": -TINY}, "soft is -"),
    (colour.Strategy, {"width": TINY}, {"width": 0.0}, "width is 0"),
    (colour.Strategy, {"width": 1.0, "wide": 1 + TINY}, {"width": 1.0, "wide": 1.0}, "wide is 1"),
    (colour.Strategy, {}, {"wide": 0.0}, "wide is 0"),
    (partial(colour.Strategy, order="red"), {"width": 9.0}, {"wide": 9.0}, "one filter only"),
    (partial(colour.Strategy, order="blue"), {}, {"wide": 9.0}, "one filter only"),
    (grid.Strategy, {"cell": 1, "ratio": TINY}, {"cell": 0}, "cell is 0"),
    (grid.Strategy, {}, {"ratio": 0.0}, "ratio 0"),
    (grid.Strategy, {"ratio": 1 - TINY}, {"ratio": 1.0}, "ratio 1"),
    (hard.Strategy, {"alpha_start": 0.0, "alpha_end": 1.0}, {"alpha_start": -TINY}, "alpha_start is -"),
    (hard.Strategy, {"alpha_start": 1.0, "alpha_end": 0.0}, {"alpha_start": 1 + TINY}, "alpha_start is 1"),
    (hard.Strategy, {}, {"alpha_end": -TINY}, "alpha_end is -"),
    (hard.Strategy, {}, {"alpha_end": 1 + TINY}, "alpha_end is 1"),
    (harder.Strategy, {"draws": 1}, {"draws": 0}, "draws is 0"),
    (multiblock.Strategy, {"blocks": 1}, {"blocks": 0}, "blocks is 0"),
    (rolled.Strategy, {"aspect": TINY}, {"aspect": 0.0}, "aspect is 0"),
    (rolled.Strategy, {"aspect": 1.0}, {"aspect": 1 + TINY}, "aspect is 1"),
    (salience.Strategy, {"noise": 0.0}, {"noise": -TINY}, "noise is -"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "good", "bad", "said"), BOUNDS)
def test_configurations_end_where_they_say(
    make: Make, good: dict[str, Any], bad: dict[str, Any], said: str
) -> None:
    make(**good)
    with pytest.raises((ValueError, UserError), match=said):
        make(**bad)


@pytest.mark.parametrize(
    ("mixup", "cutmix", "mixes"),
    [(0.0, 0.0, False), (0.8, 0.0, True), (0.0, 1.0, True), (0.8, 1.0, True)],
)
def test_either_of_mixup_and_cutmix_mixes(*, mixup: float, cutmix: float, mixes: bool) -> None:
    assert Augmentation(mixup=mixup, cutmix=cutmix).mixes is mixes


@pytest.mark.parametrize(
    "field",
    ["image_size", "batch", "pyramid_channels", "box_width", "proposals", "candidates", "regions", "window"],
)  # fmt: skip
def test_detections_counts_begin_at_one(field: str) -> None:
    pytest.importorskip("detectron2")
    from transfer.detection.protocol import Config

    one: dict[str, Any] = {**HERE, field: 1}
    none: dict[str, Any] = {**HERE, field: 0}
    assert getattr(Config(**one), field) == 1
    with pytest.raises(ValueError, match=f"{field} is 0, expected at least 1"):
        Config(**none)


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ({"resize": (1.0, 1.0)}, {"resize": (1.0, 0.9)}, "resize is"),
        ({"resize": (TINY, 1.0)}, {"resize": (0.0, 1.0)}, "resize is"),
        ({"warmup": 0.0}, {"warmup": -TINY}, "should rise"),
        ({"drops": (0.8, 1.0)}, {"drops": (0.8, 1 + TINY)}, "should rise"),
        ({"warmup": 0.1, "drops": (0.1 + TINY, 1.0)}, {"warmup": 0.1, "drops": (0.1, 1.0)}, "should"),
        ({}, {"drops": (0.9, 0.9)}, "should rise"),
        ({"batch": 8, "images": 8}, {"batch": 8, "images": 7}, "images is 7"),
        ({"trunk": "frozen", "relative_positions": False}, {"trunk": "frozen"}, "relative_positions"),
    ],
)  # fmt: skip
def test_detections_schedule_ends_where_it_says(
    good: dict[str, Any], bad: dict[str, Any], said: str
) -> None:
    pytest.importorskip("detectron2")
    from transfer.detection.protocol import Config

    Config(**HERE, **good)
    with pytest.raises(ValueError, match=said):
        Config(**HERE, **bad)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"longest": 800}, {"longest": 799}),
        ({"short": (1333,), "before": (1333,), "crop": (1333, 1333)}, {"short": (1334,)}),
        ({"short": (1,), "before": (1,), "crop": (1, 1)}, {"short": (0, 5)}),
        ({}, {"before": ()}),
        ({}, {"crop": (5, 4)}),
        ({"share": 0.0}, {"share": -TINY}),
        ({"share": 1.0}, {"share": 1 + TINY}),
    ],
)
def test_edges_of_pictures_end_where_they_say(good: dict[str, Any], bad: dict[str, Any]) -> None:
    pytest.importorskip("detectron2")
    from transfer.detection.detector import Edges

    Edges(**good)
    with pytest.raises(ValueError, match="expected"):
        Edges(**bad)


def test_a_share_of_one_is_everything_and_more_is_refused() -> None:
    labels = np.arange(12) % 3
    assert draw_fraction(labels, 1.0, draw=0).tolist() == list(range(12))
    assert len(draw_fraction(labels, 1e-6, draw=0)) == 3, "one of each class at least"
    for wrong in (0.0, 1 + TINY):
        with pytest.raises(UserError, match="is not within 0 and 1"):
            draw_fraction(labels, wrong, draw=0)
    assert first_per_class(labels, 2, offset=2).tolist() == list(range(6, 12))
    with pytest.raises(UserError):
        first_per_class(labels, 2, offset=3)
    assert len(draw_per_class(labels, 4, draw=0)) == 12
    with pytest.raises(UserError, match="class 0 has 4 images, fewer than 5"):
        draw_per_class(labels, 5, draw=0)


@pytest.mark.parametrize(("good", "bad"), [((2, 4), (3, 4)), ((4, 2), (4, 3))])
def test_even_masks_need_cells_of_two(good: tuple[int, int], bad: tuple[int, int]) -> None:
    def mask(sides: tuple[int, int]) -> torch.Tensor:
        inp = MaskInput(batch=2, grid=sides, device=torch.device("cpu"))
        return even.Strategy()(inp, torch.Generator().manual_seed(0))

    assert mask(good).shape == (2, 8)
    with pytest.raises(UserError, match=f"a grid of {bad[0]} x {bad[1]} patches does not divide"):
        mask(bad)


@pytest.mark.parametrize(("good", "bad"), [((4, 9), (3, 9)), ((9, 4), (9, 3))])
def test_the_critic_needs_a_grid_of_four(good: tuple[int, int], bad: tuple[int, int]) -> None:
    assert Discriminator(good)(torch.zeros(2, 36)).shape == (2,)
    with pytest.raises(UserError, match="at least 4 x 4"):
        Discriminator(bad)


@pytest.mark.parametrize(
    ("measure", "enough", "few"),
    [
        (two_nn, (3, 4), (2, 4)),
        (mean_cosine, (2, 4), (1, 4)),
        (lidar, (2, 2, 4), (1, 2, 4)),
        (lidar, (2, 2, 4), (2, 1, 4)),
        (alpha_req, (40, 22), (40, 21)),
        (alpha_req, (22, 40), (20, 40)),
    ],
)
def test_spectra_need_as_many_points_as_they_say(
    measure: Callable[[torch.Tensor], object], enough: tuple[int, ...], few: tuple[int, ...]
) -> None:
    rng = torch.Generator().manual_seed(0)
    measure(torch.randn(enough, generator=rng))
    with pytest.raises(UserError):
        measure(torch.randn(few, generator=rng))
