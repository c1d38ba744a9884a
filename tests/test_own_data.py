"""Several data sets of one's own in one run: each is scored on its own and has a column named after it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mimbench.benchmarks import cells
from mimbench.benchmarks.cells import Request, make_cells, read_candidate
from mimbench.benchmarks.evaluation import evaluate
from mimbench.benchmarks.manifest import load_manifest
from mimbench.benchmarks.preflight import inspect_recipe
from mimbench.checkpoints.files import write_weights
from mimbench.commands.run import add_arguments, request_of
from mimbench.suite.report.page import make_report
from mimbench.system.errors import UserError
from mimbench.system.options import Parser
from mimbench.tables.columns import columns_of
from mimbench.tables.table import read_results
from mimbench.task import Machine
from mimbench.vit.weights import VitSpec, random_weights

SMALL = {
    "in-knn": {"image_size": 32, "resize": None, "k": [5], "main_k": 5, "choices": ["avg"]},
    "xfer-logreg-folder": {
        "features": {"image_size": 32, "resize": None},
        "grid": {"steps": 2, "max_iterations": 20},
    },
}


def _here(queries: Any, data: Any, *, own: bool = False, specs: Any = ()) -> Any:
    return [inspect_recipe(query, data, own=own, specs=specs) for query in queries]


@pytest.fixture
def place(
    tmp_path: Path, painted_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Two folders of classes, one of which has other classes, and a checkpoint."""
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cells, "preflight", _here)
    painted_images(tmp_path / "leaves", classes=3, train=10, val=5)
    painted_images(tmp_path / "stones", classes=4, train=10, val=4)
    spec = VitSpec(embed_dim=32, depth=2, num_heads=2, mlp_dim=64, patch_size=8, grid=(4, 4))
    write_weights(tmp_path / "tiny.safetensors", random_weights(spec, 0))
    return tmp_path


def request(place: Path, *more: str, **changes: Any) -> Request:
    return Request(
        benchmarks=["in-knn", "xfer-logreg-folder"],
        overrides=SMALL,
        data=place / "leaves",
        more_data=[place / name for name in more],
        own_data=True,
        out=place / "runs",
        machine=Machine(device="cpu", workers=0),
        **changes,
    )


def found_by(place: Path) -> list[Any]:
    return [read_candidate(place / "tiny.safetensors")]


def test_each_data_set_has_a_column_named_after_it(place: Path) -> None:
    manifest = load_manifest()
    found = make_cells(manifest, found_by(place), request(place, "stones"))
    assert [cell.problem for cell in found] == [""] * 4
    assert len({cell.folder for cell in found}) == 4
    # published recipes too, whose folders say nothing of a changed protocol
    unchanged = replace(request(place, "stones"), overrides={})
    assert len({cell.folder for cell in make_cells(manifest, found_by(place), unchanged)}) == 4
    assert [cell.label.rpartition(" ")[2] for cell in found] == ["leaves", "stones"] * 2
    for cell in found:
        evaluate(cell.run, cell.folder)
    results = read_results(place / "runs")
    assert {r.notes.get("images") for r in results if r.benchmark == "in-knn"} == {15, 16}
    titles = {column.title for column in columns_of(results, manifest)}
    assert titles == {
        f"{name}: {title}" for name in ("leaves", "stones") for title in ("k-NN", "logistic")
    }
    assert not any(column.official for column in columns_of(results, manifest))
    page = make_report(place / "runs", manifest, compute=False)
    # the figures of each set stand under a title of their own
    assert all(f"<h3>{name}: k-NN</h3>" in page for name in ("leaves", "stones"))


def test_a_benchmark_runs_where_it_fits_and_says_why_where_it_fits_nowhere(place: Path) -> None:
    manifest, who = load_manifest(), found_by(place)
    (place / "bare").mkdir()
    found = make_cells(manifest, who, request(place, "bare"))
    assert [cell.label.rpartition(" ")[2] for cell in found] == ["leaves"] * 2
    (place / "empty").mkdir()
    nowhere = Request(
        benchmarks=["in-knn"],
        data=place / "bare",
        more_data=[place / "empty"],
        own_data=True,
        out=place / "runs",
    )
    [cell] = make_cells(manifest, who, nowhere)
    assert "needs ImageNet" in cell.problem


def test_data_sets_that_a_table_could_not_tell_apart_are_refused(place: Path) -> None:
    (place / "other").mkdir()
    (place / "other" / "leaves").mkdir()
    with pytest.raises(UserError, match="two data folders are called 'leaves'"):
        request(place, "other/leaves")
    with pytest.raises(UserError, match="say --own-data --data DIR too"):
        Request(data=place / "leaves", more_data=[place / "stones"])


def test_the_command_line_takes_further_data() -> None:
    parser = Parser(prog="run")
    add_arguments(parser)
    manifest = load_manifest()
    words = ["x.pth", "--only", "in-knn", "--own-data", "--data", "/a", "--more-data", "/b"]
    asked = request_of(parser.parse_args(words), manifest)
    assert (asked.data, list(asked.more_data), asked.own_data) == (Path("/a"), [Path("/b")], True)
    one = request_of(parser.parse_args(["x.pth", "--data", "/a"]), manifest)
    assert (one.data, list(one.more_data), one.own_data) == (Path("/a"), [], False)
