"""An output folder as a run leaves it, made by hand in milliseconds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mimbench.benchmarks.evaluation import intervals
from mimbench.benchmarks.run_config import RunConfig, write_run_config
from mimbench.results.record import (
    Provenance,
    Result,
    StoredOutcomes,
    StoredPicture,
    protocol_digest,
    write_result,
)
from mimbench.scores.hits import Hits
from mimbench.scores.outcomes import write_outcomes
from mimbench.task import TaskResult

SOURCE = Provenance(
    commit="c0ffee",
    dirty=False,
    python="3.11",
    libraries={"torch": "2"},
    device="cpu",
    host_cores=2,
    seed=0,
    seconds=3.0,
    peak_memory_mb=100.0,
    argv=("mimbench",),
)
MANIFEST = """
reference_file: reference.yaml
defaults: {paper: [in-knn, in-ft-hpm]}
benchmarks:
  in-knn: {title: k-NN, group: knn, task: toy_task, dataset: imagenet, config: {k: 20, temperature: 0.07}}
  in-ft-hpm: {title: Fine-tune, group: finetune, task: toy_task, dataset: imagenet, config: {k: 20, temperature: 0.07}}
"""
REFERENCE = """
protocols:
  in-knn: {title: k-NN, group: knn, summary: weighted k-NN, source: DINO code}
  coco-cascade-12: {title: Cascade, group: detection, summary: mmdetection, source: iBOT}
references:
  - {method: DINO, model: B/16, protocol: in-knn, metric: top1, value: 76.1, source: DINO README, grade: R}
  - {method: HPM, model: B/16, epochs: 800, protocol: in-knn, metric: top1, value: 50.0, source: made for a test, grade: S}
effects:
  - {fields: [k], known: k = 20 is usually best, source: DINO paper, groups: [knn]}
"""


def write_manifest(folder: Path) -> Path:
    (folder / "benchmarks.yaml").write_text(MANIFEST)
    (folder / "reference.yaml").write_text(REFERENCE)
    return folder / "benchmarks.yaml"


def write_run(
    out: Path,
    name: str,
    *,
    share: float,
    benchmark: str = "in-knn",
    seed: int = 0,
    images: int = 1000,
    config: dict[str, Any] | None = None,
    draw: int = 0,
    trains: bool = False,
    pictures: Sequence[str] = (),
) -> Path:
    """Write one finished classification run whose model is right for about `share` of the images."""
    config = {"dataset": "imagenet", "k": 20, "temperature": 0.07, **(config or {})}
    digest = name.encode().hex().ljust(64, "0")[:64]
    folder = (
        out
        / f"{digest[:12]}-{name.replace('/', '-').replace('<', '')}"
        / (benchmark + (f".seed{seed}" if seed else ""))
    )
    folder.mkdir(parents=True)
    rng = np.random.default_rng(draw)
    labels = np.arange(images) % 10
    wrong = (labels + rng.integers(1, 10, images)) % 10
    best = np.where(
        np.random.default_rng(7).random(images) + 0.05 * rng.normal(size=images) < share,
        labels,
        wrong,
    )
    top5 = np.stack([best, *((best + i) % 10 for i in range(1, 5))], axis=1)
    names = [f"digit{label}/{i:04d}.png" for i, label in enumerate(labels)]
    outcomes = Hits(images=tuple(names), labels=labels, top5=top5)
    write_outcomes(folder / "outcomes.0.npz", outcomes)
    among = (top5 == labels[:, None]).any(axis=1)
    metrics = {"top1": 100 * float((best == labels).mean()), "top5": 100 * float(among.mean())}
    steps = [{"step": s, "loss": 2.0 / (1 + s), "top1": 10.0 * s} for s in range(6)]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(x) + "\n" for x in steps) + '{"step": 6, "lo'
    )
    weights = {"name": name, "digest": digest, "format": "hpm", "which": "student", "model": "B/16"}
    run = RunConfig(
        benchmark=benchmark,
        task="toy_task",
        profile="paper",
        dataset="imagenet",
        checkpoint=folder / "gone.pth",
        config={**config, "data": "nowhere", "seed": seed},
        weights_digest=digest,
    )
    write_run_config(folder / "config.yaml", run)
    result = Result(
        benchmark=benchmark,
        task="toy_task",
        version=1,
        main_metric="top1",
        profile="paper",
        protocol=protocol_digest("toy_task", 1, config),
        metrics=metrics,
        config=config,
        weights=weights,
        status="done",
        provenance=Provenance(**{**vars(SOURCE), "seed": seed}),
        trains=trains,
        intervals={
            metric: interval.half
            for metric, interval in intervals(
                TaskResult(metrics=metrics, outcomes=[outcomes])
            ).items()
        },
        outcomes=(StoredOutcomes(kind="mimbench.scores.hits:Hits", file="outcomes.0.npz"),),
        pictures=tuple(StoredPicture(file=f"pictures/{name}.png") for name in pictures),
        data="nowhere",
    )
    write_result(folder / "result.json", result)
    assert yaml.safe_load((folder / "config.yaml").read_text())["benchmark"] == benchmark
    return folder
