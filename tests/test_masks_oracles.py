"""Masks that follow annotations: carried with the image through crops and flips, and the laws they obey."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from mimbench.system.errors import UserError
from mimbench.training.batches import Batch
from pretrain import masks
from pretrain.config import read_config
from pretrain.masks.boxes import covered
from pretrain.masks.segments import owners
from pretrain.sources.crops import Crops, DataConfig
from pretrain.sources.images import open_source
from pretrain.sources.labels import open_labels
from pretrain.train import build_learner, learner_samples
from tests.support.tiny_pretrain import NETWORK, look, rng, step_info

PIXEL = 8
"""Everything in the marker picture is made of squares of so many pixels."""


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of grey noise with two bright squares, and both kinds of annotations of them."""
    root = tmp_path_factory.mktemp("marked")
    for folder in ("images/train/a", "maps"):
        (root / folder).mkdir(parents=True)
    dice, pictures, things = np.random.default_rng(0), [], []
    for i in range(6):
        image = dice.integers(0, 60, (96, 128, 3), dtype=np.uint8)
        numbers = np.zeros((96, 128), dtype=np.uint8)
        for number, (x, y) in enumerate(((8 * i, 16), (80, 8 + 8 * i)), start=1):
            image[y : y + 32, x : x + 24] = 255
            numbers[y : y + 32, x : x + 24] = number
            outline = [x, y, x + 23, y, x + 23, y + 31, x, y + 31]
            things.append(
                {"id": 2 * i + number, "image_id": i, "bbox": [x, y, 24, 32]}
                | ({"segmentation": [outline]} if number == 1 else {})
            )
        pictures.append({"id": i, "file_name": f"{i}.png", "width": 128, "height": 96})
        Image.fromarray(image).save(root / f"images/train/a/{i}.png")
        Image.fromarray(numbers).save(root / f"maps/{i}.png")
    content = {"images": pictures, "annotations": things}
    (root / "coco.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def crops(marked: Path, where: str, *, boxes: bool = True, **config: object) -> Crops:
    fields = {"image_size": 64, "root": marked / "images", "scale": (0.2, 1.0), **config}
    data = DataConfig(**fields)
    source = open_source("", marked / "images", "train")
    labels = open_labels(marked / where, data, boxes=boxes)
    return Crops(source, data, places=True, labels=labels)


def apart(item: dict[str, Tensor]) -> float:
    """Return the share of pixels where labels and the bright squares differ."""
    bright = item["image"].float().mean(0) > 150
    return (bright != (item["labels"] > 0)).float().mean().item()


@pytest.mark.parametrize("where", ["coco.json", "maps"])
@pytest.mark.parametrize("boxes", [True, False])
@pytest.mark.parametrize("augment", ["crop", "gentle", "window", "none"])
def test_annotations_go_with_their_pixels(
    marked: Path, where: str, boxes: bool, augment: str
) -> None:
    torch.manual_seed(0)
    data = crops(marked, where, boxes=boxes, augment=augment)
    items = [data[i % 6] for i in range(24)]
    assert all(isinstance(item, dict) for item in items)
    found = [apart(item) for item in items if isinstance(item, dict)]
    # the rims of enlarged squares alone: bicubic pixels lie between dark and bright there
    assert max(found) < 0.06
    assert {int(item["place"][4]) for item in items} == ({0} if augment == "none" else {0, 1})
    swapped = [dict(item, labels=item["labels"].flip(-1)) for item in items]
    assert np.mean([apart(item) for item in swapped]) > 0.1


def test_places_say_where_a_crop_lies(marked: Path) -> None:
    """A second crop of the same box, cut by hand, has the same pixels."""
    torch.manual_seed(1)
    data = crops(marked, "maps")
    for i in range(6):
        item = data[i]
        top, left, height, width, mirrored = item["place"].tolist()
        rows, columns = (torch.arange(64) + 0.5) / 64, (torch.arange(64) + 0.5) / 64
        columns = 1 - columns if mirrored else columns
        y = ((top + height * rows) * 96).long()
        x = ((left + width * columns) * 128).long()
        whole = np.array(Image.open(marked / f"maps/{i}.png"))
        by_hand = torch.from_numpy(whole)[y][:, x]
        assert ((by_hand > 0) != (item["labels"] > 0)).float().mean() < 0.005


def test_nothing_changes_where_nothing_is_asked(marked: Path) -> None:
    source = open_source("", marked / "images", "train")
    plain = Crops(source, DataConfig(image_size=64))
    torch.manual_seed(3)
    alone = plain[2]
    torch.manual_seed(3)
    beside = crops(marked, "maps")[2]
    assert torch.equal(alone, beside["image"])


def test_numbers_are_the_things(marked: Path) -> None:
    labels = open_labels(marked / "coco.json", DataConfig(), boxes=False)
    numbers = labels.of("somewhere/2.png", torch.zeros(3, 96, 128))
    assert numbers.unique().tolist() == [0, 1, 2]
    assert (numbers == 1).sum() == (numbers == 2).sum() == 24 * 32
    assert not labels.of("unknown.png", torch.zeros(3, 5, 5)).any()
    # a map's box holds all of a class, also what lies between its parts
    maps = open_labels(marked / "maps", DataConfig(), boxes=True)
    assert torch.equal(maps.of("2.png", torch.zeros(3, 96, 128))[0] > 0, numbers[0] > 0)


def test_what_does_not_fit_is_refused(marked: Path, tmp_path: Path) -> None:
    labels = open_labels(marked / "coco.json", DataConfig(), boxes=True)
    with pytest.raises(UserError, match=r"for 128 x 96 pixels, the image has 30 x 20"):
        labels.of("2.png", torch.zeros(3, 20, 30))
    with pytest.raises(UserError, match=r"need data\.annotations"):
        open_labels(None, DataConfig(), boxes=True)
    with pytest.raises(UserError, match="does not exist"):
        open_labels(tmp_path / "no.json", DataConfig(), boxes=True)
    with pytest.raises(UserError, match="holds no map"):
        open_labels(tmp_path, DataConfig(), boxes=True)
    (tmp_path / "bad.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="no COCO annotation file"):
        open_labels(tmp_path / "bad.json", DataConfig(), boxes=True)


def squares(count: int, side: int = 14) -> Tensor:
    """Return labels of one square over a quarter of the places."""
    labels = torch.zeros(count, side * 2, side * 2, dtype=torch.uint8)
    labels[:, :side, :side] = 1
    return labels


@pytest.mark.parametrize("name", ["boxes", "segments"])
def test_without_a_boost_or_annotations_masks_are_random(name: str) -> None:
    random = masks.build({"name": "random"})(look(5), rng(3))
    flat = masks.build({"name": name, "boost": 0.0})
    assert torch.equal(flat(look(5, labels=squares(5)), rng(3)), random)
    usual = masks.build({"name": name})
    assert torch.equal(usual(look(5), rng(3)), random)
    assert torch.equal(usual(look(5, labels=torch.zeros_like(squares(5))), rng(3)), random)


@pytest.mark.parametrize(("ratio", "boost"), [(0.5, 0.5), (0.75, 0.2), (0.3, 0.1)])
def test_a_box_is_hidden_as_often_as_the_law_says(ratio: float, boost: float) -> None:
    """Visible below t, where (1 - a) t + a max(0, t - boost) is the visible share, a = 1/4."""
    mask = masks.build({"name": "boxes", "ratio": ratio, "boost": boost})(
        look(800, labels=squares(800)), rng()
    ).view(-1, 14, 14)
    t = 1 - ratio + 0.25 * boost
    if t < boost:
        t = (1 - ratio) / 0.75
    assert mask[:, :7, :7].float().mean().item() == pytest.approx(1 - max(0, t - boost), abs=0.01)


def test_half_covered_patches_rise_by_half() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    labels[0, 0, :3] = 7
    assert covered(labels, (2, 2))[0].tolist() == [0.5, 0.25, 0, 0]


def things(count: int) -> Tensor:
    """Return labels of three segments and unlabelled ground on 14 x 14 patches of 2 pixels."""
    labels = torch.zeros(count, 28, 28, dtype=torch.uint8)
    labels[:, :12, :12], labels[:, 14:, :8], labels[:, 10:26, 16:26] = 3, 9, 200
    return labels


def test_whole_segments_go_one_after_the_other() -> None:
    inp = look(300, labels=things(300))
    owner = owners(things(1), (14, 14))[0]
    sizes = {n: int((owner == n).sum()) for n in (3, 9, 200)}
    assert sizes == {3: 36, 9: 28, 200: 40}
    mask = masks.build({"name": "segments", "order": "whole", "ratio": 0.3})(inp, rng())
    shares = torch.stack([mask[:, owner == n].float().mean(1) for n in (0, 3, 9, 200)], dim=1)
    # 59 of 104: at most one is hidden in part, and no ground before all of them
    assert (shares[:, 0] == 0).all()
    assert (((shares > 0) & (shares < 1)).sum(1) <= 1).all()
    first = (shares[:, 1:] > 0).float().mean(0)
    assert (first > 0.4).all()
    more = masks.build({"name": "segments", "order": "whole", "ratio": 0.8})(inp, rng())
    assert more[:, owner > 0].all()


def test_the_same_share_of_every_segment() -> None:
    inp = look(300, labels=things(300))
    owner = owners(things(1), (14, 14))[0]
    mask = masks.build({"name": "segments", "order": "within"})(inp, rng())
    for number in (0, 3, 9, 200):
        hidden = mask[:, owner == number].float().sum(1)
        size = int((owner == number).sum())
        assert ((hidden - 0.75 * size).abs() <= 1.01).all(), number
    assert len({tuple(row.tolist()) for row in mask}) == 300


def test_training_on_the_samples_scenes(scenes: Callable[[int, int], Path], tmp_path: Path) -> None:
    """The scenes bring their annotations; things are hidden more often than the ground."""
    config = read_config(
        "mae_vit_base_16",
        [
            *NETWORK,
            "encoder.depth=1",
            "encoder.patch=4",
            "data.name=scenes",
            f"data.root={scenes(8, 4)}",
            "objective.predict_loss=none",
            "training.precision=fp32",
            "training.batch=4",
            "mask.name=boxes",
            "mask.ratio=0.5",
        ],
    )
    assert config.labels == "boxes"
    source = open_source(config.data.name, config.data.root, config.data.split)
    samples = learner_samples(config, source)
    data = default_collate([samples[i] for i in range(4)])
    assert (data["labels"] > 0).any()
    run = build_learner(config, torch.device("cpu"), tmp_path)
    batch = Batch(torch.arange(4), data, ())
    inside = covered(data["labels"], (8, 8)) > 0.9
    seen: list[Tensor] = []
    run.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    hidden = torch.zeros(4, 64)
    for epoch in range(20):
        run.loss(run.student, batch, step_info(epoch))
        hidden.scatter_add_(1, seen[-1], torch.ones(4, 32))
    assert hidden[inside].mean() / 20 > 0.7
    assert hidden[~inside].mean() / 20 < 0.5


def test_where_annotations_lie_moves_no_digest() -> None:
    one, other = (
        read_config("mae_vit_base_16", ["mask.name=boxes", f"data.annotations={at}"]).digest()
        for at in ("/a.json", "/b.json")
    )
    assert one == other
    assert one != read_config("mae_vit_base_16", ["mask.name=boxes"]).digest()
