"""The machine that a cell gets: the user's settings win over the benchmark's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mimbench.benchmarks import cells
from mimbench.benchmarks.cells import Candidate, Request, make_cells, read_candidate
from mimbench.benchmarks.manifest import Manifest, load_manifest
from mimbench.benchmarks.preflight import RecipeQuery, RecipeReport, inspect_recipe
from mimbench.suite.suite import _twin
from mimbench.system.errors import UserError
from mimbench.task import Machine
from mimbench.vit.weights import VitSpec
from tests.support.checkpoint_layouts import LAYOUTS, TINY, canonical

BENCHMARKS = """
defaults: {paper: [narrow, wide]}
benchmarks:
  narrow: {title: Narrow, group: detection, task: x, dataset: sample-coco, max_batch: 1}
  wide: {title: Wide, group: knn, task: x, dataset: sample-classification}
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    (tmp_path / "benchmarks.yaml").write_text(BENCHMARKS)
    return load_manifest(tmp_path / "benchmarks.yaml")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[RecipeQuery]:
    """The queries that would go to the tasks."""
    found: list[RecipeQuery] = []

    def preflight(
        queries: Sequence[RecipeQuery],
        data: Path | None,
        *,
        own: bool = False,
        specs: Sequence[VitSpec] = (),
    ) -> list[RecipeReport]:
        found.extend(queries)
        return [RecipeReport(problem="not asked")] * len(queries)

    monkeypatch.setattr(cells, "preflight", preflight)
    return found


def batches(manifest: Manifest, asked: list[RecipeQuery], **request: Any) -> dict[str, int]:
    make_cells(manifest, [], Request(profile="paper", benchmarks=["narrow", "wide"], **request))
    return {query.benchmark: query.config["machine"]["max_batch"] for query in asked}


def test_a_benchmarks_own_limit_holds_until_the_user_says_otherwise(
    manifest: Manifest, asked: list[RecipeQuery]
) -> None:
    assert batches(manifest, asked) == {"narrow": 1, "wide": Machine().max_batch}
    assert batches(manifest, asked, max_batch=4) == {"narrow": 4, "wide": 4}


def test_one_benchmark_alone_can_be_told(manifest: Manifest, asked: list[RecipeQuery]) -> None:
    changed = {"narrow": {"machine": {"max_batch": 2}}}
    assert batches(manifest, asked, overrides=changed, max_batch=8) == {"narrow": 2, "wide": 8}


def test_another_machine_goes_on_in_the_same_folder(
    manifest: Manifest, asked: list[RecipeQuery], tmp_path: Path
) -> None:
    who = Candidate(path=tmp_path, weights={"digest": "d" * 64, "name": "ckpt"})

    def folder(overrides: dict[str, Any]) -> str:
        request = Request(profile="paper", benchmarks=["narrow"], overrides=overrides)
        return make_cells(manifest, [who], request)[0].folder.name

    assert folder({"narrow": {"machine": {"max_batch": 2}}}) == folder({}) == "narrow"
    assert folder({"narrow": {"batch": 2}}) == "narrow.changed"


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="--max-batch is 0, expected 1 or more"):
        Request(profile="paper", benchmarks=[], max_batch=0)


def test_what_looks_wrong_is_said_before_a_run_but_not_of_a_random_twin(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No score on digits tells that rows and columns of MAE's table are exchanged."""
    state, path = canonical(TINY), tmp_path / "mae.pth"
    torch.save(LAYOUTS["mae-training"].write(state), path)
    assert not read_candidate(path, num_heads=3).twin
    assert "suspicious" not in caplog.text

    table = state["pos_embed"]
    turned = table[:, 1:].unflatten(1, TINY.grid).transpose(1, 2).flatten(1, 2)
    state["pos_embed"] = torch.cat([table[:, :1], turned], dim=1)
    torch.save(LAYOUTS["mae-training"].write(state), path)
    read_candidate(path, num_heads=3)
    assert "mae.pth: suspicious: pos_embed is not the fixed sine-cosine table" in caplog.text

    caplog.clear()
    assert read_candidate(path, num_heads=3, twin=True).twin
    assert "suspicious" not in caplog.text


def test_each_kind_of_model_has_a_random_twin_of_its_own(tmp_path: Path) -> None:
    """Two families of one shape wrote their twins into one file, and the first one's cells failed."""
    twins = []
    for name, heads in (("mae-training", 3), ("dino-backbone", 3), ("mae-training", 4)):
        path = tmp_path / f"{name}.pth"
        torch.save(LAYOUTS[name].write(canonical(LAYOUTS[name].spec(TINY))), path)
        twins.append(_twin(read_candidate(path, num_heads=heads), tmp_path / "twins"))
    assert len({twin.path for twin in twins}) == 3
    for twin in twins:
        assert twin.weights["name"] == "random-48x3-16"
        assert read_candidate(twin.path).weights["digest"] == twin.weights["digest"]


def test_a_recipe_of_another_family_is_a_problem_not_a_traceback(tiny_spec: VitSpec) -> None:
    """The child process that asks the tasks used to end in a traceback."""
    query = RecipeQuery(
        benchmark="in-ft-fcmae",
        task="transfer.classification.finetune",
        dataset="imagenet",
        config={"recipe": "fcmae"},
        needs_data=False,
    )
    found = inspect_recipe(query, None, specs=[tiny_spec])
    assert "recipe fcmae is published for ConvNeXtV2 alone" in found.problem
