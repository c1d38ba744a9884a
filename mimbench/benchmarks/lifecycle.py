"""One life cycle of a run: claim the folder, set aside what is stale, configure, run, record.

`run_here` does all of it in this process; the runner and the cluster call `begin`, start processes,
and record a failure where no result came back. Nothing else writes a run's configuration or result.
"""

import logging
import os
from typing import Any

from mimbench.benchmarks.basis import number_in, outdated
from mimbench.benchmarks.cells import Cell
from mimbench.benchmarks.evaluation import evaluate
from mimbench.benchmarks.run_config import (
    CONFIG_FILE,
    LEFT_FILE,
    NOT_PROTOCOL,
    RESULT_FILE,
    STALE,
    RunConfig,
    changed,
    read_run_config,
    write_run_config,
)
from mimbench.data.digest import DataDigest
from mimbench.model import Weights
from mimbench.results.record import Result, provenance, read_result, write_result
from mimbench.system.errors import UserError
from mimbench.system.lock import folder_lock

logger = logging.getLogger(__name__)


def run_here(cell: Cell, *, fresh: bool = False, weights: Weights | None = None) -> Result:
    """Return the cell's result, run in this process unless it is done; of several ranks one records.

    Args:
        cell: What to run.
        fresh: Run a done cell again; the old folder is kept aside.
        weights: The checkpoint, where it is in memory already.
    """
    if cell.problem:
        raise UserError(cell.problem)
    if (done := finished(cell)) and not fresh:
        logger.info("%s: done before, see %s", cell.label, cell.folder)
        return done
    main = int(os.environ.get("RANK", "0")) == 0
    if main:
        begin(cell, fresh=fresh)
    try:
        return evaluate(cell.run, cell.folder, weights)
    except Exception as error:
        if main:
            record_failure(cell, str(error) or type(error).__name__)
        raise


def begin(cell: Cell, *, fresh: bool = False) -> None:
    """Make the cell's folder ready: stale content aside, no old result, the configuration written.

    Raises:
        UserError: Another process works in the folder, which is left as it is.
    """
    with folder_lock(cell.folder, f"another process is running {cell.run.benchmark}"):
        set_aside(cell, fresh=fresh)
        cell.folder.mkdir(parents=True, exist_ok=True)
        for name in (RESULT_FILE, LEFT_FILE):
            (cell.folder / name).unlink(missing_ok=True)
        write_run_config(cell.folder / CONFIG_FILE, cell.run)


def finished(cell: Cell) -> Result | None:
    """Return the cell's result if it is done already under the same protocol, on the same data."""
    result = number_in(cell.folder)
    if result is None or result.protocol != cell.protocol:
        return None
    if not same_data(result.data_digest, cell.run.data_digest):
        return None
    if outdated(result, cell.folder.parent):
        return None
    return result if result.weights["digest"] == cell.run.weights_digest else None


def set_aside(cell: Cell, *, fresh: bool = False) -> None:
    """Move what another recipe or version left in the cell's folder out of the way."""
    path = cell.folder / CONFIG_FILE
    if not path.is_file():
        return
    before = read_run_config(path)
    failed = cell.folder / RESULT_FILE
    stale = failed.is_file() and read_result(failed).protocol not in ("", cell.protocol)
    known = same_data(before.data_digest, cell.run.data_digest)
    same = _identity(before, cell.free_fields) == _identity(cell.run, cell.free_fields)
    if not fresh and not stale and known and same:
        return
    number = 1
    while (aside := cell.folder.with_name(f"{cell.folder.name}{STALE}{number}")).exists():
        number += 1
    logger.info(
        "%s: an earlier run with another recipe or other data is kept as %s", cell.label, aside.name
    )
    cell.folder.rename(aside)


def same_data(a: DataDigest, b: DataDigest) -> bool:
    """Return whether two runs saw the same data, as far as it is known of both."""
    return not (a.digest and b.digest) or a.digest == b.digest


def _identity(run: RunConfig, free_fields: frozenset[str]) -> tuple[Any, ...]:
    free = NOT_PROTOCOL - {"seed"} | free_fields
    config = {k: v for k, v in run.config.items() if k not in free}
    return run.task, run.dataset, run.weights_digest, run.which, config


def record_failure(cell: Cell, error: str) -> None:
    """Leave a result that says the cell failed, so that the table can say so too."""
    result = Result(
        benchmark=cell.run.benchmark,
        task=cell.run.task,
        version=cell.version,
        main_metric=cell.main_metric,
        profile=cell.run.profile,
        protocol=cell.protocol,
        metrics={},
        config={"dataset": cell.run.dataset},
        weights=cell.candidate.weights,
        status="failed",
        error=error,
        provenance=provenance(device="", seed=0, seconds=0.0, peak_memory_mb=0.0),
        overrides=changed(cell.run),
    )
    write_result(cell.folder / RESULT_FILE, result)
