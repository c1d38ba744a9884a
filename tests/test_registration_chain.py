"""From the picture's file to the feature map, against the label map's grid: a mark answers under its own label.

The same draws (resize, crop, flip, jitter) go over a picture with and without a mark. Where the feature
map changes most, the label map that came the same way must show the mark's class.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mimbench.data.preprocess import Squash
from mimbench.networks.kinds import build_network, random_twin
from mimbench.networks.registration import cooled
from mimbench.vit.weights import VitSpec
from transfer.dense.banks import SquashedLabels
from transfer.dense.views import BankView

SPEC = VitSpec(embed_dim=48, depth=2, num_heads=3, mlp_dim=96, patch_size=16, grid=(10, 14))
HEIGHT, WIDTH, SIDE = 160, 224, 40
PLACES = [
    (8, 16), (100, 24), (56, 160), (112, 176), (20, 120), (60, 80), (30, 60), (90, 130), (70, 40), (50, 110),
]  # fmt: skip
"""Upper left corners of marks: rows and columns are no function of each other."""

Chain = Callable[[Path, Path, int], tuple[Tensor, np.ndarray]]
"""From the files of a picture and its label map and a seed to (3, h, w) in 0 to 255 and labels."""


def files(folder: Path, place: tuple[int, int] | None) -> tuple[Path, Path]:
    """Write a picture of smooth noise, marked or not, and the label map of the mark."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(80, 170, (20, 28, 3), dtype=np.uint8))
    picture = np.array(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    where = place or (0, 0)
    square = slice(where[0], where[0] + SIDE), slice(where[1], where[1] + SIDE)
    if place:
        cells = rng.integers(0, 2, (SIDE // 4, SIDE // 4, 3), dtype=np.uint8) * 255
        picture[square] = cells.repeat(4, 0).repeat(4, 1)
        labels[square] = 1
    name = "clean" if place is None else "marked"
    paths = folder / f"{name}.png", folder / f"{name}-labels.png"
    Image.fromarray(picture).save(paths[0])
    Image.fromarray(labels).save(paths[1])
    return paths


@pytest.fixture(scope="module")
def network() -> Any:
    return cooled(build_network(random_twin(SPEC, 0)))  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def share_on_label(chain: Chain, network: Any, folder: Path) -> float:
    """Return how many of the marks that are in view answer where the label map shows them."""
    hits = seen = 0
    for seed, place in enumerate(PLACES):
        clean, _ = chain(*files(folder, None), seed)
        marked, labels = chain(*files(folder, place), seed)
        if (labels == 1).sum() < 0.02 * labels.size:
            continue  # cropped away
        pad = (0, -clean.shape[2] % 16, 0, -clean.shape[1] % 16)
        maps = [network.maps(F.pad(x[None] / 255, pad))[0] for x in (clean, marked)]
        energy = (maps[1] - maps[0]).square().sum(dim=1, keepdim=True)
        cells = (-(-clean.shape[1] // 16), -(-clean.shape[2] // 16))
        scale = labels.shape[0] / clean.shape[1], labels.shape[1] / clean.shape[2]
        row, column = np.unravel_index(int(energy[0, 0].argmax()), cells)
        rows = slice(int(row * 16 * scale[0]), int((row + 1) * 16 * scale[0]))
        columns = slice(int(column * 16 * scale[1]), int((column + 1) * 16 * scale[1]))
        seen += 1
        hits += int((labels[rows, columns] == 1).mean() > 0.25)
    assert seen >= 3
    return hits / seen


def seeded(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def squashed(picture: Path, labels: Path, seed: int) -> tuple[Tensor, np.ndarray]:
    squash = Squash(size=160)
    found = torch.as_tensor(np.asarray(squash(Image.open(picture)))).float()
    found = found if found.shape[0] == 3 else found.permute(2, 0, 1)
    return found, SquashedLabels(squash=squash).labels(Image.open(labels))


def bank_view(picture: Path, labels: Path, seed: int) -> tuple[Tensor, np.ndarray]:
    view = BankView(size=160, epoch=0, seed=seed)
    return view(Image.open(picture)).float(), view.labels(Image.open(labels))


def segmenter(kind: str) -> Chain:
    from mmcv.transforms import Compose

    from transfer.segmentation import framework, pipelines
    from transfer.segmentation.protocol import SegmentationConfig

    assert framework.DATASETS
    config = SegmentationConfig(data=Path(), crop=(128, 128), scale=(512, 160))
    steps = {"train": pipelines.train_pipeline, "test": pipelines.test_pipeline}[kind](config)
    run = Compose(steps)

    def chain(picture: Path, labels: Path, seed: int) -> tuple[Tensor, np.ndarray]:
        seeded(seed)
        found: Any = run({
            "img_path": str(picture), "seg_map_path": str(labels), "reduce_zero_label": False,
            "label_map": None, "seg_fields": [],
        })  # fmt: skip
        return found["inputs"].float(), found["data_samples"].gt_sem_seg.data[0].numpy()

    return chain


def detector(part: str) -> Chain:
    from detectron2.structures import BoxMode

    from transfer.detection import loading, recipe
    from transfer.detection.detector import DetectorConfig

    config = DetectorConfig(data=Path(), image_size=160, resize=(0.5, 2.0), flip=0.5)
    built: Any = loading.build_data_config(config, {"train": "x", "val": "y"}, bitmask=True)
    mapper = recipe.instantiate(built[part].mapper)

    def chain(picture: Path, labels: Path, seed: int) -> tuple[Tensor, np.ndarray]:
        seeded(seed)
        whole = np.asarray(Image.open(labels))
        rows, columns = np.nonzero(whole)
        top, left = (int(rows.min()), int(columns.min())) if len(rows) else (0, 0)
        box = [left, top, left + SIDE, top + SIDE]
        outline = [left, top, left + SIDE, top, left + SIDE, top + SIDE, left, top + SIDE]
        found: Any = mapper({
            "file_name": str(picture), "height": HEIGHT, "width": WIDTH, "image_id": 0,
            "annotations": [{"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0,
                             "segmentation": [list(map(float, outline))], "iscrowd": 0}],
        })  # fmt: skip
        if part == "val":  # scored at the picture's own size
            return found["image"].float(), whole
        shown = np.zeros(found["image"].shape[1:], dtype=np.uint8)
        for mask in found["instances"].gt_masks.tensor.numpy():
            shown |= mask.astype(np.uint8)
        return found["image"].float(), shown

    return chain


CHAINS: dict[str, Callable[[], Chain]] = {
    "frozen maps, validation": lambda: squashed,
    "frozen maps, bank views": lambda: bank_view,
    "segmentation, training": lambda: segmenter("train"),
    "segmentation, test": lambda: segmenter("test"),
    "detection, training": lambda: detector("train"),
    "detection, test": lambda: detector("val"),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_mark_answers_under_its_own_label(name: str, network: Any, tmp_path: Path) -> None:
    if name.startswith("segmentation"):
        pytest.importorskip("mmseg")
    if name.startswith("detection"):
        pytest.importorskip("detectron2")
    assert share_on_label(CHAINS[name](), network, tmp_path) == 1.0


def cropped(picture: Path, labels: Path, seed: int) -> tuple[Tensor, np.ndarray]:
    """The double crop: the loader cuts the picture's middle out, the labels stay whole."""
    found, shown = squashed(picture, labels, seed)
    inner = found[None, :, 30:-30, 30:-30]
    return F.interpolate(inner, size=(160, 160), mode="bilinear")[0], shown


def flipped(picture: Path, labels: Path, seed: int) -> tuple[Tensor, np.ndarray]:
    found, shown = squashed(picture, labels, seed)
    return found.flip(2), shown


def transposed(picture: Path, labels: Path, seed: int) -> tuple[Tensor, np.ndarray]:
    found, shown = squashed(picture, labels, seed)
    return found, shown.T


@pytest.mark.parametrize("fault", [cropped, flipped, transposed])
def test_planted_faults_of_a_chain_are_found(fault: Chain, network: Any, tmp_path: Path) -> None:
    assert share_on_label(fault, network, tmp_path) <= 0.6
