"""Cells as jobs, with submitit's local executor."""

from dataclasses import replace
from pathlib import Path

import pytest

from mimbench.results.record import read_result
from mimbench.suite.running.cell_job import CellJob
from mimbench.suite.running.cluster import Cluster, levels, submit_cells
from mimbench.suite.running.launch import eval_command
from mimbench.system.lock import folder_lock
from tests.support.light_cells import LightJob, cell


def test_cells_wait_for_what_they_need() -> None:
    out = Path("x")
    cells = [
        cell(out, "probe", after=("bank",)),
        cell(out, "bank"),
        cell(out, "more", after=("probe",)),
        cell(out, "free", after=("absent",)),
    ]
    assert [[c.run.benchmark for c in wave] for wave in levels(cells)] == [
        ["bank", "free"],
        ["probe"],
        ["more"],
    ]
    loop = [cell(out, "a", after=("b",)), cell(out, "b", after=("a",))]
    assert [len(wave) for wave in levels(loop)] == [2]


def test_jobs_run_fail_and_are_skipped_the_second_time(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="the extra 'scale' is not installed")
    cells = [
        cell(tmp_path, "probe", after=("bank",)),
        cell(tmp_path, "bank"),
        cell(tmp_path, "bad", fail=True),
    ]
    cluster = Cluster(kind="local", gpus=0, poll=0.1, job=LightJob)
    ended = submit_cells(cells, cluster)
    assert {e.cell.run.benchmark: e.status for e in ended} == {
        "probe": "done",
        "bank": "done",
        "bad": "failed",
    }
    bank, probe = (c.folder / "result.json" for c in (cells[1], cells[0]))
    assert bank.stat().st_mtime <= probe.stat().st_mtime
    assert read_result(cells[2].folder / "result.json").error == "broken on purpose"
    again = submit_cells(cells[:2], cluster)
    assert [e.status for e in again] == ["skipped", "skipped"]


def test_a_cell_that_another_process_runs_is_not_submitted(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="the extra 'scale' is not installed")
    busy = cell(tmp_path, "busy")
    with folder_lock(busy.folder, "at work"):
        [ended] = submit_cells([busy], Cluster(kind="local", gpus=0, poll=0.1, job=LightJob))
    assert ended.status == "failed"
    assert [p.name for p in busy.folder.iterdir()] == [".lock"]


def test_a_preempted_job_asks_to_be_queued_again() -> None:
    submitit = pytest.importorskip("submitit", reason="the extra 'scale' is not installed")
    job = CellJob("folder", 8, 1)
    asked = job.checkpoint()
    assert isinstance(asked, submitit.helpers.DelayedSubmission)
    assert (asked.function.folder, asked.function.gpus, asked.function.nodes) == ("folder", 8, 1)


def test_several_nodes_meet_on_the_first() -> None:
    command = eval_command(Path("runs/x"), 8, 4, endpoint="node1:29400")
    assert command[command.index("--nnodes") + 1] == "4"
    assert command[command.index("--rdzv-endpoint") + 1] == "node1:29400"
    assert replace(Cluster(), nodes=2).nodes == 2
