"""Pixels are normalised in one place, and come back."""

import torch

from mimbench.vit.normalise import Normalisation, on_bytes
from mimbench.vit.weights import IMAGENET_MEAN, IMAGENET_STD


def test_normalised_images_have_the_stated_statistics_and_come_back() -> None:
    normalise = Normalisation(IMAGENET_MEAN, IMAGENET_STD)
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    found = normalise.of_bytes(images)
    for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        wanted = (images[:, channel].double() / 255 - mean) / std
        torch.testing.assert_close(found[:, channel].double(), wanted, atol=1e-6, rtol=1e-6)
    assert torch.equal(found, normalise(images.float() / 255))
    back = normalise.inverse(found) * 255
    torch.testing.assert_close(back, images.float(), atol=1e-3, rtol=0)
    assert not normalise.state_dict()


def test_the_scale_of_bytes_is_the_one_that_the_frameworks_publish() -> None:
    assert on_bytes(IMAGENET_MEAN) == [123.675, 116.28, 103.53]
    assert on_bytes(IMAGENET_STD) == [58.395, 57.12, 57.375]
