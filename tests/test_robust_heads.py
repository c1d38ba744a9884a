"""Heads of finished runs, used on other images: the right cell, the right head, the same answers."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mimbench.benchmarks.cells import Candidate, Cell
from mimbench.benchmarks.lifecycle import finished
from mimbench.benchmarks.preflight import RecipeQuery, inspect_recipe
from mimbench.benchmarks.run_config import read_run_config, write_run_config
from mimbench.results.record import read_result, write_result
from mimbench.scores.hits import Hits
from mimbench.system.errors import UserError
from mimbench.system.runtime import Ranks
from mimbench.task import Machine
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from tests.support.finished_cells import HEADS, finish
from transfer.classification.robustness.classifiers import KINDS
from transfer.classification.robustness.finished import HeadRun, find_cell
from transfer.classification.robustness.scoring import HeadJudge

SHIFTED = "transfer.classification.robustness.shifted"
MACHINE = Machine(device="cpu", workers=0, max_batch=16)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("heads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIMBENCH_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def weights() -> VitWeights:
    spec = VitSpec(embed_dim=32, depth=4, num_heads=2, mlp_dim=64, patch_size=8, grid=(4, 4))
    return random_weights(spec, 0)


@pytest.fixture
def data(place: Path, painted_images: Callable[..., Path]) -> Path:
    root = place / "data"
    return root if root.is_dir() else painted_images(root, train=16, val=8)


@pytest.fixture
def cells(place: Path, data: Path, weights: VitWeights) -> Path:
    """The folder of a checkpoint with a finished run of every kind of head."""
    out = place / "runs" / "ckpt"
    for name in HEADS:
        if not (out / name / "result.json").is_file():
            finish(out, name, weights, data)
    return out


def cell_of(cells: Path, name: str, weights: VitWeights) -> HeadRun:
    return find_cell(cells / "mine", name, weights, seed=0)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_answers_as_its_finished_run_did(
    name: str, cells: Path, weights: VitWeights
) -> None:
    cell = cell_of(cells, name, weights)
    judge = HeadJudge.of(cell, weights, MACHINE, Ranks())
    found = judge.predict(cell.val())
    top1 = 100 * float((found == cell.hits.labels).mean())
    assert top1 == pytest.approx(cell.result.metrics["top1"])
    if cell.faithful:
        assert (found == cell.hits.top5[:, 0]).mean() > 0.98


@pytest.mark.parametrize("prefix", ["", "val/"], ids=["folder", "archive"])
def test_classes_are_called_as_their_folders(prefix: str) -> None:
    names = [f"{prefix}{name}" for name in ("n2/deep/a.png", "n1/deep/b.png")]
    if prefix:
        names = [name.replace("/deep", "") for name in names]
    hits = Hits(images=tuple(names), labels=np.array([1, 0]), top5=np.zeros((2, 5), dtype=np.int64))
    cell: Any = SimpleNamespace(hits=hits, classes=2, folder=Path("x"))
    assert HeadRun.class_names(cell) == {"n1": 0, "n2": 1}
    cell.hits = replace(hits, images=("a.png", "b.png"))
    with pytest.raises(UserError, match="do not say what its 2 classes are called"):
        HeadRun.class_names(cell)


def test_every_task_that_trains_a_head_is_covered() -> None:
    assert {task for task, _ in HEADS.values()} == set(KINDS)


def test_a_head_of_the_best_epoch_is_not_taken_from_the_last(
    weights: VitWeights, tmp_path: Path, data: Path
) -> None:
    out = tmp_path / "ckpt"
    finish(out, "linear-best", weights, data)
    path = out / "linear-best" / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    for name, value in state["model"].items():
        if name.startswith("weights."):
            value.zero_()
    # best.pt may be the same file under another name
    path.unlink()
    torch.save(state, path)
    cell = cell_of(out, "linear-best", weights)
    best = HeadJudge.of(cell, weights, MACHINE, Ranks()).predict(cell.val())
    top1 = 100 * (best == cell.hits.labels).mean()
    assert top1 == pytest.approx(cell.result.metrics["top1_best"])
    assert top1 > 60


def test_another_states_head_is_refused(
    cells: Path, weights: VitWeights, tmp_path: Path, data: Path
) -> None:
    out = tmp_path / "ckpt"
    finish(out, "tune", weights, data)
    path = out / "tune" / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    state["model"]["head.bias"] = torch.tensor([0.0, 0.0, 50.0, 0.0])
    torch.save(state, path)
    with pytest.raises(UserError, match="not of one run; run tune again"):
        HeadJudge.of(cell_of(out, "tune", weights), weights, MACHINE, Ranks())


def test_a_head_that_is_gone_is_named(
    cells: Path, weights: VitWeights, tmp_path: Path, data: Path
) -> None:
    out = tmp_path / "ckpt"
    finish(out, "logreg", weights, data)
    (out / "logreg" / "head.safetensors").unlink()
    with pytest.raises(UserError, match=r"head cannot be read from .*head.safetensors"):
        HeadJudge.of(cell_of(out, "logreg", weights), weights, MACHINE, Ranks())


def test_the_cell_is_that_of_the_same_checkpoint_seed_and_profile(
    cells: Path, weights: VitWeights, tmp_path: Path
) -> None:
    assert cell_of(cells, "tune", weights).folder == cells / "tune"
    other = replace(weights, digest="f" * 64)
    with pytest.raises(UserError, match="no finished run of it on this checkpoint"):
        find_cell(cells / "mine", "tune", other, seed=0)
    with pytest.raises(UserError, match="run both: ./run_all.sh CKPT --only tune"):
        find_cell(cells / "mine", "tune", weights, seed=1)
    mine = replace(
        read_run_config(cells / "tune" / "config.yaml"), profile="quick", benchmark="rob"
    )
    write_run_config(tmp_path / "mine" / "config.yaml", replace(mine, beside=cells))
    with pytest.raises(UserError, match="--profile quick --only tune,rob"):
        find_cell(tmp_path / "mine", "tune", weights, seed=0)
    # measured in a scratch folder: the other runs are where its configuration says
    write_run_config(
        tmp_path / "mine" / "config.yaml", replace(mine, beside=cells, profile="paper")
    )
    assert find_cell(tmp_path / "mine", "tune", weights, seed=0).folder == cells / "tune"


def test_an_unchanged_head_comes_before_a_changed_one(
    cells: Path, weights: VitWeights, tmp_path: Path, data: Path
) -> None:
    out = tmp_path / "ckpt"
    changed = {"logreg": {"normalise": True}}
    finish(out, "logreg", weights, data, overrides=changed)
    (out / "logreg").rename(out / "logreg.abc123")
    cell = cell_of(out, "logreg", weights)
    assert cell.changed() == {"head": cell.result.protocol}
    finish(out, "logreg", weights, data)
    cell = cell_of(out, "logreg", weights)
    assert cell.folder.name == "logreg"
    assert cell.changed() == {}


def test_a_number_is_out_of_date_once_its_head_is_another(
    cells: Path, weights: VitWeights, tmp_path: Path, data: Path
) -> None:
    out = tmp_path / "ckpt"
    finish(out, "logreg", weights, data)
    config = {"kind": "sketch", "head": "logreg", "part": "val"}
    finish(out, "rob", weights, data, task=SHIFTED, config=config)
    result = read_result(out / "rob" / "result.json")
    cell = Cell(
        run=read_run_config(out / "rob" / "config.yaml"),
        folder=out / "rob",
        candidate=Candidate(path=out, weights=result.weights),
        after=(),
        version=1,
        main_metric="top1",
        protocol=result.protocol,
    )
    assert finished(cell) is not None
    head = out / "logreg" / "result.json"
    write_result(head, replace(read_result(head), notes={"trained": "again"}))
    assert finished(cell) is None
    head.unlink()
    assert finished(cell) is not None


def test_oracle_and_drop(cells: Path, weights: VitWeights, data: Path) -> None:
    """Clean images under another name: nothing is lost; and the result says which head it was."""
    config = {"kind": "sketch", "head": "tune", "part": "val"}
    result = finish(cells, "rob-clean", weights, data, task=SHIFTED, config=config)
    assert result.metrics["top1"] == result.metrics["top1_clean"] > 60
    assert result.metrics["drop"] == 0
    assert result.notes["head"]["benchmark"] == "tune"
    assert result.beside == {"drop": "drop from clean"}
    assert json.loads((cells / "rob-clean" / "result.json").read_text())["built_on"].keys() == {
        "tune"
    }
    assert np.isfinite(result.intervals["drop"])


@pytest.mark.parametrize(
    "task", ["shifted", "corrupted", "backgrounds"], ids=["shifted", "corrupted", "backgrounds"]
)
def test_a_cell_waits_for_the_run_whose_head_it_uses(task: str) -> None:
    name = f"transfer.classification.robustness.{task}"
    config = {"head": "in-lin-mae"} | ({"kind": "v2"} if task == "shifted" else {})
    found = inspect_recipe(
        RecipeQuery(benchmark="rob", task=name, dataset="x", config=config, needs_data=False), None
    )
    assert found.problem == ""
    assert found.uses == ("in-lin-mae",)
