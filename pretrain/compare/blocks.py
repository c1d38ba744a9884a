"""Running the experiment: every arm of every block, trained and scored, side by side, resumable."""

import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml

from mimbench.checkpoints.files import read_vit
from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path, value_digest, write_json, write_text
from mimbench.system.generators import seed_everything
from mimbench.system.lock import folder_lock
from mimbench.system.runtime import Ranks, pick_device
from mimbench.training.batches import StepSampler
from mimbench.training.optim import plan_batch
from mimbench.vit.backbone import build_backbone
from mimbench.vit.normalise import Normalisation
from mimbench.vit.weights import VitWeights
from pretrain.checkpoints.handover import ENCODER, encoder_tensors
from pretrain.checkpoints.stored import read_model
from pretrain.compare.cost import over_reference
from pretrain.compare.design import Design, split_of
from pretrain.compare.probe import Labelled, all_scores, both_splits, features, knn
from pretrain.compare.quality import mask_quality
from pretrain.compare.remembered import remembered_quality
from pretrain.config import Config
from pretrain.train import build_learner, train_unlocked

logger = logging.getLogger(__name__)

RECORD, HITS = "record.json", "hits.npz"
DESIGN, TIMES, UNTRAINED = "design.yaml", "times.json", "untrained.json"
Budget = Literal["steps", "time"]


@dataclass(frozen=True, kw_only=True)
class ArmRun:
    """One run: an arm in a block, under one of the two budgets."""

    arm: str
    seed: int
    budget: Budget = "steps"
    epochs: int | None = None

    @property
    def slug(self) -> str:
        """What its folder is called."""
        words = "".join(c if c.isalnum() else " " for c in self.arm).lower().split()
        return "-".join([*words, *(["time"] if self.budget == "time" else []), str(self.seed)])


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where the experiment's images and results lie, and what computes it."""

    data: Path
    out: Path
    device: str = "auto"
    jobs: int = 1

    def folder(self, task: ArmRun) -> Path:
        """Return a run's folder."""
        return self.out / "runs" / task.slug


def claim(design: Design, out: Path) -> None:
    """Write the design into the folder, once; a folder of another design is refused."""
    path = out / DESIGN
    text = yaml.safe_dump(design.content(), sort_keys=False)
    if not path.is_file():
        write_text(path, f"# digest {design.digest()}\n{text}")
    elif path.read_text(encoding="utf-8").partition("\n")[2] != text:
        raise UserError(
            f"{path} is another design: what is compared, and how it is judged, does not change once "
            "an experiment has begun; use another --out"
        )


def tasks_of(design: Design, ratios: Mapping[str, float]) -> list[ArmRun]:
    """Return all runs, block by block; dearer arms also for the time that the reference takes.

    Args:
        design: The experiment.
        ratios: Each arm's time for a step over the reference's.
    """
    found = [ArmRun(arm=arm, seed=seed) for seed in design.seeds for arm in design.arms]
    for seed in design.seeds if design.equal_time else ():
        for arm in design.arms:
            epochs = matched_epochs(design, arm, ratios.get(arm, 1.0))
            if epochs is not None:
                found.append(ArmRun(arm=arm, seed=seed, budget="time", epochs=epochs))
    return found


def matched_epochs(design: Design, arm: str, ratio: float) -> int | None:
    """Return the epochs that take the reference's time; None where all of them do already."""
    whole = design.config(arm, design.first_seed, Path()).training.epochs
    matched = max(1, round(whole / ratio))
    return matched if matched < whole else None


def run(design: Design, options: RunOptions) -> None:
    """Do what is not done yet, on as many processes as there are jobs."""
    claim(design, options.out)
    ratios = step_times(design, options)
    measure_untrained(design, options)
    left = [t for t in tasks_of(design, ratios) if not (options.folder(t) / RECORD).is_file()]
    logger.info("%d runs are left", len(left))
    if options.jobs == 1:
        torch.set_num_threads(1)
        for task in left:
            perform(design, options, task)
        return
    # one thread each: two of them would wait for one another
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context, initializer=one_thread) as pool:
        futures = [pool.submit(perform, design, options, task) for task in left]
        for future in as_completed(futures):
            future.result()


def one_thread() -> None:
    """Keep a worker to its core."""
    torch.set_num_threads(1)


def step_times(design: Design, options: RunOptions) -> dict[str, float]:
    """Return each arm's processor time for a step over the reference's, measured once, in turns."""
    path = options.out / TIMES
    if path.is_file():
        return yaml.safe_load(path.read_text(encoding="utf-8"))["over_reference"]
    if not design.equal_time:
        return {}
    torch.set_num_threads(1)
    ratios = over_reference(design, split_of(options.data, "train"))
    write_json(path, {"over_reference": ratios, "clock": "processor time of one thread, one step"})
    return ratios


def measure_untrained(design: Design, options: RunOptions) -> None:
    """Score random weights of the first block, and raw pixels: what any training has to beat."""
    path = options.out / UNTRAINED
    if path.is_file():
        return
    config = design.config(
        design.reference, design.first_seed, split_of(options.data, "train"), device="cpu"
    )
    seed_everything(config.training.seed)
    student = build_learner(config, torch.device("cpu"), Path()).student
    weights = VitWeights(
        spec=student.spec,
        tensors=encoder_tensors(student.state_dict()),
        format="mimbench-pretrain",
        digest="untrained",
        which="student",
    )
    splits = both_splits(options.data, design.probe, config.data)
    labels = splits[0].labels, splits[1].labels
    found = [features(build_backbone(weights), part.images) for part in splits]
    pixels = [part.images.flatten(1).float() / 255 for part in splits]
    hits = {
        "untrained": all_scores(found[0], found[1], labels),
        "pixels": {"knn": knn(pixels[0], pixels[1], labels)},
    }
    write_json(
        path,
        {
            name: {key: 100 * h.double().mean().item() for key, h in scores.items()}
            for name, scores in hits.items()
        },
    )


def untrained(out: Path) -> list[str]:
    """Return the sentence about random weights and raw pixels."""
    path = out / UNTRAINED
    if not path.is_file():
        return []
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    scores = ", ".join(f"{name} {value:.1f}" for name, value in found["untrained"].items())
    return [
        f"Random weights of the first block: {scores}; raw pixels: knn {found['pixels']['knn']:.1f}."
    ]


_SPLITS: dict[Path, tuple[Labelled, Labelled]] = {}


def perform(design: Design, options: RunOptions, task: ArmRun) -> None:
    """Train and score one run; its record is written last."""
    folder = options.folder(task)
    with folder_lock(folder, f"'{task.slug}' is being computed"):
        if (folder / RECORD).is_file():
            return
        config = design.config(
            task.arm,
            task.seed,
            split_of(options.data, "train"),
            epochs=task.epochs,
            device=options.device,
        )
        began = time.process_time()
        train_unlocked(config, folder, ranks=Ranks())
        seconds = time.process_time() - began
        if options.data not in _SPLITS:
            _SPLITS[options.data] = both_splits(options.data, design.probe, config.data)
        record, hits = assess(design, config, folder, _SPLITS[options.data])
        with atomic_path(folder / HITS) as part, part.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **hits)
        record |= {
            "arm": task.arm,
            "seed": task.seed,
            "budget": task.budget,
            "design": design.digest(),
            "seconds": seconds,
            "steps": config.training.epochs * (steps_per_epoch(config) or 1),
            "start": start_digest(config),
            "order": order_digest(config),
        }
        write_json(folder / RECORD, record)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        logger.info("%s: %s %.1f", task.slug, design.outcome, record["scores"][design.outcome])


def assess(
    design: Design, config: Config, folder: Path, splits: tuple[Labelled, Labelled]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return a run's scores in percent with its masks' quality, and which test images were right."""
    train_set, test_set = splits
    device = pick_device(config.machine.device, 0)
    backbone = build_backbone(read_vit(folder / ENCODER, who="the comparison")).to(device)
    found = [features(backbone, part.images) for part in splits]
    hits = all_scores(found[0], found[1], (train_set.labels, test_set.labels))
    record: dict[str, Any] = {
        "scores": {name: 100 * h.double().mean().item() for name, h in hits.items()}
    }
    if design.probe.quality:
        model, teacher = read_model(folder).build()
        images = test_set.images[:: max(1, len(test_set.images) // design.probe.quality)]
        record["quality"] = mask_quality(
            model,
            teacher,
            Normalisation(model.spec.mean, model.spec.std).of_bytes(images),
            normalised=config.objective.target == "normalised",
        )
        if config.teacher.bank:
            record["quality"] |= remembered_quality(
                config, folder, model, teacher, design.probe.quality
            )
    return record, {name: np.packbits(h.numpy()) for name, h in hits.items()}


def steps_per_epoch(config: Config) -> int:
    """Return how many optimizer steps an epoch has."""
    return (config.data.images or 0) // config.training.batch


def start_digest(config: Config) -> str:
    """Return a digest of the encoder's initial values: equal in all arms of a block."""
    seed_everything(config.training.seed)
    learner = build_learner(config, torch.device("cpu"), Path())
    state = learner.student.encoder.state_dict()
    return value_digest({name: t.flatten()[:64].tolist() for name, t in sorted(state.items())})


def order_digest(config: Config) -> str:
    """Return a digest of which images the steps see: equal in all arms of a block and budget."""
    images = config.data.images or config.training.batch
    sampler = StepSampler(
        size=images,
        batch=config.training.batch,
        plan=plan_batch(config.training.batch, world=1, at_most=config.machine.max_batch),
        ranks=Ranks(),
        seed=config.training.seed,
        start=0,
        stop=config.training.epochs * (images // config.training.batch),
    )
    return value_digest([list(map(list, keys)) for keys in sampler])


def records(out: Path) -> Iterator[dict[str, Any]]:
    """Yield what runs have left, with their folders."""
    for path in sorted((out / "runs").glob(f"*/{RECORD}")):
        content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        yield content | {"folder": path.parent}
