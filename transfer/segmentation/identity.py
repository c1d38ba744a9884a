"""What a run is: its configuration, its checkpoint, and a digest that tells runs apart."""

import json
from pathlib import Path
from typing import Any

from mimbench.system.config import to_mapping
from mimbench.system.errors import UserError
from mimbench.system.files import value_digest
from mimbench.vit.weights import VitWeights
from transfer.segmentation.protocol import SegmentationConfig

RUN_FILE = "run.json"


def run_identity(
    task: str, version: int, weights: VitWeights, config: SegmentationConfig
) -> dict[str, Any]:
    """Return what a run is, with a digest over all that may move its numbers, the seed included."""
    fields = to_mapping(config)
    fixed = {name: value for name, value in fields.items() if name not in ("data", "machine")}
    value = {"task": task, "version": version, "config": fixed, "weights": weights.digest}
    return {
        "task": task,
        "version": version,
        "digest": value_digest(value),
        "config": fields,
        "spec": weights.spec.to_json(),
        "weights": {"name": weights.name, "digest": weights.digest, "format": weights.format},
    }


def read_run(folder: Path) -> dict[str, Any]:
    """Return the identity of the run in a folder."""
    file = folder / RUN_FILE
    if not file.is_file():
        raise UserError(f"{folder} holds no segmentation run (no {RUN_FILE})")
    return json.loads(file.read_text(encoding="utf-8"))


def refuse_other_run(out: Path, digest: str) -> None:
    """Refuse a folder that holds a run of another configuration or checkpoint."""
    if (out / RUN_FILE).is_file() and read_run(out)["digest"] != digest:
        raise UserError(
            f"{out} holds a run of another configuration or checkpoint; choose another folder "
            "or delete it"
        )
