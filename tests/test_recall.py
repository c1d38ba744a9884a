"""Recall@K: the query is left out by its place, ties are counted, published sets in miniature."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mimbench.data.contents import QueryGallery
from mimbench.data.sets import published, read_set
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.vit.weights import VitSpec, random_weights
from transfer.retrieval import recall
from transfer.retrieval.recall import Config, others


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))


def config(data: Path, **changes: Any) -> Config:
    plain = {
        "data": str(data), "image_size": 32, "resize": None, "choices": ["avg", "cls"],
        "k": [1, 2, 4], "machine": {"device": "cpu", "workers": 0},
    }  # fmt: skip
    return from_mapping(Config, {**plain, **changes})


def picture(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)


def test_the_query_is_never_its_own_neighbour_even_among_duplicates() -> None:
    rng = np.random.default_rng(0)
    bank = rng.standard_normal((40, 8)).astype(np.float32)
    bank[5:12] = bank[5]
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    same: Any = object()
    pair = QueryGallery(queries=same, gallery=same)
    for k in (1, 3, 20):
        similarity, ids = others(bank, bank, k, pair, "cpu")
        assert ids.shape == similarity.shape == (40, k)
        assert not (ids == np.arange(40)[:, None]).any()
        exact = np.sort(bank @ bank.T - 9 * np.eye(40, dtype=np.float32), axis=1)[:, ::-1][:, :k]
        np.testing.assert_allclose(similarity, exact, atol=1e-6)
    # of six others at equal similarity the first come first
    assert others(bank, bank, 3, pair, "cpu")[1][11].tolist() == [5, 6, 7]
    assert others(bank, bank, 3, pair, "cpu")[1][5].tolist() == [6, 7, 8]


def test_recall_grows_with_k_and_reproduces(
    painted_images: Callable[..., Path], small_spec: VitSpec, tmp_path: Path
) -> None:
    data = painted_images(tmp_path / "data", train=1, val=12)
    result = recall.run(random_weights(small_spec, 0), config(data), tmp_path / "out")
    values = [result.metrics[f"recall{k}"] for k in (1, 2, 4)]
    assert values == sorted(values)
    # chance is 25 at K = 1
    assert 40 < values[0] <= values[-1] <= 100
    assert values[0] == result.metrics["avg_recall1"]
    [kept] = result.outcomes
    assert {s.metric: s.whole() for s in kept.statistics()} == {
        f"recall{k}": v for k, v in zip((1, 2, 4), values, strict=True)
    }
    assert result.notes["queries_without_match"] == 0
    assert result.pictures[0].name == "retrieved"


def test_an_oracle_is_perfect_and_a_stranger_at_chance(
    painted_images: Callable[..., Path],
    small_spec: VitSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = painted_images(tmp_path / "data", train=1, val=40)
    labels = np.repeat(np.arange(4), 40)
    weights = random_weights(small_spec, 0)
    rng = np.random.default_rng(0)
    answers = {
        "oracle": np.eye(4, dtype=np.float32)[labels]
        + 0.1 * rng.standard_normal((160, 4)).astype(np.float32),
        "stranger": rng.standard_normal((160, 16)).astype(np.float32),
    }
    found = {}
    for name, vectors in answers.items():
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        monkeypatch.setattr(recall, "unit", lambda _, unit=unit: unit)
        found[name] = recall.run(weights, config(data), tmp_path / name).metrics["recall1"]
    assert found["oracle"] == 100
    # chance is 24.5, three standard deviations are 10
    assert abs(found["stranger"] - 24.5) < 10


def test_ties_that_decide_are_counted(
    painted_images: Callable[..., Path],
    small_spec: VitSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = painted_images(tmp_path / "data", train=1, val=4)
    monkeypatch.setattr(recall, "unit", lambda x: np.ones((len(x), 4), dtype=np.float32) / 2)
    notes = recall.run(random_weights(small_spec, 0), config(data), tmp_path).notes
    # all images are equal: places 0 and 1, both of class 0, come first
    assert notes["ties"].endswith("for 0 queries")
    monkeypatch.setattr(recall, "read_folder", lambda *_: _shuffled(data))
    notes = recall.run(random_weights(small_spec, 0), config(data), tmp_path).notes
    assert notes["ties"].endswith("for 6 queries")


def _shuffled(data: Path) -> Any:
    from mimbench.data.lists import read_folder

    images = read_folder(data, "val")
    # classes take turns
    return images.subset(np.arange(16).reshape(4, 4).T.ravel())


def test_stanford_online_products_in_its_layout(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["image_id class_id super_class_id path"]
    for i in range(6):
        name = f"bicycle_final/{i}.JPG"
        picture(tmp_path / name, rng)
        lines.append(f"{i + 1} {11319 + i // 2} 1 {name}")
    (tmp_path / "Ebay_test.txt").write_text("\n".join(lines) + "\n")
    pair = read_set("sop", tmp_path, QueryGallery)
    assert pair.leave_one_out
    assert pair.queries.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert pair.counts() == {"images": 6, "classes": 3}
    assert published()["sop"].counts == {"images": 60_502, "classes": 11_316}


def test_in_shop_scores_queries_against_the_gallery(small_spec: VitSpec, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["6", "image_name item_id evaluation_status"]
    for i, part in enumerate(["train", "query", "gallery", "query", "gallery", "gallery"]):
        name = f"img/WOMEN/Dresses/id_{i // 2:08d}/{i:02d}_1_front.png"
        picture(tmp_path / "Img" / name, rng)
        lines.append(f"{name}  id_{i // 2:08d}    {part}")
    (tmp_path / "Eval").mkdir()
    (tmp_path / "Eval" / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    pair = read_set("inshop", tmp_path, QueryGallery)
    assert not pair.leave_one_out
    assert pair.counts() == {"queries": 2, "gallery": 3}
    assert published()["inshop"].counts == {"queries": 14_218, "gallery": 12_612}
    chosen = config(tmp_path, published="inshop", k=[1, 3])
    result = recall.run(random_weights(small_spec, 0), chosen, tmp_path / "out")
    # the first query's item is not in the gallery
    assert result.metrics["recall3"] == 50
    assert result.notes["queries_without_match"] == 1


def test_birds_score_the_second_half_of_the_classes_of_both_parts(
    small_spec: VitSpec, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    lists: dict[str, list[str]] = {
        n: [] for n in ("images", "image_class_labels", "train_test_split", "classes")
    }
    number = 0
    for label in range(4):
        lists["classes"].append(f"{label + 1} {label + 1:03d}.Bird")
        for i in range(3):
            number += 1
            name = f"{label + 1:03d}.Bird/{i}.png"
            picture(tmp_path / "images" / name, rng)
            lists["images"].append(f"{number} {name}")
            lists["image_class_labels"].append(f"{number} {label + 1}")
            lists["train_test_split"].append(f"{number} {int(i < 2)}")
    for name, rows in lists.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(rows) + "\n")
    pair = config(tmp_path, published="cub").images()
    assert pair.leave_one_out
    assert sorted(pair.queries.labels.tolist()) == [2, 2, 2, 3, 3, 3]
    opened = {pair.queries.open(i).tobytes() for i in range(6)}
    assert len(opened) == 6
    metrics = recall.run(
        random_weights(small_spec, 0), config(tmp_path, published="cub"), tmp_path / "out"
    ).metrics
    assert 0 <= metrics["recall1"] <= metrics["recall4"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": [2]}, "k needs a 1"),
        ({"choices": []}, "choices"),
        ({"published": "cubs"}, "did you mean 'cub'"),
        ({"published": "roxford5k"}, "gnd_roxford5k.pkl"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, UserError), match=message):
        config(tmp_path, **changes).images()
