"""Cells as Slurm jobs through submitit: one array for each level of dependency, requeued on preemption."""

import logging
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimbench.benchmarks.cells import Cell
from mimbench.benchmarks.lifecycle import record_failure
from mimbench.benchmarks.run_config import LEFT_FILE, LOG_FILE, RESULT_FILE
from mimbench.results.record import read_result
from mimbench.suite.running.cell_job import CellJob
from mimbench.suite.running.runner import FinishedCell, claimed, figure, settle
from mimbench.suite.running.screen import last_lines
from mimbench.system.errors import UserError

logger = logging.getLogger(__name__)
ABSENT = 3
"""Polls without a trace of a job after which it counts as gone."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where and how jobs run."""

    kind: str = "slurm"
    """slurm, or local: submitit's own executor on this machine, for tests."""
    gpus: int = 1
    """For each node."""
    nodes: int = 1
    """For heavy tasks; the others take one."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """submitit's: timeout_min, slurm_partition, slurm_account, mem_gb..."""
    poll: float = 5.0
    job: Callable[[str, int, int], Any] = CellJob
    """What runs a cell, made from its folder, GPUs and nodes."""


def levels(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Return cells in waves: each wave waits for the one before it."""
    rest, waves = list(cells), []
    while rest:
        names = {(c.candidate.folder, c.run.benchmark) for c in rest}
        free = [c for c in rest if not any((c.candidate.folder, name) in names for name in c.after)]
        waves.append(free or rest)
        rest = [c for c in rest if c not in waves[-1]]
    return waves


def submit_cells(
    cells: Sequence[Cell], cluster: Cluster, *, fresh: bool = False
) -> list[FinishedCell]:
    """Submit the cells that are not done, wait for them, return how each ended.

    Args:
        cells: What to run.
        cluster: Where.
        fresh: Run done cells again.
    """
    ended, waiting = settle(cells, fresh=fresh)
    jobs: list[tuple[Cell, Any]] = []
    free = [cell for cell in waiting if claimed(cell, fresh=fresh)]
    ended += [FinishedCell(cell, "failed") for cell in waiting if cell not in free]
    for wave in levels(free):
        before = [job for _, job in jobs]
        heavy = [c for c in wave if c.effort and cluster.nodes > 1]
        for some, nodes in ((heavy, cluster.nodes), ([c for c in wave if c not in heavy], 1)):
            jobs += _submit(some, nodes, before, cluster)
    _await([job for _, job in jobs], cluster)
    return [*ended, *(_conclude(cell, job) for cell, job in jobs)]


def _await(jobs: Sequence[Any], cluster: Cluster) -> None:
    """Wait for jobs; one that left the queue without a result (cancelled, node lost) is over too."""
    absent = dict.fromkeys((job.job_id for job in jobs), 0)
    while left := [j for j in jobs if absent[j.job_id] < ABSENT and not _over(j, cluster)]:
        time.sleep(cluster.poll)
        queued = _queued() if cluster.kind == "slurm" else None
        for job in left:
            gone = queued is not None and job.job_id not in queued
            absent[job.job_id] = absent[job.job_id] + 1 if gone else 0


def _over(job: Any, cluster: Cluster) -> bool:
    # submitit itself would ask `sacct` too, which complains where a cluster keeps no accounts
    return job.paths.result_pickle.exists() if cluster.kind == "slurm" else job.done()


def _queued() -> set[str] | None:
    """Return the user's jobs that wait or run; None where the scheduler does not answer."""
    command = ["squeue", "--me", "--array", "--noheader", "--format", "%i"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        logger.warning("squeue does not answer (%s); asking again", error)
        return None
    return set(done.stdout.split())


def _submit(
    cells: Sequence[Cell], nodes: int, before: Sequence[Any], cluster: Cluster
) -> list[tuple[Cell, Any]]:
    if not cells:
        return []
    if cluster.kind == "local":
        # submitit's local executor knows no dependencies
        for job in before:
            job.wait()
    executor = _executor(cells[0].folder.parents[1] / "slurm", nodes, before, cluster)
    with executor.batch():
        jobs = [
            executor.submit(cluster.job(str(c.folder.resolve()), cluster.gpus, nodes))
            for c in cells
        ]
    for cell, job in zip(cells, jobs, strict=True):
        logger.info("%s: job %s, log in %s", cell.label, job.job_id, cell.folder / LOG_FILE)
    return list(zip(cells, jobs, strict=True))


def _executor(folder: Path, nodes: int, before: Sequence[Any], cluster: Cluster) -> Any:
    try:
        import submitit  # noqa: PLC0415 - optional, only clusters need it
    except ModuleNotFoundError:
        raise UserError("--launcher slurm needs the package submitit; run ./setup.sh") from None
    try:
        executor = submitit.AutoExecutor(folder=str(folder), cluster=cluster.kind)
    except RuntimeError as error:
        raise UserError(
            f"no {cluster.kind} here: {error}; run on a login node, or without --launcher"
        ) from error
    parameters: dict[str, Any] = {
        "nodes": nodes,
        "tasks_per_node": 1,
        "timeout_min": 24 * 60,
        "name": "mimbench",
    }
    parameters |= {"gpus_per_node": cluster.gpus} if cluster.gpus else {}
    parameters |= cluster.parameters
    if cluster.kind == "slurm" and before:
        ids = sorted({str(job.job_id).split("_")[0] for job in before})
        extra = {
            "dependency": f"afterany:{':'.join(ids)}",
            **parameters.get("slurm_additional_parameters", {}),
        }
        parameters["slurm_additional_parameters"] = extra
    executor.update_parameters(**parameters)
    return executor


def _conclude(cell: Cell, job: Any) -> FinishedCell:
    path = cell.folder / RESULT_FILE
    if path.is_file() and read_result(path).status == "done":
        logger.info("%s: %s", cell.label, figure(read_result(path)))
        return FinishedCell(cell, "done")
    if (cell.folder / LEFT_FILE).exists():
        logger.warning("%s: interrupted; the same command goes on", cell.label)
        return FinishedCell(cell, "interrupted")
    tail = last_lines(cell.folder / LOG_FILE)
    shown = "\n".join(f"    {line}" for line in tail)
    logger.error(
        "%s: FAILED, job %s ended without a result; end of %s:\n%s",
        cell.label,
        job.job_id,
        cell.folder / LOG_FILE,
        shown,
    )
    record_failure(cell, tail[-1] if tail else f"job {job.job_id} ended without a result")
    return FinishedCell(cell, "failed")
