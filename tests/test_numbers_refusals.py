"""Refusals that no other test asks for: what does not belong together is named, never used."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mimbench.data.label_maps import class_names
from mimbench.scores.confusion import Confusion
from mimbench.scores.hits import Hits
from mimbench.scores.metrics import rank_classes, top_percent
from mimbench.scores.outcomes import write_outcomes
from mimbench.scores.shares import Shares
from mimbench.system.errors import UserError
from transfer.classification import lowshot


def test_predictions_and_labels_are_as_many() -> None:
    ranked = rank_classes(torch.eye(3))
    assert top_percent(ranked, torch.arange(3), 1) == 100
    with pytest.raises(ValueError, match="3 predictions for 2 labels"):
        top_percent(ranked, torch.arange(2), 1)


@pytest.mark.parametrize("part", ["intersect", "union", "predicted", "labelled"])
def test_a_confusions_parts_are_of_one_shape(part: str) -> None:
    counts: dict[str, Any] = {
        name: np.ones((2, 3), dtype=np.int64)
        for name in ("intersect", "union", "predicted", "labelled")
    }
    Confusion(images=("a", "b"), **counts)
    with pytest.raises(ValueError, match="for 2 images"):
        Confusion(images=("a", "b"), **{**counts, part: np.ones((2, 4), dtype=np.int64)})
    with pytest.raises(ValueError, match="for 3 images"):
        Confusion(images=("a", "b", "c"), **counts)


def test_hits_are_of_the_images_they_name() -> None:
    labels, top5 = np.zeros(2, dtype=np.int64), np.zeros((2, 5), dtype=np.int64)
    Hits(images=("a", "b"), labels=labels, top5=top5)
    for wrong in (
        {"labels": labels[:1]},
        {"top5": top5[:1]},
        {"top5": top5[:, :4]},
        {"draws": np.zeros((3, 1), dtype=bool)},
        {"draws": np.zeros(2, dtype=bool)},
    ):
        fields: dict[str, Any] = {"images": ("a", "b"), "labels": labels, "top5": top5, **wrong}
        with pytest.raises(ValueError, match="images"):
            Hits(**fields)


def test_shares_are_one_for_each_image() -> None:
    shares = Shares(images=("a", "b"), values={"j": np.array([0.5, 1.0]), "f": np.zeros(2)})
    again = Shares.from_arrays(shares.arrays())
    assert (again.images, list(again.values)) == (("a", "b"), ["j", "f"])
    assert [s.whole() for s in again.statistics()] == [75, 0]
    with pytest.raises(ValueError, match="images"):
        Shares(images=("a", "b"), values={"j": np.zeros(3)})


def test_outcomes_hold_no_python_objects(tmp_path: Path) -> None:
    class Odd(Shares):
        def arrays(self) -> dict[str, np.ndarray]:
            return {"fine": np.zeros(1), "odd": np.array([{"a": 1}], dtype=object)}

    with pytest.raises(
        UserError, match=r"Odd\.arrays\(\) holds Python objects in odd; use numbers"
    ):
        write_outcomes(tmp_path / "x.npz", Odd(images=(), values={}))
    assert not list(tmp_path.iterdir())


def test_few_shots_have_as_many_neighbours_as_there_are_images() -> None:
    shots, labels = torch.eye(4), np.arange(4)
    config = lowshot.Config(data=Path("x"), per_class=2, k=4)
    assert lowshot.vote(shots, labels, shots, 4, config)[:, 0].tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match="k = 4 neighbours among 3 images; lower k"):
        lowshot.vote(shots[:3], labels[:3], shots, 4, config)
    one = lowshot.Config(data=Path("x"), per_class=1, k=20)
    assert lowshot.vote(shots, labels, shots, 4, one)[:, 0].tolist() == [0, 1, 2, 3]


def test_ades_own_table_lists_150_classes(tmp_path: Path) -> None:
    assert class_names(tmp_path, "")[149] == "class 150"
    rows = [f"{i}\t0.1\t1\t1\tthing {i}, other" for i in range(1, 151)]
    table = tmp_path / "objectInfo150.txt"
    table.write_text("\n".join(["head", *rows]))
    assert class_names(tmp_path, "")[::149] == ("thing 1", "thing 150")
    for wrong in (rows[:-1], [*rows, rows[0]]):
        table.write_text("\n".join(["head", *wrong]))
        with pytest.raises(UserError, match="should list 150 classes"):
            class_names(tmp_path, "")


def test_more_classes_than_the_palette_has_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("mmseg")
    from transfer.segmentation.data import open_source
    from transfer.segmentation.upernet import Config

    for kind in ("images", "annotations"):
        for split in ("training", "validation"):
            (tmp_path / kind / split).mkdir(parents=True)
    (tmp_path / "names.txt").write_text("\n".join(f"class {i}" for i in range(151)))
    with pytest.raises(UserError, match="151 classes; the palette and 8-bit labels allow 150"):
        open_source(Config(data=tmp_path, classes="names.txt"))
