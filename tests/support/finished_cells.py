"""Finished classification cells of a tiny checkpoint, each kind of head, made in a second."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimbench.benchmarks.evaluation import evaluate
from mimbench.benchmarks.run_config import RunConfig, write_run_config
from mimbench.results.record import Result
from mimbench.vit.weights import VitWeights

CPU = {"device": "cpu", "workers": 0, "max_batch": 16}
FEATURES = {"image_size": 32, "resize": None}
HEADS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "tune": (
        "transfer.classification.finetune",
        {
            **FEATURES, "batch": 16, "epochs": 4, "warmup": 1, "lr": 0.02, "layer_decay": 0.9,
            "drop_path": 0.1, "precision": "fp32",
            "augment": {
                "randaugment": None, "scale": [0.9, 1.0], "flip": 0.0, "erase": 0.0,
                "mixup": 0.0, "cutmix": 0.0, "smoothing": 0.1,
            },
        },
    ),
    "linear": (
        "transfer.classification.linear",
        {
            **FEATURES, "choices": ["avg", "cls"], "learning_rates": [0.1, 1.0],
            "batch": 16, "norm_batch": 16, "epochs": 3, "warmup": 0,
        },
    ),
    "linear-best": (
        "transfer.classification.linear",
        {
            **FEATURES, "choices": ["avg"], "learning_rates": [0.1, 1.0], "optimiser": "sgd",
            "batch_norm": False, "batch": 16, "epochs": 4, "warmup": 0, "report": "best",
        },
    ),
    "attentive": (
        "transfer.classification.attentive",
        {
            **FEATURES, "queries": 4, "learning_rates": [0.5, 2.0], "batch": 16, "norm_batch": 16,
            "epochs": 4, "warmup": 0, "holdout": 0.25, "crop": None, "storage": "fp32",
        },
    ),
    "logreg": (
        "transfer.classification.logreg",
        {**FEATURES, "choices": ["avg", "cls"], "grid": {"lowest": 0.01, "highest": 100.0, "steps": 3}},
    ),
}  # fmt: skip


def finish(
    out: Path,
    name: str,
    weights: VitWeights,
    data: Path,
    *,
    task: str = "",
    config: Mapping[str, Any] | None = None,
    **run: Any,
) -> Result:
    """Run a cell in `out`/`name` as the suite would, and return its result."""
    own_task, own = HEADS.get(name, (task, {}))
    made = RunConfig(
        benchmark=name,
        task=task or own_task,
        profile="paper",
        dataset="own",
        checkpoint=out / "checkpoint.pth",
        config={**own, **(config or {}), "data": str(data), "seed": 0, "machine": CPU},
        weights_digest=weights.digest,
        **run,
    )
    write_run_config(out / name / "config.yaml", made)
    return evaluate(made, out / name, weights)
