"""The mask laboratory's annotations: maps of segments as ADE20K's, beside COCO's objects."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimbench.checkpoints.files import write_weights
from mimbench.system.errors import UserError
from mimbench.vit.weights import VitWeights
from pretrain.masks.__main__ import main
from pretrain.viewing.annotations import find_annotations
from pretrain.viewing.mask_statistics import describe, find_images


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Pictures with maps of segments in ADE20K's layout."""
    root = tmp_path / "ade"
    dice = np.random.default_rng(0)
    for i, split in enumerate(("training", "training", "validation", "validation")):
        image = root / "images" / split / f"ADE_{i}.jpg"
        labels = root / "annotations" / split / f"ADE_{i}.png"
        for path in (image, labels):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(image)
        # a wall, one small thing in it, a rim that is not labelled, and some to be ignored
        field = np.full((48, 64), 1, dtype=np.uint8)
        field[24:36, 8:20] = 141
        field[36:] = 0
        field[:2] = 255
        Image.fromarray(field).save(labels)
    return root


def test_maps_of_segments_weigh_small_things_like_walls(scenes: Path) -> None:
    paths = find_images(scenes, 10)
    assert [path.suffix for path in paths] == [".jpg"] * 4
    found = find_annotations(scenes, paths, None).cover(paths, (48, 48), 12)
    assert found is not None
    assert found.kind == "segments"
    weights = found.weights.unflatten(1, (4, 4))
    # the middle 48 columns begin at column 8: the thing fills the patch in row 2, column 0
    assert weights[0, 2, 0] == pytest.approx(1.0)
    assert weights[0, 3].abs().max() == 0
    torch.testing.assert_close(weights.sum((1, 2)), torch.full((4,), 2.0))
    # the wall has 11 patches, of which the upper four lack two rows of twelve
    assert weights[0, 1, 2] == pytest.approx(12 / (7 * 12 + 4 * 10))
    # a mask of that patch alone: half of the segments' weight, sixteen times what chance hides
    draws = torch.zeros(1, 4, 16, dtype=torch.bool)
    draws[..., 8] = True
    row = describe("x", draws, (4, 4), objects=found.weights, loss=None)
    assert row.objects == pytest.approx(0.5 * 16)


def test_maps_are_found_from_a_split_and_where_they_are_said_to_lie(scenes: Path) -> None:
    split = scenes / "images" / "validation"
    paths = find_images(split, 10)
    usual = find_annotations(split, paths, None)
    assert usual.maps is not None
    assert [at.name for at in usual.maps.values()] == ["ADE_2.png", "ADE_3.png"]
    (scenes / "annotations").rename(scenes / "elsewhere")
    assert find_annotations(split, paths, None).cover(paths, (48, 48), 12) is None
    given = find_annotations(split, paths, scenes / "elsewhere" / "validation")
    assert given.maps is not None
    assert len(given.maps) == 2
    with pytest.raises(UserError, match=r"holds no map for any image.*expected.*ADE_2.png"):
        find_annotations(split, paths, scenes / "elsewhere")
    with pytest.raises(UserError, match="does not exist"):
        find_annotations(split, paths, scenes / "annotations")


def test_maps_that_cannot_be_right_are_refused(scenes: Path) -> None:
    paths = find_images(scenes, 10)
    at = scenes / "annotations" / "training" / "ADE_0.png"
    for image, message in (
        (Image.new("L", (48, 64)), r"\(48, 64\) pixels, its image .* \(64, 48\)"),
        (Image.new("RGB", (64, 48)), "has mode RGB; a map of segments has one 8-bit channel"),
    ):
        image.save(at)
        with pytest.raises(UserError, match=message):
            find_annotations(scenes, paths, None).cover(paths, (48, 48), 12)
    at.write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot read the map of segments"):
        find_annotations(scenes, paths, None).cover(paths, (48, 48), 12)


def test_stats_of_segments(
    tiny_weights: VitWeights, tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "encoder.safetensors"
    write_weights(path, tiny_weights)
    assert main(["stats", "--data", str(scenes), "--checkpoint", str(path), "--ratio", "0.5"]) == 0
    lines = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert "segments hidden" in lines[0]
    values = {line.split("|")[1].strip(): line.split("|")[5].strip() for line in lines[2:]}
    assert 0.5 < float(values["random"]) < 1.5
