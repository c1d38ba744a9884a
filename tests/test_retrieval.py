"""Retrieval of landmarks: the official metric, the published layout, hostile ground truth, an oracle."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mimbench.data.contents import Landmarks
from mimbench.data.sets import published, read_set
from mimbench.doctor.published import SetLayout
from mimbench.scores.outcomes import read_outcomes, write_outcomes
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.vit.weights import VitSpec, random_weights
from transfer.retrieval import landmarks
from transfer.retrieval.landmarks import Config
from transfer.retrieval.outcomes import QueryScores
from transfer.retrieval.precision import (
    Relevance,
    average_precision,
    positive_ranks,
    precision_at,
    score,
)
from transfer.retrieval.vectors import WholeBank, WholeSpec


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))


def place(folder: Path, *, places: int = 4, views: int = 5) -> Path:
    """Write a miniature of the published layout: places by colour, `views` images of each."""
    (folder / "jpg").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names, queries, truth = [], [], []
    for number in range(places):
        colour = rng.integers(100, 110, 3)
        for view in range(views + 1):
            name = f"place_{number}_{view}"
            size = (40 + 3 * view, 64 - 5 * number, 3)
            pixels = np.clip(colour + rng.integers(-90, 90, size), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "jpg" / f"{name}.jpg", quality=95)
            (queries if view == views else names).append(name)
        first = number * views
        truth.append(
            {
                "bbx": [4.0, 5.0, 36.0, 39.5],
                "easy": np.arange(first, first + 2),
                "hard": np.arange(first + 2, first + 4),
                "junk": np.arange(first + 4, first + views),
            }
        )
    content = {"imlist": names, "qimlist": queries, "gnd": truth}
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, protocol=3))
    return folder


def config(folder: Path, **changes: Any) -> Config:
    plain = {"data": str(folder), "image_size": 48, "machine": {"device": "cpu", "workers": 0}}
    return from_mapping(Config, {**plain, **changes})


def truth_of(file: Any) -> Landmarks:
    """Return the reference's judgements as a set."""
    queries = range(6)
    parts = {
        p: tuple(file[f"query{q}/{p}"].astype(np.int64) for q in queries)
        for p in ("easy", "hard", "junk")
    }
    empty: Any = None
    return Landmarks(database=empty, queries=empty, boxes=np.zeros((6, 4)), **parts)


def test_mean_average_precision_is_the_official_one(golden: Path) -> None:
    with np.load(golden / "retrieval_map.npz") as file:
        found = score(file["ranks"].T, truth_of(file))
        for protocol in ("easy", "medium", "hard"):
            own = found[f"map_{protocol}"]
            np.testing.assert_allclose(own, file[f"{protocol}/ap_per_query"], atol=1e-12)
            assert np.nanmean(own) == pytest.approx(float(file[f"{protocol}/map"]), abs=1e-12)
            precisions = np.stack([found[f"mp{k}_{protocol}"] for k in (1, 5, 10)], axis=1)
            wanted = file[f"{protocol}/precision_per_query"]
            np.testing.assert_allclose(precisions, wanted, atol=1e-12)
            means = file[f"{protocol}/mean_precision_at_1_5_10"]
            np.testing.assert_allclose(np.nanmean(precisions, axis=0), means, atol=1e-12)


def test_queries_without_positives_do_not_count(golden: Path) -> None:
    with np.load(golden / "retrieval_map.npz") as file:
        kept = QueryScores(
            images=tuple(f"q{i}" for i in range(6)), values=score(file["ranks"].T, truth_of(file))
        )
        assert kept.metrics()["map_easy"] == pytest.approx(100 * float(file["easy/map"]))
    easy = next(s for s in kept.statistics() if s.metric == "map_easy")
    assert easy.images == ("q0", "q1", "q3", "q4", "q5")


def test_a_perfect_ranking_is_one_and_ignored_images_in_front_change_nothing() -> None:
    judged = Relevance(positive=np.array([3, 1]), ignored=np.array([0, 4]))
    for ranking in ([3, 1, 2, 0, 4], [0, 4, 1, 3, 2], [3, 0, 1, 4, 2]):
        ranks = positive_ranks(np.array(ranking), judged)
        assert average_precision(ranks) == 1.0
        assert precision_at(ranks).tolist() == [1, 1, 1]
    late = positive_ranks(np.array([2, 3, 1]), judged)
    assert average_precision(late) == pytest.approx(((0 + 1 / 2) + (1 / 2 + 2 / 3)) / 4)


def test_the_layout_is_read_and_counted(tmp_path: Path) -> None:
    folder = place(tmp_path / "roxford5k")
    truth = read_set("roxford5k", folder, Landmarks)
    assert (len(truth.database), len(truth.queries)) == (20, 4)
    assert truth.hard[1].tolist() == [7, 8]
    assert truth.cropped().open(0).size == (32, 35)
    assert truth.cropped().digest != truth.queries.digest
    known = published()["roxford5k"]
    assert known.counts == {"images": 4_993, "queries": 70}
    assert published()["rparis6k"].counts == {"images": 6_322, "queries": 70}
    [check] = SetLayout(known).check(folder)
    assert (check.status, check.detail) == (
        "fault",
        "images: 20, expected 4,993; queries: 4, expected 70",
    )
    (folder / "jpg" / "place_1_0.jpg").unlink()
    with pytest.raises(UserError, match=r"names 20 images, 1 of which are not in .*place_1_0"):
        read_set("roxford5k", folder, Landmarks)


class Hostile:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = (call, arguments)

    def __reduce__(self) -> Any:
        return self.call


def evil(folder: Path) -> dict[str, Any]:
    import os

    return {
        "posix.system": Hostile(os.system, f"touch {folder / 'ran'}"),
        "builtins.eval": Hostile(eval, "1 + 1"),
        "torch.load": Hostile(torch.load, "x"),
        "pathlib": Path("x"),
    }


@pytest.mark.parametrize("case", ["posix.system", "builtins.eval", "torch.load", "pathlib"])
@pytest.mark.parametrize("inside", ["top", "gnd"])
def test_hostile_ground_truth_is_refused_and_nothing_runs(
    case: str, inside: str, tmp_path: Path
) -> None:
    folder = place(tmp_path / "set")
    path = folder / "gnd_roxford5k.pkl"
    content = pickle.loads(path.read_bytes())
    value = evil(tmp_path)[case]
    if inside == "gnd":
        content["gnd"][2]["junk"] = value
        value = content
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(
        UserError, match=r"gnd_roxford5k.pkl: reading it would need '.*not plain data"
    ):
        read_set("roxford5k", folder, Landmarks)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["gnd"][0].update(easy=np.array([99])), "beyond the 20"),
        (lambda c: c["gnd"][0].update(easy=np.array([-1])), "beyond the 20"),
        (lambda c: c["gnd"][0].update(easy="all"), "expected numbers"),
        (lambda c: c["gnd"][0].update(bbx=[5, 5, 5, 9]), r"has the box"),
        (lambda c: c["gnd"].pop(), "does not belong to its 4 queries"),
        (lambda c: c["gnd"][0].pop("hard"), "query 0 lacks"),
        (lambda c: c.pop("imlist"), "expected a mapping with imlist"),
        (lambda c: c["imlist"].__setitem__(0, "../../etc/passwd"), r"outside of jpg"),
        (lambda c: c.update(imlist=7), "expected a list of names"),
    ],
)
def test_damaged_ground_truth_is_an_error_that_says_what(
    change: Any, message: str, tmp_path: Path
) -> None:
    folder = place(tmp_path / "set")
    path = folder / "gnd_roxford5k.pkl"
    content = pickle.loads(path.read_bytes())
    change(content)
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message):
        read_set("roxford5k", folder, Landmarks)


def test_truncated_ground_truth_is_refused_at_any_byte(tmp_path: Path) -> None:
    folder = place(tmp_path / "set", places=1)
    path = folder / "gnd_roxford5k.pkl"
    whole = path.read_bytes()
    for cut in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError):
            read_set("roxford5k", folder, Landmarks)


class MeanColour:
    """A network that sees the mean colour: an oracle where places differ by colour."""

    def __init__(self, spec: VitSpec) -> None:
        self.spec = spec
        self.shapes: list[tuple[int, ...]] = []

    def vectors(self, images: torch.Tensor, blocks: int) -> dict[str, torch.Tensor]:
        self.shapes.append(tuple(images.shape[2:]))
        colour = images.mean(dim=(2, 3)) - 0.5
        return {"cls.1": colour, "avg.1": colour}


def test_images_keep_their_shape_and_lose_the_strip_without_a_patch(small_spec: VitSpec) -> None:
    network = MeanColour(small_spec)
    images: Any = type("Named", (), {"names": ("a",)})()
    thumbnail: Any = None
    spec = WholeSpec(preprocess=thumbnail, blocks=1, scales=(1.0, 0.5))
    bank = WholeBank(folder=Path(), images=images, spec=spec)
    found = bank.compute(network, torch.rand(1, 3, 45, 31), [0])  # pyright: ignore[reportArgumentType]
    assert network.shapes == [(40, 24), (16, 8)]
    assert found["cls.1"].shape == (1, 3)
    with pytest.raises(UserError, match="less than a patch of 8"):
        bank.compute(network, torch.rand(1, 3, 45, 12), [0])  # pyright: ignore[reportArgumentType]


def test_an_oracle_finds_every_place_and_random_weights_find_less(
    small_spec: VitSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = place(tmp_path / "roxford5k")
    random = landmarks.run(random_weights(small_spec, 0), config(folder), tmp_path)
    assert 10 < random.metrics["map_medium"] <= 100
    truth = read_set("roxford5k", folder, Landmarks)
    places = np.repeat(np.arange(4), 5)

    def rank(*_: Any) -> Any:
        order = np.stack([np.argsort(places != q, kind="stable") for q in range(4)])
        return np.linspace(1, 0, 20)[None].repeat(4, 0).astype(np.float32), order

    monkeypatch.setattr(landmarks, "rank", rank)
    oracle = landmarks.run(random_weights(small_spec, 0), config(folder), tmp_path)
    assert {oracle.metrics[f"map_{p}"] for p in ("easy", "medium", "hard")} == {100.0}
    assert len(truth.queries) == oracle.notes["queries"]


def test_what_a_run_returns_reproduces_its_metrics(small_spec: VitSpec, tmp_path: Path) -> None:
    folder = place(tmp_path / "roxford5k")
    weights = random_weights(small_spec, 0)
    result = landmarks.run(weights, config(folder), tmp_path)
    [kept] = result.outcomes
    write_outcomes(tmp_path / "o.npz", kept)
    again = read_outcomes(tmp_path / "o.npz", QueryScores)
    for statistic in again.statistics():
        assert statistic.whole() == pytest.approx(result.metrics[statistic.metric], abs=1e-9)
    assert 0 <= again.statistics()[0].interval().half <= 50
    assert result.pictures[0].image.size[1] == 4 * 104
    assert result.metrics["map_medium"] == result.metrics["cls_map_medium"]
    cropped = landmarks.run(weights, config(folder, crop_queries=True), tmp_path).metrics
    scaled = landmarks.run(weights, config(folder, scales=[1.0, 0.7071]), tmp_path).metrics
    assert len({m["map_medium"] for m in (result.metrics, cropped, scaled)}) > 1
    assert result.notes["ties"].endswith("0 queries have any")
