"""A number stands for the data it was measured on: other images, labels or lists are another run."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mimbench.benchmarks import cells, preflight
from mimbench.benchmarks.cells import Cell, Request, make_cells, read_candidate
from mimbench.benchmarks.lifecycle import finished, run_here
from mimbench.benchmarks.manifest import load_manifest
from mimbench.benchmarks.preflight import RecipeQuery, RecipeReport, inspect_recipe
from mimbench.checkpoints.files import write_weights
from mimbench.data.digest import DataDigest, Parts, read_parts
from mimbench.data.sources import Source
from mimbench.results.record import Result
from mimbench.suite.running.runner import run_cells
from mimbench.system.config import to_mapping
from mimbench.system.errors import UserError
from mimbench.system.files import write_json
from mimbench.tables.table import read_results
from mimbench.task import Machine
from mimbench.vit.weights import VitSpec, random_weights

SMALL = {"image_size": 32, "resize": None}
FEW = {**SMALL, "fraction": None, "methods": ["knn"], "k": 3}


@pytest.fixture
def planned(
    painted_images: Callable[..., Path],
    small_spec: VitSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Cell]:
    """Plans one cell of a tiny model on the user's own images, as `run --own-data` does."""
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    painted_images(tmp_path / "data" / "imagenet")
    write_weights(tmp_path / "w.safetensors", random_weights(small_spec, seed=0))

    def here(queries: Sequence[RecipeQuery], data: Path | None, **more: Any) -> list[RecipeReport]:
        return [inspect_recipe(query, data, **more) for query in queries]

    monkeypatch.setattr(cells, "preflight", here)

    def plan(name: str = "in-knn", **recipe: Any) -> Cell:
        request = Request(
            benchmarks=[name],
            overrides={name: {**SMALL, **recipe}},
            data=tmp_path / "data",
            own_data=True,
            out=tmp_path / "runs",
            machine=Machine(device="cpu", workers=0),
        )
        [cell] = make_cells(load_manifest(), [read_candidate(tmp_path / "w.safetensors")], request)
        assert not cell.problem, cell.problem
        return cell

    return plan


def same(found: Result | None, wanted: Result) -> bool:
    """Return whether a result that was read is the one that was written."""
    return found is not None and replace(found, checksum="") == replace(wanted, checksum="")


def test_a_cell_runs_again_when_an_image_or_a_label_changed(
    planned: Callable[..., Cell], tmp_path: Path
) -> None:
    """The old number was shown as "skipped, done before"."""
    recipe = {"choices": ["cls"], "k": [3], "main_k": 3}
    first = planned(**recipe)
    before = run_here(first)
    assert before.data_digest.read == "whole"
    [again] = run_cells([planned(**recipe)], command=lambda *_: pytest.fail("run again"))
    assert again.status == "skipped"

    val = tmp_path / "data" / "imagenet" / "val"
    image = val / "class_0" / "val_0_000.png"
    Image.new("RGB", (32, 32), (250, 250, 250)).save(image)
    changed = planned(**recipe)
    assert finished(changed) is None
    after = run_here(changed)
    assert after.data_digest.digest != before.data_digest.digest
    assert same(finished(planned(**recipe)), after)

    names = sorted(p.name for p in (val / "class_1").iterdir())
    for name in names:
        (val / "class_1" / name).rename(val / "class_2" / name)
    (val / "class_2" / "val_2_000.png").rename(val / "class_1" / "val_2_000.png")
    moved = planned(**recipe)
    assert finished(moved) is None, "labels changed"
    assert run_here(moved).metrics["top1"] != after.metrics["top1"]
    found = [r for r in read_results(tmp_path / "runs") if r.status == "done"]
    assert len({r.data_digest.digest for r in found}) == len(found), "one row for each data set"


def test_a_list_counts_by_what_it_holds_wherever_it_lies(
    planned: Callable[..., Cell], tmp_path: Path
) -> None:
    train = tmp_path / "data" / "imagenet" / "train"
    names = [str(p.relative_to(train)) for p in sorted(train.rglob("*.png"))]
    one, two = tmp_path / "one.txt", tmp_path / "elsewhere.txt"
    one.write_text("\n".join(names[::3]) + "\n")
    two.write_text(one.read_text())
    first = planned("in-1pct", **FEW, files=[str(one)])
    before = run_here(first)
    alike = planned("in-1pct", **FEW, files=[str(two)])
    assert (alike.protocol, alike.folder) == (first.protocol, first.folder)
    assert same(finished(alike), before)
    one.write_text("\n".join(names[::2]) + "\n")
    other = planned("in-1pct", **FEW, files=[str(one)])
    assert other.protocol != first.protocol
    assert finished(other) is None
    assert run_here(other).protocol != before.protocol
    assert same(finished(alike), before), "the first list's number is still there"


def test_a_single_class_is_refused(painted_images: Callable[..., Path], tmp_path: Path) -> None:
    """It gives 100 % whatever the features are."""
    data = painted_images(tmp_path / "one", classes=1)
    with pytest.raises(UserError, match="one class alone, 'class_0': every answer is right"):
        Source().open(data)
    train, val = Source().open(painted_images(tmp_path / "two", classes=2))
    assert len(train.classes) == len(val.classes) == 2


def test_benchmarks_that_share_data_read_it_once(
    painted_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On ImageNet each pass over the files takes minutes."""
    painted_images(tmp_path / "data" / "imagenet")
    reads: list[Parts] = []

    def counted(parts: Parts) -> DataDigest:
        reads.append(parts)
        return read_parts(parts)

    monkeypatch.setattr(preflight, "read_parts", counted)
    manifest = load_manifest()
    queries = [
        RecipeQuery(
            benchmark=name,
            task=manifest.benchmarks[name].task,
            dataset="imagenet",
            config=manifest.recipe(name, "paper", {name: SMALL})[1],
        )
        for name in ("in-knn", "in-logreg", "in-shot-1")
    ]
    asked, answers = tmp_path / "asked.json", tmp_path / "answers.json"
    write_json(
        asked,
        {
            "data": str(tmp_path / "data"),
            "own": True,
            "queries": to_mapping(queries),
            "specs": [],
            "models": [],
        },
    )
    assert preflight.main([str(asked), str(answers)]) == 0
    found = json.loads(answers.read_text())
    assert [report["problem"] for report in found] == ["", "", ""]
    assert len({report["data_digest"]["digest"] for report in found}) == 1
    assert len(reads) == 1
