"""DAVIS-2017 by label propagation (DINO's protocol): J&F of the first frame's masks, carried along.

Caron et al. 2021; after Jabri et al. 2020. Val, 480p, 30 sequences: shorter side 480, the other rounded
down to a multiple of 64; the last block's patches after the final norm; first and 7 previous frames,
window of 12 patches, the 5 largest affinities over all of them, temperature 0.1. J, F and the frames
that count are those of the official evaluation. Expected: DINO ViT-S/16 61.8 (57.8 with an earlier bug
of its script). Models such as MAE move by 20 points with layer and norm: `block` and `norm` say which.

    python -m transfer.video.davis checkpoint.pth --benchmark davis-prop --data DIR
"""

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.video.davis"))

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image

from mimbench.data.contents import Clip, Clips
from mimbench.data.sets import read_set
from mimbench.model import Spec, Weights
from mimbench.networks.kinds import plain_vit
from mimbench.scores.figures import Figure
from mimbench.system.config import to_mapping
from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path, write_json
from mimbench.system.memory import Halving
from mimbench.system.progress import Progress
from mimbench.system.runtime import Precision, Ranks, autocast, pick_device, process_group
from mimbench.task import Machine, TaskResult, Traits
from mimbench.training.identity import run_digest
from mimbench.vit.backbone import Backbone, build_backbone
from mimbench.vit.footprint import MB, Footprint, frozen
from transfer.video.contours import object_scores
from transfer.video.frames import (
    back_to,
    first_labels,
    frame_size,
    patch_features,
    read_frame,
    read_labels,
)
from transfer.video.outcomes import TrackedObjects as TrackedObjects
from transfer.video.pictures import propagated, strip
from transfer.video.propagation import PropagationRule, decide, propagate

VERSION = 1
MAIN_METRIC = "jf"
PICTURED = 3
"""Sequences that the report shows."""
WIDE = 854 / 480
"""Shape of most of DAVIS's frames."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that may move the number."""

    side: int = 480
    """Length of a frame's shorter side."""
    multiple: int = 64
    """The longer side is rounded down to a multiple of this."""
    rule: PropagationRule = field(default_factory=PropagationRule)
    block: int = 1
    """Counted from the end: 1 is the last."""
    norm: bool = True
    """Pass the patches through the final norm."""
    published_std: bool = True
    """Divide blue by 0.228 where the checkpoint's own statistics are ImageNet's, as DINO's script does."""
    precision: Precision = "fp32"
    data: Path
    seed: int = 0
    machine: Machine = field(default_factory=Machine)


def footprint(spec: Spec, config: Config, images: int) -> Footprint:
    """Return what the network takes, and the affinities of one frame with those that give labels."""
    found = frozen(spec, {**to_mapping(config), "image_size": config.side}, images)
    stride = min(level.stride for level in spec.levels)
    patches = (config.side // stride) ** 2 * WIDE
    affinities = (1 + config.rule.previous) * patches**2 * 4 * 3 / MB
    return Footprint(memory=found.memory + affinities)


TRAITS = Traits(footprint=footprint, trains=False, whole_folder=True)


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return J&F in percent; a sequence that is done stays done after an interruption."""
    weights = plain_vit(weights)
    clips = read_set("davis", config.data, Clips).clips
    if not 1 <= config.block <= weights.spec.depth:
        raise UserError(f"block {config.block} from the end of a model of {weights.spec.depth}")
    digest = run_digest(weights, config, version=VERSION, data=[c.name for c in clips])
    with process_group(config.machine.device) as ranks:
        network = build_backbone(weights).to(pick_device(config.machine.device, ranks.local))
        work = Sequences(network=network, config=config, folder=out / "sequences", digest=digest)
        mine = list(enumerate(clips))[ranks.rank :: ranks.world]
        bar = Progress("label propagation", len(mine)) if ranks.main else None
        found: dict[int, NDArray[np.float64]] = {}
        for place, clip in mine:
            found[place] = work.score(clip, keep_picture=place < PICTURED)
            if bar is not None:
                bar.step()
        if bar is not None:
            bar.close()
        found = _gathered(found, ranks)
    outcomes = TrackedObjects(
        images=tuple(clip.name for clip in clips),
        sequence=np.concatenate([np.full(len(found[i]), i) for i in range(len(clips))]),
        scores=np.concatenate([found[i] for i in range(len(clips))]),
    )
    strips = [p for clip in clips[:PICTURED] if (p := work.picture(clip)).is_file()]
    return TaskResult(
        metrics=outcomes.metrics(),
        outcomes=[outcomes],
        figures=[Figure(title="J&F", values=dict(outcomes.classes()))],
        pictures=[propagated([Image.open(p).convert("RGB") for p in strips])] if strips else [],
        notes={
            "sequences": len(clips),
            "objects": len(outcomes.scores),
            "interval": "over sequences",
        },
    )


def _gathered(
    found: dict[int, NDArray[np.float64]], ranks: Ranks
) -> dict[int, NDArray[np.float64]]:
    if ranks.world == 1:
        return found
    parts: list[Any] = [None] * ranks.world
    dist.all_gather_object(parts, found)
    return {place: scores for part in parts for place, scores in part.items()}


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Scores one sequence after the other, and remembers each in a file of its own."""

    network: Backbone
    config: Config
    folder: Path
    digest: str

    def picture(self, clip: Clip) -> Path:
        """Return where a sequence's picture lies."""
        return self.folder / f"{clip.name}.png"

    def score(self, clip: Clip, *, keep_picture: bool) -> NDArray[np.float64]:
        """Return (objects, 6) of a sequence."""
        path = self.folder / f"{clip.name}.json"
        if (kept := self._kept(path)) is not None:
            return kept
        truth = [read_labels(p) for p in clip.labels]
        if not truth[0].max():
            raise UserError(f"{clip.labels[0]}: the first frame has no object to follow")
        predicted = self.follow(clip, truth[0])
        scores = object_scores(np.stack(truth), np.stack(predicted))
        if keep_picture:
            frames = [np.asarray(Image.open(p).convert("RGB")) for p in clip.frames]
            with atomic_path(self.picture(clip)) as part:
                strip(frames, predicted).save(part, format="PNG")
        write_json(path, {"digest": self.digest, "scores": scores.tolist()})
        return scores

    def _kept(self, path: Path) -> NDArray[np.float64] | None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return np.array(found["scores"]) if found.get("digest") == self.digest else None

    @torch.no_grad()
    def follow(self, clip: Clip, first: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """Return the predicted objects of every frame at the label maps' size; the first is the truth."""
        config, patch = self.config, self.network.spec.patch_size
        device = self.network.normalise.mean.device
        height, width = first.shape
        wide, high = frame_size(width, height, side=config.side, multiple=config.multiple)
        grid = (high // patch, wide // patch)

        def features(path: Path) -> torch.Tensor:
            frame = read_frame(path, side=config.side, multiple=config.multiple, patch=patch)
            with autocast(device, config.precision):
                return patch_features(
                    self.network,
                    frame,
                    block=config.block,
                    norm=config.norm,
                    published_std=config.published_std,
                )

        soft = propagate(
            map(features, clip.frames),
            first_labels(first, grid).to(device),
            grid,
            config.rule,
            Halving(size=grid[0] * grid[1]),
        )
        return [first, *(back_to(decide(labels, patch), (height, width)) for labels in soft)]
