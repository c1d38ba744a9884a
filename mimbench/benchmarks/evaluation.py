"""Evaluate one run in this process: the only place where a task's `run` is called and a result written."""

import logging
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mimbench.benchmarks.records import keep_outcomes, store_pictures
from mimbench.benchmarks.run_config import (
    RESULT_FILE,
    RunConfig,
    changed,
    protocol_config,
    task_protocol,
)
from mimbench.checkpoints.files import read_weights
from mimbench.model import Weights
from mimbench.networks.module import ModuleWeights
from mimbench.results.record import NOT_AUDITED, Result, provenance, write_result
from mimbench.scores.confidence import Interval
from mimbench.scores.outcomes import faithful
from mimbench.system.config import from_mapping, to_mapping
from mimbench.system.errors import UserError
from mimbench.system.lock import folder_lock
from mimbench.system.memory import peak_memory
from mimbench.system.runtime import pick_device, tf32_used
from mimbench.task import Task, TaskResult, load_task, traits_of

logger = logging.getLogger(__name__)


def evaluate(run: RunConfig, out: Path, weights: Weights | None = None) -> Result:
    """Run the task in `out` and write its result last; only rank 0 writes.

    Args:
        run: What to run.
        out: The run's folder.
        weights: The checkpoint, where it is in memory already; by default its file is read.
    """
    if _rank():
        return _evaluate(run, out, weights)
    with folder_lock(out, f"another process is running {run.benchmark} in {out}"):
        result = _evaluate(run, out, weights)
        write_result(out / RESULT_FILE, result)
    return result


def ready(run: RunConfig, weights: Weights | None = None) -> tuple[Task, Any, Weights]:
    """Return a run's task, its configuration and its weights, which are still those it was planned for.

    Args:
        run: What to run.
        weights: The checkpoint, where it is in memory already; by default its file is read.
    """
    task = load_task(run.task)
    config = from_mapping(task.Config, run.config, f"{run.benchmark}.config")
    if weights is None:
        weights = read_weights(run.checkpoint, which=run.which, num_heads=run.num_heads)
    if run.weights_digest and weights.digest != run.weights_digest:
        raise UserError(
            f"{run.checkpoint} changed since the run was planned: digest {weights.digest[:12]}, "
            f"expected {run.weights_digest[:12]}; start the run again"
        )
    return task, config, weights


def _evaluate(run: RunConfig, out: Path, weights: Weights | None) -> Result:
    task, config, weights = ready(run, weights)
    began = time.monotonic()
    found = task.run(weights, config, out)
    check_result(run.task, task.MAIN_METRIC, found)
    seconds = time.monotonic() - began
    result = make_result(run, task, config, weights, found, seconds=seconds)
    # resampling takes a while, and only the main process's result is written
    return keep(result, found, task, out) if _rank() == 0 else result


def make_result(
    run: RunConfig,
    task: Task,
    config: Any,
    weights: Weights,
    found: TaskResult,
    *,
    seconds: float,
) -> Result:
    """Return the record of a finished run, without what lies in files of its own."""
    device = _device_of(config)
    rounded = tf32_used(device)
    traits = traits_of(task)
    return Result(
        benchmark=run.benchmark,
        task=run.task,
        version=task.VERSION,
        main_metric=task.MAIN_METRIC,
        lower_is_better=traits.lower_is_better,
        trains=traits.trains(config) if callable(traits.trains) else traits.trains,
        ran={**found.ran, **({"fp32": "rounded to TF32"} if rounded else {})},
        profile=run.profile,
        protocol=task_protocol(
            run.task, task.VERSION, run.dataset, config, traits, weights.spec, run.overrides
        ),
        metrics=dict(found.metrics),
        config=protocol_config(run.dataset, config, traits, weights.spec, run.overrides),
        weights=describe_weights(weights, run.name),
        status="done",
        provenance=provenance(
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "",
            seed=int(getattr(config, "seed", 0)),
            seconds=round(seconds, 3),
            peak_memory_mb=peak_memory(device) / 2**20,
            tf32=rounded,
        ),
        draws=found.draws,
        beside=dict(traits.beside),
        built_on=dict(found.built_on),
        overrides=changed(run),
        data=str(getattr(config, "data", "")),
        data_digest=run.data_digest,
        resolved=to_mapping(traits.resolved(weights.spec, config)) if traits.resolved else {},
        figures=tuple(found.figures),
        notes=dict(found.notes),
    )


def keep(result: Result, found: TaskResult, task: Task, out: Path) -> Result:
    """Write outcomes and pictures into the run's folder; return the result that refers to them."""
    sound = intervals(found)
    return replace(
        result,
        intervals={metric: interval.half for metric, interval in sound.items()},
        interval_errors={m: interval.error for m, interval in sound.items() if interval.error},
        outcomes=tuple(keep_outcomes(out, found.outcomes, task)),
        pictures=tuple(store_pictures(out, found.pictures)),
    )


def intervals(found: TaskResult) -> dict[str, Interval]:
    """Return metric -> 95 % interval over test images, for metrics that the outcomes reproduce."""
    sound = faithful(found.outcomes, found.metrics)
    offered = {s.metric for kept in found.outcomes for s in kept.statistics()}
    for metric in offered & found.metrics.keys() - sound.keys():
        logger.info("%s is no mean over the images of one set of outcomes: no interval", metric)
    return {metric: statistic.interval() for metric, statistic in sound.items()}


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _device_of(config: Any) -> torch.device:
    if not hasattr(config, "machine"):
        return torch.device("cpu")
    if config.machine.device != "cpu" and torch.cuda.is_initialized():
        # the one that the task took: to pick anew would put every process on the first GPU
        return torch.device("cuda", torch.cuda.current_device())
    return pick_device(config.machine.device)


def describe_weights(weights: Weights, name: str = "") -> dict[str, str]:
    """Return what a result says about the weights."""
    return {
        "name": name or weights.name,
        "digest": weights.digest,
        "format": weights.format,
        "which": weights.which,
        "model": weights.spec.model,
        **({"origin": weights.origin} if weights.origin else {}),
        **_of_module(weights),
    }


def _of_module(weights: Weights) -> dict[str, str]:
    """Return what a row says of a user's module: who it is, and that nobody looked into it."""
    if not isinstance(weights, ModuleWeights):
        return {}
    return {"audit": NOT_AUDITED, "state": weights.state, "source": weights.source}


def check_result(task: str, main: str, found: object) -> None:
    """Refuse anything but a `TaskResult` with finite metrics, the main one among them."""
    if not isinstance(found, TaskResult):
        raise UserError(
            f"run of task {task} returned {type(found).__name__}, expected a mimbench.task.TaskResult"
        )
    if main not in found.metrics:
        named = ", ".join(found.metrics) or "nothing"
        raise UserError(f"task {task} promises the metric '{main}' but returned {named}")
    bad = {
        k: v
        for k, v in found.metrics.items()
        if not isinstance(v, (int, float)) or not math.isfinite(v)
    }
    if bad:
        raise UserError(
            f"task {task} returned metrics that are not finite numbers: {bad}; "
            "leave out what was not measured"
        )
