"""Under mixed precision: what is computed in float32 gives what its rounded inputs give in float32."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mimbench.scores.metrics import rank_classes
from mimbench.scores.neighbours import Neighbours, weighted_votes
from mimbench.scores.shares import mean_share
from mimbench.vit.normalise import Normalisation
from pretrain.masks import MaskInput, attention, hard, salience
from pretrain.masks.salience import outgoing
from pretrain.models.reconstruction import (
    absolute_loss,
    feature_loss,
    pair_signs,
    patch_weights,
    pixel_loss,
    rank_correlation,
    relative_loss,
)
from pretrain.objectives.distill.config import DistillObjectiveConfig
from pretrain.objectives.distill.loss import DistillLoss, Logits

HALF = (torch.bfloat16, torch.float16)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=rng(seed))


LABELS = torch.randint(0, 5, (6, 9), generator=rng(3))
DISTILL = DistillLoss(DistillObjectiveConfig(), 12)
MASK = torch.rand(4, 9, generator=rng(4)) < 0.5


def votes(similarity: Tensor) -> Tensor:
    near = Neighbours(similarity=similarity, labels=LABELS)
    return weighted_votes(near, ks=[9], temperature=0.07, classes=40)[9]


OF_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "ranked classes": rank_classes,
    "k-NN votes": votes,
    "absolute loss": lambda x: absolute_loss(x, values(6, 9, seed=1).abs()),
    "absolute loss's target": lambda x: absolute_loss(values(6, 9, seed=1), x),
    "relative loss": lambda x: relative_loss(x, pair_signs(values(6, 9, seed=1))),
    "rank correlation": lambda x: rank_correlation(x, pair_signs(values(6, 9, seed=1))),
    "patch weights": lambda x: patch_weights(x, 0.3),
    "salience": lambda x: outgoing(x.unsqueeze(0)),
}
OF_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pixel loss": pixel_loss,
    "feature loss": feature_loss,
    "class loss": lambda x, y: DISTILL.class_loss(
        Logits(x[:, 0], None), Logits(y[:, 0], None), 0.05
    ),
    "patch loss": lambda x, y: DISTILL.patch_loss(x, y, MASK, 0.05),
}


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize("name", OF_ONE)
def test_one_half_precision_input_is_taken_to_float32(name: str, half: torch.dtype) -> None:
    x = values(6, 9).to(half)
    found, wanted = OF_ONE[name](x), OF_ONE[name](x.float())
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize("which", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("name", OF_TWO)
def test_each_half_precision_input_is_taken_to_float32(
    name: str, which: tuple[bool, bool], half: torch.dtype
) -> None:
    pair = values(4, 9, 12), values(4, 9, 12, seed=1)
    given = [x.to(half) if own else x for x, own in zip(pair, which, strict=True)]
    found, wanted = OF_TWO[name](*given), OF_TWO[name](*(x.float() for x in given))
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("half", HALF)
def test_the_centres_follow_float32_means(half: torch.dtype) -> None:
    """A sum of many half precision logits would lose the small ones."""
    one, other = (DistillLoss(DistillObjectiveConfig(), 12) for _ in range(2))
    cls, patches = (10 + values(400, 12)).to(half), (10 + values(40, 50, 12)).to(half)
    one.note(Logits(cls, patches))
    other.note(Logits(cls.float(), patches.float()))
    for loss in (one, other):
        loss.follow()
    assert torch.equal(one.centre, other.centre)
    assert torch.equal(one.patch_centre, other.patch_centre)


@pytest.mark.parametrize(
    ("strategy", "field"),
    [
        (hard.Strategy(alpha_end=1.0), "difficulty"),
        (attention.Strategy(), "attention"),
        (attention.Strategy(soft=0.5), "attention"),
        (salience.Strategy(), "salience"),
    ],
)
def test_masks_follow_half_precision_scores_as_float32_ones(strategy: Any, field: str) -> None:
    scores = torch.rand(3, 64, generator=rng()).to(torch.float16)

    def mask(given: Tensor) -> Tensor:
        fields: dict[str, Any] = {field: given}
        inp = MaskInput(batch=3, grid=(8, 8), device=torch.device("cpu"), **fields)
        return strategy(inp, rng(1))

    assert torch.equal(mask(scores), mask(scores.float()))


def test_bytes_are_shares_of_255_before_they_are_normalised() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8, generator=rng())
    mean, std = (0.5, 0.25, 0.125), (0.5, 0.25, 2.0)
    found = Normalisation(mean, std).of_bytes(images)
    m, s = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    torch.testing.assert_close(found, (images.float() / 255 - m) / s)


def test_a_mean_of_shares_is_taken_in_double_precision() -> None:
    shares = np.array([1, 0, 1, 1], dtype=np.int8)
    found = mean_share("j", ("a", "b", "c", "d"), shares)
    assert found.per_image is not None
    assert found.per_image.dtype == np.float64
    assert found.whole() == 75
