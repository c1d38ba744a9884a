"""A trained detector once more: scored again under the configuration that it was trained with."""

from dataclasses import replace
from pathlib import Path

from mimbench.model import Weights
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.system.runtime import process_group
from mimbench.task import TaskResult
from mimbench.training.identity import RUN_FILE, read_identity
from transfer.detection import fpn, vitdet
from transfer.detection.detector import DetectorConfig
from transfer.detection.hooks import Checkpoints
from transfer.detection.prepare import prepare
from transfer.detection.vitdet import conclude


def again(
    weights: Weights, folder: Path, *, data_root: Path | None = None, device: str | None = None
) -> TaskResult:
    """Score a run's newest state again, under the configuration that it was trained with."""
    identity = read_identity(folder)
    trained = identity["weights"]["digest"]
    if trained != weights.digest:
        raise UserError(
            f"{folder} was trained from weights {trained[:12]}, these are "
            f"{weights.digest[:12]} ({weights.name}); name the checkpoint that it started from"
        )
    detector = fpn if identity.get("task") == fpn.TASK else vitdet
    config: DetectorConfig = from_mapping(
        detector.Config, identity["config"], str(folder / RUN_FILE)
    )
    if data_root is not None:
        config = replace(config, data=data_root)
    if device is not None:
        # scoring runs in full precision, so any device will do
        machine = replace(config.machine, device=device)
        config = replace(config, machine=machine, precision="fp32")
    with process_group(config.machine.device) as ranks:
        job = prepare(weights, config, ranks, detector.design)
        if not Checkpoints(job.model, str(folder / "checkpoints")).read_last():
            raise UserError(f"{folder} holds no training state; train first")
        return conclude(job, folder)
