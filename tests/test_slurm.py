"""Cells as jobs of a real Slurm: arrays, dependencies, preemption, a job that vanishes."""

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mimbench.benchmarks.cells import Cell
from mimbench.results.record import read_result
from mimbench.suite.running.cluster import Cluster, submit_cells
from mimbench.suite.running.runner import FinishedCell
from tests.support.light_cells import LightJob, cell

ROOT = Path(__file__).parents[1]
NODE = ROOT / "tests" / "support" / "slurm_node.sh"
LACKING = [n for n in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(n)]
pytestmark = pytest.mark.skipif(
    bool(LACKING), reason=f"no Slurm here (Debian: slurm-wlm, munge): lacks {', '.join(LACKING)}"
)


def is_within(link: Path, folder: Path) -> bool:
    """Tell whether a process's working folder lies in `folder`; a process may have ended meanwhile."""
    try:
        return link.readlink().is_relative_to(folder)
    except OSError:
        return False


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm of one node, for this file."""
    pytest.importorskip("submitit", reason="the extra 'scale' is not installed")
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([NODE, "start", folder], check=True, timeout=60)
    before = dict(os.environ)
    os.environ |= {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), before.get("PYTHONPATH", "")]),
    }
    yield
    subprocess.run([NODE, "stop", folder], check=True, timeout=60)
    assert not [p for p in Path("/proc").glob("[0-9]*/cwd") if is_within(p, folder)]
    os.environ.clear()
    os.environ.update(before)


def cluster(**parameters: object) -> Cluster:
    usual = {"slurm_partition": "low", "timeout_min": 60}
    return Cluster(gpus=0, poll=0.3, job=LightJob, parameters={**usual, **parameters})


def squeue(what: str = "%i %T %E") -> str:
    command = ["squeue", "--array", "--noheader", "--format", what]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def until(condition: str, folder: Path) -> None:
    """Wait for a cell's child to have started `condition` times."""
    for _ in range(300):
        if (folder / "starts").exists() and (folder / "starts").read_text() == condition:
            return
        time.sleep(0.1)
    raise AssertionError(f"{folder} was not started {len(condition)} times: {squeue()}")


def submitted(cells: list[Cell], how: Cluster) -> tuple[threading.Thread, list[FinishedCell]]:
    ended: list[FinishedCell] = []
    thread = threading.Thread(target=lambda: ended.extend(submit_cells(cells, how)))
    thread.start()
    return thread, ended


def test_one_array_for_each_wave_and_a_failed_cell_is_marked(tmp_path: Path) -> None:
    cells = [
        cell(tmp_path, "probe", after=("bank",)),
        cell(tmp_path, "bank", seconds=1.0),
        cell(tmp_path, "bad", fail=True),
    ]
    thread, ended = submitted(cells, cluster())
    until("x", cells[1].folder)
    queue = squeue("%i %T %E %j")
    thread.join(timeout=60)
    assert {e.cell.run.benchmark: e.status for e in ended} == {
        "probe": "done",
        "bank": "done",
        "bad": "failed",
    }
    assert "afterany:" in queue, queue
    bank, probe = (c.folder / "result.json" for c in (cells[1], cells[0]))
    assert bank.stat().st_mtime <= probe.stat().st_mtime
    assert read_result(cells[2].folder / "result.json").error == "broken on purpose"
    jobs = sorted(p.name for p in (tmp_path / "slurm").glob("*_submitted.pkl"))
    assert [name.count("_") for name in jobs] == [2, 2, 1], "an array of two, then one job"
    assert [e.status for e in submit_cells(cells[:2], cluster())] == ["skipped"] * 2


def test_a_preempted_cell_is_queued_again_and_ends_done(tmp_path: Path) -> None:
    """A job of a stronger partition takes the whole node; the cell comes back when it is over."""
    low = cell(tmp_path, "long", seconds=60, later=0.1)
    thread, ended = submitted([low], cluster(cpus_per_task=os.cpu_count()))
    until("x", low.folder)
    subprocess.run(
        ["srun", "--partition", "high", "--exclusive", "sleep", "1"], check=True, timeout=60
    )
    thread.join(timeout=90)
    assert [e.status for e in ended] == ["done"]
    assert (low.folder / "starts").read_text() == "xx"


def test_the_warning_signal_requeues_and_a_cancelled_cell_is_a_failed_one(tmp_path: Path) -> None:
    """Slurm's warning ahead of the time limit (USR2) reaches a cell as a request to save."""
    cells = [
        cell(tmp_path, "warned", seconds=60, later=0.1),
        cell(tmp_path, "cancelled", seconds=60),
    ]
    thread, ended = submitted(cells, cluster())
    for one in cells:
        until("x", one.folder)
    warned, cancelled = sorted(
        p.name.removesuffix("_submitted.pkl") for p in (tmp_path / "slurm").glob("*_submitted.pkl")
    )
    subprocess.run(["scancel", cancelled], check=True)
    subprocess.run(["scancel", warned, "--signal", "USR2"], check=True)
    thread.join(timeout=90)
    assert {e.cell.run.benchmark: e.status for e in ended} == {
        "warned": "done",
        "cancelled": "failed",
    }
    assert (cells[0].folder / "starts").read_text() == "xx"
    assert json.loads((cells[1].folder / "result.json").read_text())["status"] == "failed"
