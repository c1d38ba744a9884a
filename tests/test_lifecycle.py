"""One life cycle of a run: done, failed and fresh runs go through the same steps everywhere."""

import ast
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mimbench.benchmarks.cells import Cell
from mimbench.benchmarks.lifecycle import begin, finished, run_here
from mimbench.benchmarks.run_config import read_run_config, task_protocol
from mimbench.results.record import read_result
from mimbench.suite.running.runner import run_cells
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.system.lock import folder_lock
from mimbench.task import load_task, traits_of
from mimbench.vit.weights import VitSpec, random_weights
from tests.support.light_cells import cell, child

ROOT = Path(__file__).parents[1]
TASK = """
from dataclasses import dataclass
from pathlib import Path
from mimbench.task import TaskResult, Traits
VERSION, MAIN_METRIC = 1, "top1"
TRAITS = Traits(lower_is_better=True, free_fields=frozenset({"tiles"}))
@dataclass(frozen=True, kw_only=True)
class Config:
    state: Path
    seed: int = 0
    seconds: float = 0.0
    answer: float = 1.0
    tiles: int = 1
def run(weights, config, out):
    word = config.state.read_text()
    if word == "broken":
        raise RuntimeError("cannot go on")
    if word == "left":
        raise SystemExit(75)
    return TaskResult(metrics={} if word == "silent" else {"top1": float(word)})
"""


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    (tmp_path / "lifecycle_task.py").write_text(TASK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "lifecycle_task", raising=False)
    made = cell(tmp_path, "one", state=str(tmp_path / "state"))
    run = replace(made.run, task="lifecycle_task", weights_digest=WEIGHTS.digest)
    config = from_mapping(load_task("lifecycle_task").Config, run.config)
    traits = traits_of(load_task("lifecycle_task"))
    protocol = task_protocol("lifecycle_task", 1, run.dataset, config, traits)
    return replace(made, run=run, protocol=protocol, free_fields=traits.free_fields)


WEIGHTS = random_weights(
    VitSpec(embed_dim=48, depth=2, num_heads=3, mlp_dim=96, patch_size=8, grid=(4, 4)), seed=0
)


def test_failure_success_done_and_fresh(one: Cell, tmp_path: Path) -> None:
    state, path = tmp_path / "state", one.folder / "result.json"
    state.write_text("broken")
    with pytest.raises(RuntimeError, match="cannot go on"):
        run_here(one, weights=WEIGHTS)
    assert (read_result(path).status, read_result(path).error) == ("failed", "cannot go on")
    assert finished(one) is None
    state.write_text("70")
    assert run_here(one, weights=WEIGHTS).metrics == {"top1": 70.0}
    state.write_text("80")
    assert run_here(one, weights=WEIGHTS).metrics == {"top1": 70.0}, "done before"
    assert run_here(one, weights=WEIGHTS, fresh=True).metrics == {"top1": 80.0}
    assert read_result(path).metrics == {"top1": 80.0}
    assert len(list(one.folder.parent.iterdir())) == 2, "the old run is kept aside"


def test_a_run_that_was_asked_to_leave_is_no_failure(one: Cell, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("left")
    with pytest.raises(SystemExit):
        run_here(one, weights=WEIGHTS)
    assert not (one.folder / "result.json").exists()


def test_a_metric_that_was_not_measured_is_an_error(one: Cell, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("silent")
    with pytest.raises(UserError, match="promises the metric 'top1' but returned nothing"):
        run_here(one, weights=WEIGHTS)


def changed(cell: Cell, **fields: object) -> Cell:
    return replace(cell, run=replace(cell.run, config={**cell.run.config, **fields}))


def test_fields_that_move_no_number_are_compared_nowhere(one: Cell, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("70")
    result = run_here(one, weights=WEIGHTS)
    assert result.lower_is_better
    assert "answer" in result.config
    assert "tiles" not in result.config
    (one.folder / "result.json").unlink()
    begin(changed(one, tiles=8))
    assert read_run_config(one.folder / "config.yaml").config["tiles"] == 8
    assert [p.name for p in one.folder.parent.iterdir()] == ["one"], "the run goes on"
    again = run_here(changed(one, tiles=8), weights=WEIGHTS)
    assert again.protocol == result.protocol
    begin(changed(one, answer=2.0))
    assert len(list(one.folder.parent.iterdir())) == 2, "another recipe: the old run is kept aside"


def test_a_folder_in_use_is_left_as_it_is(one: Cell, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("70")
    run_here(one, weights=WEIGHTS)
    before = {p.name: p.read_bytes() for p in one.folder.iterdir() if p.name != ".lock"}
    with folder_lock(one.folder, "busy"):
        with pytest.raises(UserError, match="another process is running one"):
            begin(one, fresh=True)
        [ended] = run_cells([changed(one, answer=2.0)], command=child, fresh=True)
    assert ended.status == "failed"
    assert {p.name: p.read_bytes() for p in one.folder.iterdir() if p.name != ".lock"} == before
    assert len(list(one.folder.parent.iterdir())) == 1


@pytest.mark.parametrize("name", ["write_run_config", "write_result"])
def test_configurations_and_results_are_written_in_one_place_each(name: str) -> None:
    """A forecast writes its trial's configuration into a scratch folder; nothing else may."""
    allowed = {
        "write_run_config": {"benchmarks/lifecycle.py", "suite/costs/forecast.py"},
        "write_result": {"benchmarks/lifecycle.py", "benchmarks/evaluation.py"},
    }
    found = {
        path.relative_to(ROOT / top).as_posix()
        for top in ("mimbench", "pretrain", "transfer", "knn")
        for path in (ROOT / top).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    }
    assert found == allowed[name]
