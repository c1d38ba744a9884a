"""The sample cards are learnable, and a broken pipeline shows up as chance (quick version).

The full measurement, with scenes and baselines: `python -m bench.sample_learnability`.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.sample_learnability import segmentation_scores, to_tensor
from bench.tiny_vit import (
    IGNORED,
    DenseHead,
    accuracy,
    fit,
    kill_patch_embedding,
    shuffled,
    tiny_vit,
)
from mimbench.sample.cards import card_digit, make_card

STEPS = 100
CLEARLY_LEARNED = 0.3
# Chance is 0.10; over 400 pictures its standard deviation is 0.015, and that of a constant answer 0.
CHANCE_AT_MOST = 0.17


def cards(split: str, count: int) -> tuple[Tensor, Tensor]:
    pictures = [make_card(split, index) for index in range(count)]
    return to_tensor(pictures), torch.tensor([card_digit(index) for index in range(count)])


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (*cards("train", 1500), *cards("val", 400))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def test_a_tiny_vit_learns_the_cards(data: tuple[Tensor, Tensor, Tensor, Tensor]):
    images, labels, unseen, truth = data
    untrained = accuracy(tiny_vit(32, 8, 10).eval(), unseen, truth)
    model = fit(tiny_vit(32, 8, 10), images, labels, steps=STEPS, seed=0)
    assert untrained < CHANCE_AT_MOST
    assert accuracy(model, unseen, truth) > CLEARLY_LEARNED


def test_labels_of_other_pictures_teach_nothing(data: tuple[Tensor, Tensor, Tensor, Tensor]):
    images, labels, unseen, truth = data
    model = fit(tiny_vit(32, 8, 10), images, shuffled(labels, 0), steps=STEPS, seed=0)
    assert accuracy(model, unseen, truth) < CHANCE_AT_MOST


def test_a_dead_patch_embedding_is_exactly_chance(data: tuple[Tensor, Tensor, Tensor, Tensor]):
    images, labels, unseen, truth = data
    model = fit(kill_patch_embedding(tiny_vit(32, 8, 10)), images, labels, steps=5, seed=0)
    assert accuracy(model, unseen, truth) == pytest.approx(0.1)


def test_a_dense_head_keeps_each_pixel_in_its_place():
    images = torch.zeros(2, 3, 32, 32)
    model = DenseHead(32, 8, classes=3, cell=4).eval()
    before = model(images)
    images[0, :, 8:16, 24:32] = 1
    model.vit.blocks = torch.nn.Identity()
    moved = (model(images) - model(torch.zeros_like(images))).abs().amax(1) > 0
    assert before.shape == (2, 3, 8, 8)
    expected = torch.zeros(2, 8, 8, dtype=torch.bool)
    expected[0, 2:4, 6:8] = True
    assert (moved == expected).all()


def test_segmentation_scores_of_right_and_wrong_answers():
    truth = torch.from_numpy(np.random.default_rng(0).permutation(13 * 8).reshape(8, 13) % 13)
    assert set(segmentation_scores(truth, truth).values()) == {1.0}
    truth[0] = IGNORED
    wrong = segmentation_scores(torch.where(truth < 12, truth + 1, 0), truth)
    assert wrong["pixel accuracy"] == wrong["mIoU, 10 digits"] == 0
    assert 0 < wrong["IoU, any digit"] < 1
