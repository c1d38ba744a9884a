"""Run one order in this process: the only place where a task's `run` is called and a result written."""

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mimbench.benchmarks.orders import RESULT_FILE, Order, changed, order_protocol, protocol_config
from mimbench.checkpoints.files import read_weights
from mimbench.results import Result, provenance, write_result
from mimbench.scores.outcomes import intervals, keep_matches
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.system.lock import folder_lock
from mimbench.system.memory import peak_memory
from mimbench.system.runtime import pick_device
from mimbench.task import Task, load_task
from mimbench.vit.sizes import model_name
from mimbench.vit.weights import VitWeights

logger = logging.getLogger(__name__)


def evaluate(order: Order, out: Path) -> Result:
    """Run the order's task in `out` and write its result last; only rank 0 writes."""
    if _rank():
        return _evaluate(order, out)
    with folder_lock(out, f"another process is running {order.benchmark} in {out}"):
        result = _evaluate(order, out)
        write_result(out / RESULT_FILE, result)
    return result


def _evaluate(order: Order, out: Path) -> Result:
    task = load_task(order.task)
    config = from_mapping(task.Config, order.config, f"{order.benchmark}.config")
    weights = read_weights(order.checkpoint, which=order.which, num_heads=order.num_heads)
    if order.weights_digest and weights.digest != order.weights_digest:
        raise UserError(
            f"{order.checkpoint} changed since the run was planned: digest {weights.digest[:12]}, "
            f"expected {order.weights_digest[:12]}; start the run again"
        )
    began = time.monotonic()
    metrics = task.run(weights, config, out)
    check_metrics(order.task, task.MAIN_METRIC, metrics)
    seconds = time.monotonic() - began
    return make_result(order, task, config, weights, metrics, seconds=seconds, out=out)


def make_result(
    order: Order,
    task: Task,
    config: Any,
    weights: VitWeights,
    metrics: Mapping[str, float],
    *,
    seconds: float,
    out: Path,
) -> Result:
    """Return the record of a finished run."""
    device = _device_of(config)
    return Result(
        benchmark=order.benchmark,
        task=order.task,
        version=task.VERSION,
        main_metric=task.MAIN_METRIC,
        profile=order.profile,
        protocol=order_protocol(order.task, task.VERSION, order.dataset, config),
        metrics=dict(metrics),
        config=protocol_config(order.dataset, config),
        weights=describe_weights(weights, order.name),
        status="done",
        provenance=provenance(
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "",
            seed=int(getattr(config, "seed", 0)),
            seconds=round(seconds, 3),
            peak_memory_mb=peak_memory(device) / 2**20,
        ),
        # matching and resampling take a while, and only the main process's result is written
        extra=_extra(out, order, config, metrics) if _rank() == 0 else {},
    )


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _device_of(config: Any) -> torch.device:
    if not hasattr(config, "machine"):
        return torch.device("cpu")
    if config.machine.device != "cpu" and torch.cuda.is_initialized():
        # the one that the task took: to pick anew would put every process on the first GPU
        return torch.device("cuda", torch.cuda.current_device())
    return pick_device(config.machine.device)


def describe_weights(weights: VitWeights, name: str = "") -> dict[str, str]:
    """Return what a result says about the weights."""
    spec = weights.spec
    return {
        "name": name or weights.name,
        "digest": weights.digest,
        "format": weights.format,
        "which": weights.which,
        "model": model_name(spec.embed_dim, spec.depth, spec.patch_size),
    }


def check_metrics(task: str, main: str, metrics: Mapping[str, float]) -> None:
    """Refuse metrics that are no finite numbers or lack the main one."""
    if main not in metrics:
        found = ", ".join(metrics) or "nothing"
        raise UserError(f"task {task} promises the metric '{main}' but returned {found}")
    bad = {
        k: v for k, v in metrics.items() if not isinstance(v, (int, float)) or not math.isfinite(v)
    }
    if bad:
        raise UserError(f"task {task} returned metrics that are not finite numbers: {bad}")


def _extra(out: Path, order: Order, config: Any, metrics: Mapping[str, float]) -> dict[str, Any]:
    path = out / "extra.json"
    extra: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    extra |= changed(order)
    data = str(getattr(config, "data", ""))
    keep_matches(out, Path(data))
    if found := intervals(out, metrics):
        extra["intervals"] = found
    extra["data"] = data
    return extra
