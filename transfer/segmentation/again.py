"""A finished run once more: its scores, and pictures of what it predicts."""

import importlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from mimbench.benchmarks.records import PICTURES, keep_pictures
from mimbench.networks.kinds import spec_from_json
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.system.runtime import process_group
from mimbench.task import TaskResult
from mimbench.training.identity import read_identity
from transfer.segmentation.console import advice, quiet
from transfer.segmentation.data import open_source
from transfer.segmentation.inference import evaluate
from transfer.segmentation.labels import check_labels
from transfer.segmentation.prepare import build_model, set_up
from transfer.segmentation.protocol import SegmentationConfig
from transfer.segmentation.show import show
from transfer.segmentation.train import MODEL_FILE, task_result

logger = logging.getLogger(__name__)


def again(
    run: Path, *, data: Path | None = None, device: str = "auto", pictures: int | None = None
) -> TaskResult:
    """Return a run's result, measured again; pictures go into the run's folder.

    Args:
        run: Folder of a finished run.
        data: Where the data is now; by default where it was.
        device: Where to test.
        pictures: Also draw this many validation images.
    """
    identity = read_identity(run)
    if not (run / MODEL_FILE).is_file():
        raise UserError(f"the run in {run} is not finished: it has no {MODEL_FILE}")
    task: Any = importlib.import_module(identity["task"])
    mapping = identity["config"] | ({"data": data} if data else {})
    config: SegmentationConfig = from_mapping(task.Config, mapping, str(run))
    # a model that was trained in mixed precision is tested in fp32 anywhere
    machine = replace(config.machine, device=device)
    config = replace(config, machine=machine, precision="fp32")
    spec = spec_from_json(identity["spec"])
    out = run / "again"
    out.mkdir(exist_ok=True)
    with process_group(config.machine.device) as ranks, quiet(out, ranks), advice(config):
        setup = set_up(spec, config, task.model_recipe(spec, config), ranks, open_source(config))
        check_labels(setup.source, "val", show=ranks.main)
        model = build_model(setup)
        model.load_state_dict(load_file(run / MODEL_FILE))
        tested = evaluate(model, setup.cfg, setup.source, setup.device, out, ranks)
        if pictures is not None and ranks.main:
            shown = show(model, setup.cfg, setup.source, pictures)
            paths = keep_pictures(run / PICTURES, shown)
            logger.info("wrote %d pictures to %s", len(paths), run / PICTURES)
    return task_result(tested, setup.source.names)
