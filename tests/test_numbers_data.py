"""What reaches a probe: tables, crops, subsets and statistics on cases worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mimbench.data.label_maps import class_names
from mimbench.data.lists import ImageList
from mimbench.data.subsets import draw_fraction, draw_per_class, hold_out
from mimbench.features.protocol import by_content
from mimbench.scores.matches import Detections
from mimbench.system.errors import UserError
from mimbench.system.generators import seeded
from mimbench.vit.positions import resize_table
from transfer.classification.heads import MOMENTUM, StepNorm
from transfer.classification.lowshot import Config as LowShot
from transfer.classification.training import Crop
from transfer.dense.banks import held_out


def table() -> torch.Tensor:
    return torch.randn(1, 1 + 5 * 5, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("to", [(3, 3), (2, 4), (7, 9)])
def test_each_family_resizes_its_table_by_its_own_rule(to: tuple[int, int]) -> None:
    """Antialiasing off and DINO's offset 0 passed every test: all were compared at a growing square."""
    given = table()
    image = given[:, 1:].reshape(1, 5, 5, 8).permute(0, 3, 1, 2)
    wanted = {
        "bicubic": F.interpolate(image, size=to, mode="bicubic"),
        "bicubic-antialias": F.interpolate(image, size=to, mode="bicubic", antialias=True),
        "bicubic-offset": F.interpolate(
            image, scale_factor=((to[0] + 0.1) / 5, (to[1] + 0.1) / 5), mode="bicubic"
        ),
    }
    found = {}
    for rule in wanted:
        resized = resize_table(given, grid=(5, 5), to=to, prefix=1, rule=rule)  # pyright: ignore[reportArgumentType]
        assert torch.equal(resized[:, :1], given[:, :1])
        found[rule] = resized[:, 1:].reshape(1, *to, 8).permute(0, 3, 1, 2)
        torch.testing.assert_close(found[rule], wanted[rule])
    assert not torch.allclose(found["bicubic"], found["bicubic-offset"], atol=1e-4)
    if min(to) < 5:
        assert not torch.allclose(found["bicubic"], found["bicubic-antialias"], atol=1e-3)


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_probes_flip_as_often_as_they_say(flip: float) -> None:
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    image = Image.fromarray(np.stack([ramp] * 3, axis=-1))
    transform = Crop(scale=(0.9, 1.0), flip=flip).transform(16)
    falls = 0
    for number in range(100):
        with seeded(number):
            row = transform(image)[0, 8].float()
        falls += bool(row[0] > row[-1])
    assert falls == pytest.approx(100 * flip, abs=15 * (flip == 0.5))


def test_running_statistics_come_from_all_micro_batches_of_a_step() -> None:
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1
    norm = StepNorm(3).train()
    for part in x.split(4):
        norm(part)
    norm.commit()
    parts = x.split(4)
    mean = torch.stack([p.mean(0) for p in parts]).mean(0)
    variance = torch.stack([p.var(0) for p in parts]).mean(0)
    torch.testing.assert_close(norm.mean, MOMENTUM * mean)
    torch.testing.assert_close(norm.variance, (1 - MOMENTUM) + MOMENTUM * variance)
    norm.eval()
    torch.testing.assert_close(norm(x), (x - norm.mean) / (norm.variance + norm.eps).sqrt())


def images(per_class: int) -> ImageList:
    labels = np.repeat(np.arange(3), per_class)
    names = tuple(f"c{label}/{i}.png" for i, label in enumerate(labels))
    return ImageList(
        names=names, labels=labels, classes=("c0", "c1", "c2"), stamps=names, where="x",
        opener=lambda index: Image.new("RGB", (1, 1)),
    )  # fmt: skip


@pytest.mark.parametrize(("shots", "step"), [(1, 5), (5, 5), (10, 10), (20, 20)])
def test_draws_of_many_shots_share_no_image(shots: int, step: int) -> None:
    """AttMask's offsets are 0, 5, 10...: with 10 and 20 images a class they overlapped."""
    config = LowShot(data=Path(), per_class=shots, draws=4)
    found = list(config.draw(images(100)))
    assert [name for name, _ in found] == [f"offset {i * step}" for i in range(4)]
    rows = [set(draw.tolist()) for _, draw in found]
    assert all(len(row) == 3 * shots for row in rows)
    assert len(set.union(*rows)) == 4 * 3 * shots
    first = sorted(rows[1])[:shots]
    assert first == list(range(step, step + shots))


@pytest.mark.parametrize("shots", [10, 20])
def test_random_draws_differ_and_are_the_same_again(shots: int) -> None:
    config = LowShot(data=Path(), per_class=shots, draws=3, order="random")
    one, two = (list(config.draw(images(100))) for _ in range(2))
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(one, two, strict=True))
    assert len({tuple(draw) for _, draw in one}) == 3


def test_a_list_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the list"):
        by_content(tmp_path / "absent.txt")


def test_detections_on_crowds_neither_help_nor_harm(tmp_path: Path) -> None:
    """Counted as wrong, a detection on a crowd would lower AP; a crowd is no object to be found."""
    rle = pytest.importorskip("pycocotools.mask")

    def item(number: int, box: list[int], crowd: int) -> dict[str, object]:
        x, y, w, h = box
        shape: object = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if crowd:
            shape = {"size": [100, 100], "counts": [x * 100 + y, h, 10_000 - x * 100 - y - h]}
        return {
            "id": number, "image_id": 1, "category_id": 1, "bbox": box, "area": w * h,
            "iscrowd": crowd, "segmentation": shape,
        }  # fmt: skip

    truth = {
        "images": [{"id": 1, "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [item(1, [5, 5, 20, 20], 0), item(2, [60, 60, 30, 30], 1)],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))

    def found(box: list[int], score: float) -> dict[str, object]:
        x, y, w, h = box
        return {
            "image_id": 1, "category_id": 1, "bbox": box, "score": score,
            "segmentation": rle.frPyObjects([[x, y, x + w, y, x + w, y + h, x, y + h]], 100, 100)[0],
        }  # fmt: skip

    outcomes = Detections.match([found([62, 62, 10, 10], 0.9), found([5, 5, 20, 20], 0.8)], path)
    values = {s.metric: s.whole() for s in outcomes.statistics()}
    assert values["box_ap"] == pytest.approx(100.0)
    [matches] = outcomes.matches["box_ap"]
    assert matches.objects.tolist() == [1]
    assert matches.counted[0].tolist() == [False, True]


def test_a_class_list_has_as_many_names_as_eight_bits_can_tell_apart(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("\n".join(f"class {i}" for i in range(254)))
    assert len(class_names(tmp_path, "names.txt")) == 254
    path.write_text("\n".join(f"class {i}" for i in range(255)))
    with pytest.raises(UserError, match="2 to 254 different classes"):
        class_names(tmp_path, "names.txt")


def test_every_draw_is_the_one_it_always_was() -> None:
    """Another order of the seed's parts passed every test, and gave every subset other images."""
    labels = np.arange(20) % 2
    assert draw_fraction(labels, 0.3, draw=1).tolist() == [2, 5, 6, 7, 12, 15]
    assert draw_fraction(labels, 0.3, draw=2).tolist() == [1, 2, 11, 14, 15, 16]
    assert draw_per_class(labels, 2, draw=1).tolist() == [1, 7, 8, 10]
    kept, held = hold_out(labels, 0.25, seed=3)
    assert kept.tolist() == [0, 1, 2, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 17, 18, 19]
    assert held.tolist() == [5, 8, 11, 14]
    few, rest = held_out(12, 0.25, seed=3)
    assert (few.tolist(), rest.tolist()) == ([1, 2, 3, 4, 7, 8, 9, 10, 11], [0, 5, 6])
