"""Pictures and labels of every shape through the training transforms: they stay in step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmseg")

from mimbench.system.errors import UserError
from mimbench.system.runtime import Ranks
from mimbench.training.optim import plan_batch
from tests.support.odd_images import SHAPES
from transfer.segmentation.data import DataSource, open_source
from transfer.segmentation.order import SeededDataset, StreamItem
from transfer.segmentation.pipelines import train_pipeline
from transfer.segmentation.prepare import Setup
from transfer.segmentation.protocol import SegmentationConfig
from transfer.segmentation.train import ran

DRAWN = 2000
COLOURS = np.array([[20, 20, 20], [230, 30, 30], [30, 230, 30], [30, 30, 230]], dtype=np.uint8)
WIDE = [shape for shape in SHAPES if min(shape) > 1]
"""mmseg takes a label map one pixel wide for a row of numbers; the error names its file."""
MODES = ("RGB", "L", "LA", "RGBA", "P", "1")
CROP = (48, 48)


def write_pairs(root: Path, modes: tuple[str, ...], shapes: list[tuple[int, int]]) -> DataSource:
    """Pictures whose colour says their label: four unequal quarters."""
    for split in ("train", "val"):
        for folder in ("img", "lab"):
            (root / split / folder).mkdir(parents=True)
        for mode in modes:
            for width, height in shapes:
                labels = np.zeros((height, width), dtype=np.uint8)
                labels[: height // 3, width // 4 :] = 1
                labels[height // 3 :, : width // 4] = 2
                labels[height // 3 :, width // 4 :] = 3
                name = f"{mode}_{width}x{height}.png"
                Image.fromarray(COLOURS[labels]).convert(mode).save(root / split / "img" / name)
                Image.fromarray(labels).save(root / split / "lab" / name)
    (root / "names.txt").write_text("dark\nred\ngreen\nblue\n")
    return open_source(config_of(root))


def config_of(root: Path, **own: Any) -> SegmentationConfig:
    return SegmentationConfig(
        data=root, train_images="train/img", train_labels="train/lab", val_images="val/img",
        val_labels="val/lab", classes="names.txt", reduce_zero_label=False, crop=CROP,
        scale=(192, 48), **own,
    )  # fmt: skip


def dataset_of(source: DataSource, config: SegmentationConfig) -> SeededDataset:
    found = SeededDataset(source.dataset("train", train_pipeline(config)), seed=3)
    found.full_init()
    return found


def test_the_papers_transforms_on_2000_odd_pictures(tmp_path: Path) -> None:
    """Every mode that a PNG holds, down to two by three pixels; colours distorted as published."""
    source = write_pairs(tmp_path, MODES, WIDE)
    config = config_of(tmp_path)
    assert config.distortion
    assert (config.resize, config.max_class_share) == ((0.5, 2.0), 0.75)
    pictures = dataset_of(source, config)
    assert len(pictures) == len(MODES) * len(WIDE)
    for position in range(DRAWN):
        item = pictures[StreamItem(position % len(pictures), position)]
        image, labels = item["inputs"], item["data_samples"].gt_sem_seg.data
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3
        assert image.shape[1:] == labels.shape[1:]
        assert max(image.shape[1:]) <= CROP[0]
        assert set(labels.unique().tolist()) <= {0, 1, 2, 3, 255}


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if min(shape) == 1])
def test_a_picture_one_pixel_wide_is_refused_by_name(
    shape: tuple[int, int], tmp_path: Path
) -> None:
    source = write_pairs(tmp_path, ("RGB",), [shape])
    pictures = dataset_of(source, config_of(tmp_path))
    with pytest.raises(UserError, match=f"RGB_{shape[0]}x{shape[1]}.png"):
        [pictures[StreamItem(0, position)] for position in range(20)]


def test_labels_are_cropped_and_flipped_with_their_picture(tmp_path: Path) -> None:
    """Pictures flipped without their labels passed every test."""
    source = write_pairs(tmp_path, ("RGB",), [(160, 120), (90, 200)])
    pictures = dataset_of(source, config_of(tmp_path, distortion=False))
    flipped = 0
    for position in range(60):
        item = pictures[StreamItem(position % 2, position)]
        flipped += bool(item["data_samples"].flip)
        # mmseg reads BGR
        pixels = item["inputs"].flip(0).permute(1, 2, 0).float()
        labels = item["data_samples"].gt_sem_seg.data[0]
        nearest = torch.cdist(pixels.reshape(-1, 3), torch.from_numpy(COLOURS).float()).argmin(1)
        agree = (nearest.view(labels.shape) == labels).float().mean()
        assert agree > 0.93, f"position {position}, flipped: {item['data_samples'].flip}"
    assert 15 < flipped < 45


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("at_most", [1, 2, 4, 8, 16, 64])
def test_a_batch_in_parts_is_always_on_record(world: int, at_most: int) -> None:
    """Batch norm, dropout and drop path see a micro-batch: `--max-batch` must not move in silence."""
    config = replace(config_of(Path()), batch=16)
    plan = plan_batch(config.batch, world=world, at_most=at_most)
    nothing: Any = None
    setup = Setup(
        config=config, plan=plan, device=torch.device("cuda"), ranks=Ranks(world=world),
        model_recipe=nothing, spec=nothing, source=nothing, cfg=nothing,
    )  # fmt: skip
    found = ran(setup)
    assert bool(found) == (plan.micro_steps > 1)
    if found:
        assert found == {"batch_norm_over": 16 // plan.micro_steps}
