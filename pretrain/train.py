"""A pretraining run from its config: data, networks, the loop, and what is left behind."""

import logging
import shutil
from contextlib import nullcontext
from pathlib import Path

import torch
import yaml

from mimbench.suite.tracking.run import MARK_FILE, TrackedRun, shareable
from mimbench.suite.tracking.session import TRACKING_LOG, tracked
from mimbench.system.config import to_mapping
from mimbench.system.errors import UserError
from mimbench.system.files import write_text
from mimbench.system.generators import seed_everything
from mimbench.system.lock import folder_lock
from mimbench.system.runtime import Ranks, pick_device
from mimbench.training.curve import BOARD_FOLDER, remove_curve
from mimbench.training.learner import RunContext
from mimbench.training.loop import fit
from pretrain import masks
from pretrain.checkpoints.handover import ENCODER
from pretrain.checkpoints.stored import start_from
from pretrain.config import Config
from pretrain.objectives.adversarial import AdversarialPretraining
from pretrain.objectives.curriculum import CurriculumPretraining
from pretrain.objectives.distill.config import DistillConfig
from pretrain.objectives.distill.learner import Distillation
from pretrain.objectives.distill.views import MultiCrops
from pretrain.objectives.learner import Pretraining
from pretrain.sources.crops import Crops
from pretrain.sources.images import EvenSubset, ImageSource, open_source
from pretrain.sources.labels import open_labels

logger = logging.getLogger(__name__)

LEFT_BEHIND = ("checkpoints", BOARD_FOLDER)


def train(
    config: Config | DistillConfig,
    out: Path,
    *,
    ranks: Ranks,
    fresh: bool = False,
    track: str = "",
) -> Path:
    """Run to the end, or on from where the folder stands; return the encoder's file.

    Args:
        config: The run.
        out: Its folder.
        ranks: This process among its peers.
        fresh: Forget what the folder holds.
        track: A client that the run is followed in.
    """
    busy = f"another process is pretraining in {out}"
    with folder_lock(out, busy) if ranks.main else nullcontext():
        return train_unlocked(config, out, ranks=ranks, fresh=fresh, track=track)


def tracked_run(config: Config | DistillConfig, out: Path) -> TrackedRun:
    """Return a pretraining as tracking clients see it."""
    return TrackedRun(
        folder=out.resolve(),
        name=out.name,
        group="pretrain",
        config={**shareable(to_mapping(config)), "digest": config.digest()},
        ends_with_result=False,
    )


def train_unlocked(
    config: Config | DistillConfig,
    out: Path,
    *,
    ranks: Ranks,
    fresh: bool = False,
    track: str = "",
) -> Path:
    """Do as `train` does in a folder that the caller has locked."""
    if ranks.main and fresh:
        clear(out)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    device = pick_device(config.machine.device, ranks.local)
    torch.backends.cudnn.benchmark = True
    # the same initial weights on every process
    seed_everything(config.training.seed)
    source = open_source(config.data.name, config.data.root, config.data.split)
    if config.data.images is not None:
        source = EvenSubset(source, config.data.images)
    learner: Pretraining | Distillation
    if isinstance(config, DistillConfig):
        learner, start = Distillation(config, device, out), 0
        samples = MultiCrops(source, config.data)
    else:
        learner = build_learner(config, device, out)
        start = begin(config, learner, out)
        learner.open_bank(len(source))
        samples = learner_samples(config, source)
    if ranks.main:
        write_text(out / "config.yaml", yaml.safe_dump(to_mapping(config), sort_keys=False))
    parameters = sum(p.numel() for p in learner.student.parameters())
    logger.info("%d images, %.1f M parameters, %s", len(source), parameters / 1e6, device)
    context = RunContext(
        out=out,
        digest=config.digest(),
        config=to_mapping(config),
        ranks=ranks,
        machine=config.machine,
        label="pretrain",
        start_epoch=start,
    )
    with tracked(track, [tracked_run(config, out)], out / TRACKING_LOG):
        fit(learner, samples, config.loop(), context)
    return out / ENCODER


def learner_samples(config: Config, source: ImageSource) -> Crops:
    """Return the crops of a run, with whatever its masks ask of them."""
    labels = None
    if config.labels is not None:
        labels = open_labels(config.data.annotations, config.data, boxes=config.labels == "boxes")
    return Crops(source, config.data, places=config.teacher.bank, labels=labels)


def begin(config: Config, learner: Pretraining, out: Path) -> int:
    """Fill a new run's networks as the config says; return the epoch at which it starts."""
    done = 0
    if config.start.weights is not None and not (out / "checkpoints" / "last.pt").exists():
        done = start_from(
            config.start.weights,
            learner.student,
            learner.teacher,
            num_heads=learner.spec.num_heads,
        )
    if config.start.resume and done >= config.training.epochs:
        raise UserError(
            f"{config.start.weights} has {done} epochs behind it, training.epochs is "
            f"{config.training.epochs}: nothing is left to do"
        )
    return done if config.start.resume else 0


def build_learner(config: Config, device: torch.device, out: Path) -> Pretraining:
    """Return the learner that provides what the config's masks need."""
    needs = masks.build(config.mask).needs
    kind = Pretraining
    if "generator" in needs:
        kind = AdversarialPretraining
    elif "masker" in needs:
        kind = CurriculumPretraining
    return kind(config, device, out)


def clear(out: Path) -> None:
    """Remove a run's states and records; exports stay until new ones replace them."""
    for name in LEFT_BEHIND:
        shutil.rmtree(out / name, ignore_errors=True)
    remove_curve(out)
    (out / MARK_FILE).unlink(missing_ok=True)
