"""Targets made from the image, and the gentle crop: equal to the released code's, and learned from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mimbench.sample import generate
from mimbench.system.errors import UserError
from mimbench.vit.weights import IMAGENET_MEAN, IMAGENET_STD
from pretrain.models.image_targets import low_frequencies, low_pass, oriented_gradients
from pretrain.sources.crops import Crops, DataConfig
from pretrain.sources.images import open_source
from tests.support.tiny_pretrain import images, learner, step_info


@pytest.fixture(scope="module")
def stored(golden: Path) -> dict[str, Tensor]:
    with np.load(golden / "image_targets.npz") as file:
        return {key: torch.from_numpy(np.array(file[key])) for key in file.files}


def normalised(image: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (image.float() / 255 - mean) / std


def test_gradient_histograms(stored: dict[str, Tensor]) -> None:
    image = normalised(stored["image_uint8"]).unsqueeze(0)
    found = oriented_gradients(image, 16)[0]
    torch.testing.assert_close(found, stored["target_224"], atol=1e-5, rtol=0)
    half = oriented_gradients(image[:, :, ::2, ::2], 8, window=False)[0]
    torch.testing.assert_close(half, stored["target_112_no_window"], atol=1e-5, rtol=0)


def test_low_frequencies(stored: dict[str, Tensor]) -> None:
    radius = float(stored["low_radius"])
    assert torch.equal(low_pass((56, 56), radius), stored["low_filter"])
    low = low_frequencies(stored["low_image_uint8"].unsqueeze(0).float() / 255)[0]
    torch.testing.assert_close(normalised(255 * low), stored["low_target"], atol=1e-5, rtol=0)
    flat = torch.full((1, 3, 32, 32), 0.4)
    torch.testing.assert_close(low_frequencies(flat), flat)


@pytest.mark.parametrize("target", ["hog", "low", "low_normalised"])
def test_targets_train_and_are_the_patches_own(target: str) -> None:
    run = learner(f"objective.target={target}", "mask.name=random")
    batch = images()
    figures = run.loss(run.student, batch, step_info())
    figures["loss"].backward()
    assert figures["loss"].isfinite()
    hidden = torch.tensor([[3, 7], [0, 15], [1, 2], [4, 9]])
    width = 27 if target == "hog" else 192
    assert run.student.reconstructor.pred.out_features == width
    patches = run.prepare(batch.data)[1]
    guess = torch.randn(4, 2, width, generator=torch.Generator().manual_seed(1))
    losses = run.patch_losses(guess, patches, batch.data, hidden, None)
    changed = batch.data.clone()
    # the far corner of the third image, 8 pixels a patch: only a low-pass filter carries it over
    changed[2, :, 24:, 24:] = 0
    moved = run.patch_losses(guess, run.prepare(changed)[1], changed, hidden, None)
    torch.testing.assert_close(moved[[0, 1, 3]], losses[[0, 1, 3]])
    assert torch.allclose(moved[2], losses[2]) == (target == "hog")


def test_histograms_need_cells() -> None:
    with pytest.raises(UserError, match="cells of 8 pixels, into which patches of 4"):
        learner("objective.target=hog", "encoder.patch=4")


class Two:
    """A wide and a tall image whose pixels say where they are."""

    def __len__(self) -> int:
        return 2

    def load(self, index: int) -> Tensor:
        wide = torch.arange(64, dtype=torch.uint8).expand(3, 32, -1)
        return wide if index == 0 else wide.transpose(1, 2)

    def name(self, index: int) -> str:
        return str(index)


def test_a_gentle_crop_moves_and_does_not_zoom() -> None:
    crops = Crops(Two(), DataConfig(image_size=32, augment="gentle", flip=0.0))
    seen = set()
    for seed in range(60):
        torch.manual_seed(seed)
        wide, tall = crops[0], crops[1]
        assert wide.shape == tall.shape == (3, 32, 32)
        row = wide[0, 0].int()
        # neighbours differ by one pixel, backwards where the edge is mirrored
        assert set(row.diff().tolist()) <= {1, -1}
        assert torch.equal(tall[0, :, 0].int().diff().abs(), torch.ones(31, dtype=torch.int))
        seen.add(int(row[8]))
    assert len(seen) > 15


def test_a_window_is_a_part_of_the_image_at_its_own_scale() -> None:
    crops = Crops(Two(), DataConfig(image_size=16, augment="window", flip=0.0), places=True)
    seen = set()
    for seed in range(60):
        torch.manual_seed(seed)
        item = crops[0]
        row, place = item["image"][0, 0].int(), item["place"]
        assert row.tolist() == list(range(int(row[0]), int(row[0]) + 16))
        # the place says where the window lies
        assert round(float(place[1]) * 64) == int(row[0])
        seen.add(int(row[0]))
    assert min(seen) < 5
    assert max(seen) > 43


def test_an_image_smaller_than_the_window_is_enlarged_to_fill_it() -> None:
    for number in range(2):
        item = Crops(Two(), DataConfig(image_size=96, augment="window"), places=True)[number]
        assert item["image"].shape == (3, 96, 96)
        assert max(item["place"][2:4]) == 1.0


def test_cards_and_scenes_are_one_source(tmp_path: Path) -> None:
    generate(tmp_path / "s", train_per_class=2, val_per_class=1, train_scenes=3, val_scenes=1)
    both = open_source("sample+scenes", tmp_path / "s", "train")
    assert len(both) == 20 + 4 * 3
    assert [both.name(i).endswith("png") for i in (0, 19, 20, 31)] == [True, True, False, False]
    # every scene comes four times, and a place beyond the end is none
    assert both.load(20) == both.load(23) == both.load(29)
    assert both.load(20) != both.load(21)
    with pytest.raises(IndexError):
        both.load(32)
