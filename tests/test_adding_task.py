"""The template of a task in docs/howto/adding.md: one file and one entry give it all that other tasks have."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mimbench.benchmarks.cells import Cell, Request, make_cells, read_candidate
from mimbench.benchmarks.evaluation import evaluate
from mimbench.benchmarks.lifecycle import run_here
from mimbench.benchmarks.manifest import Manifest, load_manifest
from mimbench.benchmarks.nearby import measure_gap
from mimbench.benchmarks.records import statistics_of
from mimbench.checkpoints.files import write_weights
from mimbench.sample import generate
from mimbench.sample.store import default_root
from mimbench.suite.costs.forecast import forecast
from mimbench.suite.report.page import make_report
from mimbench.suite.running import canary_check
from mimbench.task import Machine, Task, load_task
from mimbench.vit.weights import VitSpec, random_weights
from tests.support.documents import template

NAME = "neighbours_of_the_docs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One file and one entry; sample data and a checkpoint beside them."""
    root = tmp_path_factory.mktemp("adding")
    (root / f"{NAME}.py").write_text(template("A downstream task"), encoding="utf-8")
    entry = yaml.safe_load(template("A downstream task", "yaml"))
    entry["retrieval"]["task"] = NAME
    manifest = {"defaults": {"demo": ["retrieval"]}, "benchmarks": entry}
    (root / "benchmarks.yaml").write_text(yaml.safe_dump(manifest))
    spec = VitSpec(embed_dim=48, depth=2, num_heads=3, mlp_dim=96, patch_size=8, grid=(4, 4))
    write_weights(root / "tiny.safetensors", random_weights(spec, seed=0))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("MIMBENCH_CACHE", str(root / "cache"))
        generate(default_root(), train_per_class=1, val_per_class=4, train_scenes=4, val_scenes=4)
        yield root
    sys.modules.pop(NAME, None)


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return load_manifest(folder / "benchmarks.yaml")


@pytest.fixture(scope="module")
def cell(folder: Path, manifest: Manifest) -> Cell:
    request = Request(
        profile="demo",
        benchmarks=["retrieval"],
        out=folder / "runs",
        machine=Machine(device="cpu", workers=0),
    )
    [found] = make_cells(manifest, [read_candidate(folder / "tiny.safetensors")], request)
    assert found.problem == ""
    return found


def test_the_template_is_a_task(folder: Path) -> None:
    assert isinstance(load_task(NAME), Task)


def test_it_has_a_forecast(cell: Cell, folder: Path) -> None:
    assert cell.footprint.cache > 0, "the features of the sample images"
    assert cell.footprint.memory > 1000
    [found] = forecast([cell], patience=120)
    assert found.how == "ran to its end"
    assert found.seconds is not None


def test_it_sends_the_canary_ahead(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Path] = []

    def sound(who: object, verdict: Path, with_images: Cell, device: str) -> bool:
        sent.append(Path(with_images.run.config["data"]))
        return True

    monkeypatch.setattr(canary_check, "_sound", sound)
    canary_check.check_checkpoints([cell], "cpu")
    [data] = sent
    assert (data / "val").is_dir()
    canary_check.check_checkpoints([cell], "cpu", {cell.candidate.weights["name"]})
    assert len(sent) == 1, "one that is not to be asked about was"


def test_it_has_an_interval_and_a_picture(cell: Cell, manifest: Manifest) -> None:
    result = evaluate(cell.run, cell.folder)
    assert 0 <= result.metrics["recall1"] <= 100
    assert 0 < result.intervals["recall1"] < 25
    kept = statistics_of(cell.folder, result, manifest.tasks)
    assert kept["recall1"].whole() == pytest.approx(result.metrics["recall1"])
    assert (cell.folder / "pictures" / "neighbours.png").is_file()
    cell_folder = cell.folder.parents[1]
    html = make_report(cell_folder, manifest, compute=False)
    assert "queries above their neighbours" in html
    assert "Retrieval" in html


def test_it_has_a_recipe_gap(cell: Cell) -> None:
    result = run_here(cell, fresh=True)
    gap = measure_gap(cell.folder)
    assert gap is not None
    assert cell.nearby
    assert set(gap.values) == {"smaller images", "larger images"}
    assert gap.value == result.metrics["recall1"]
