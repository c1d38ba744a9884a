"""Measure the recipe gap of a finished run: its task again under each neighbouring setting that it declares.

The numbers go into a file beside the result, one by one, so that an interrupted measurement goes on. The
task's own `run` does the work: where only pooling, neighbours or regularisation change, it finds the
features in the bank that the run itself left.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mimbench.benchmarks.evaluation import check_result, ready
from mimbench.benchmarks.run_config import CONFIG_FILE, RESULT_FILE, read_run_config
from mimbench.model import Weights
from mimbench.results.gap import Gap, Nearby, write_gap
from mimbench.results.record import Result, read_result
from mimbench.system.config import to_mapping
from mimbench.system.errors import UserError
from mimbench.system.lock import folder_lock
from mimbench.system.memory import is_out_of_memory
from mimbench.task import Task, traits_of

logger = logging.getLogger(__name__)
REFUSALS = (UserError, AssertionError, ValueError, RuntimeError)
"""How a setting turns out to be impossible: a network of the user's own refuses a size in its own way."""
SCRATCH = "gap-"
"""How folders begin in which a neighbour runs; a killed one leaves it."""


def measure_gap(folder: Path, weights: Weights | None = None) -> Gap | None:
    """Measure what is lacking of a run's recipe gap; None if its task declares no neighbours.

    Args:
        folder: Of a finished run.
        weights: The checkpoint, where it is in memory already.
    """
    with folder_lock(folder, f"another process is at work in {folder}"):
        run, result = read_run_config(folder / CONFIG_FILE), read_result(folder / RESULT_FILE)
        if result.status != "done":
            raise UserError(f"{folder} holds no number yet; run the cell first, then its gap")
        task, config, weights = ready(run, weights)
        nearby = traits_of(task).nearby
        if nearby is None:
            return None
        for left in folder.glob(f"{SCRATCH}*"):
            shutil.rmtree(left)
        asked = nearby(weights.spec, config, result.notes)
        gap = result.gap or Gap(
            metric=result.main_metric,
            value=result.metrics[result.main_metric],
            built_on=result.checksum,
        )
        for place, (setting, how) in enumerate(asked.items(), start=1):
            if setting in gap.values or setting in gap.skipped:
                continue
            logger.info("recipe gap: %s (%d of %d)", setting, place, len(asked))
            gap = _with(gap, setting, how, task, config, result, weights, folder)
            write_gap(folder, gap)
        gap = replace(gap, complete=True)
        write_gap(folder, gap)
    logger.info("%s", in_words(gap))
    return gap


def _with(  # noqa: PLR0913 - one neighbour takes all that the run took
    gap: Gap,
    setting: str,
    how: Any,
    task: Task,
    config: Any,
    result: Result,
    weights: Weights,
    folder: Path,
) -> Gap:
    """Return the gap with one more setting, measured or skipped."""
    if isinstance(how, str):
        if how not in result.metrics:
            return replace(gap, skipped={**gap.skipped, setting: f"the run has no metric '{how}'"})
        found = Nearby(setting=setting, value=result.metrics[how], changed={"metric": how})
        return replace(gap, settings=(*gap.settings, found))
    began = time.monotonic()
    try:
        # a task may leave files: those of a neighbour are nobody's
        with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as scratch:
            answer = task.run(weights, how, Path(scratch))
    except REFUSALS as error:
        if is_out_of_memory(error):
            raise
        reason = str(error) or type(error).__name__
        logger.warning("recipe gap: %s is not possible here: %s", setting, reason)
        return replace(gap, skipped={**gap.skipped, setting: reason})
    check_result(result.task, task.MAIN_METRIC, answer)
    value = float(answer.metrics[task.MAIN_METRIC])
    logger.info("recipe gap: %s %.2f, %.0f s", setting, value, time.monotonic() - began)
    found = Nearby(setting=setting, value=value, changed=differing(task, config, how))
    return replace(gap, settings=(*gap.settings, found))


def differing(task: Task, config: Any, other: Any) -> dict[str, Any]:
    """Return the fields that move the number and differ, with the neighbour's values."""
    canonical = traits_of(task).canonical or (lambda same: same)
    before, after = (_flat(to_mapping(canonical(c))) for c in (config, other))
    return {name: value for name, value in after.items() if before.get(name) != value}


def _flat(config: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in config.items():
        inside = isinstance(value, Mapping)
        out |= _flat(value, f"{at}{key}.") if inside else {f"{at}{key}": value}
    return out


def in_words(gap: Gap) -> str:
    """Return the finding in one line."""
    left = f", {len(gap.skipped)} not possible" if gap.skipped else ""
    return (
        f"recipe gap of {gap.metric} {gap.value:.2f}: {gap.low:.2f} to {gap.high:.2f} under "
        f"{len(gap.settings)} neighbouring settings{left}"
    )
