"""The finished run whose head is used: found beside a run's own folder, on the same checkpoint and seed."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from timm.data.imagenet_info import ImageNetInfo

from mimbench.benchmarks.lifecycle import number_in
from mimbench.benchmarks.records import outcomes_of
from mimbench.benchmarks.run_config import CONFIG_FILE, STALE, RunConfig, read_run_config
from mimbench.data.lists import ImageList
from mimbench.features.protocol import ImageConfig
from mimbench.model import Weights
from mimbench.results.record import Result
from mimbench.scores.hits import Hits
from mimbench.scores.outcomes import faithful
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.system.listing import first_few
from mimbench.task import load_task

logger = logging.getLogger(__name__)
MAIN = "top1"


@dataclass(frozen=True, kw_only=True)
class HeadRun:
    """A finished classification run: its folder, configuration, result, and what it predicted on val."""

    folder: Path
    run: RunConfig
    result: Result
    hits: Hits

    @property
    def config(self) -> ImageConfig:
        """The run's own configuration."""
        task = load_task(self.run.task)
        return from_mapping(task.Config, self.run.config, f"{self.run.benchmark}.config")

    @property
    def classes(self) -> int:
        """How many classes its head tells apart."""
        return int(self.hits.labels.max()) + 1

    @property
    def faithful(self) -> bool:
        """Its kept predictions are those of the head that its number is of."""
        return MAIN in faithful([self.hits], self.result.metrics)

    def class_names(self) -> dict[str, int]:
        """Return folder name -> class index, as val's own images say, else ImageNet's synsets."""
        names = [name.split("/") for name in self.hits.images]
        # of a folder of classes the first part, of an archive the last one before the file
        for part in (0, -2):
            pairs = {
                (n[part], int(y)) for n, y in zip(names, self.hits.labels, strict=True) if n[1:]
            }
            if len(pairs) == len(dict(pairs)) == self.classes:
                return dict(pairs)
        synsets = ImageNetInfo().label_names()
        if len(synsets) != self.classes:
            raise UserError(
                f"{self.folder}: its images do not say what its {self.classes} classes are called; "
                "a set of named classes needs a head trained on a folder of images by class"
            )
        return {name: i for i, name in enumerate(synsets)}

    def val(self) -> ImageList:
        """Return the images that the run was scored on."""
        config = self.config
        if not Path(config.data).is_dir():
            raise UserError(
                f"{self.run.benchmark} was scored on {config.data}, which is not there any more; the "
                "clean images are needed: put the data back, or run that benchmark again with --data"
            )
        images = config.source.split(Path(config.data), config.source.val)
        if tuple(images.names) != self.hits.images:
            raise UserError(
                f"{config.data} does not hold the {len(self.hits.images):,} images that "
                f"{self.run.benchmark} was scored on; run that benchmark again (--fresh)"
            )
        return images

    def described(self) -> dict[str, Any]:
        """Return what a result says about the head."""
        return {
            "benchmark": self.run.benchmark,
            "profile": self.run.profile,
            "protocol": self.result.protocol,
            "folder": self.folder.name,
            MAIN: self.result.metrics[MAIN],
        }

    def built_on(self) -> dict[str, str]:
        """Return what makes a number out of date: another result in the head's folder."""
        return {self.folder.name: self.result.checksum}

    def changed(self) -> Mapping[str, str]:
        """Return how the head's recipe was not the benchmark's own: such numbers get their own column."""
        return {"head": self.result.protocol} if self.result.overrides else {}


def find_cell(out: Path, benchmark: str, weights: Weights, *, seed: int) -> HeadRun:
    """Return the finished run of a benchmark on the same checkpoint, with the same profile and seed.

    Args:
        out: The folder of the run that needs it.
        benchmark: Whose head.
        weights: The checkpoint.
        seed: Of the run.
    """
    mine = read_run_config(out / CONFIG_FILE) if (out / CONFIG_FILE).is_file() else None
    place = mine.beside if mine and mine.beside else out.parent
    found = []
    for path in sorted(place.glob(f"*/{CONFIG_FILE}")):
        if STALE in path.parent.name:
            continue
        run = read_run_config(path)
        if run.benchmark != benchmark or run.weights_digest not in ("", weights.digest):
            continue
        if int(run.config.get("seed", 0)) != seed or (mine and run.profile != mine.profile):
            continue
        result = number_in(path.parent)
        if result is not None and result.weights["digest"] == weights.digest:
            found.append((path.parent, run, result))
    plain = [one for one in found if not one[2].overrides]
    chosen = plain or found
    if len(chosen) != 1:
        _refuse(place, benchmark, [folder.name for folder, _, _ in chosen], mine)
    folder, run, result = chosen[0]
    return HeadRun(folder=folder, run=run, result=result, hits=_hits(folder, result))


def _refuse(place: Path, benchmark: str, names: list[str], mine: RunConfig | None) -> None:
    if names:
        raise UserError(
            f"{place} holds several changed runs of {benchmark} ({first_few(names)}) and none of its own "
            "recipe; keep one of them, or run it unchanged"
        )
    only = f"{benchmark},{mine.benchmark}" if mine else benchmark
    profile = f" --profile {mine.profile}" if mine and mine.profile != "paper" else ""
    raise UserError(
        f"needs the head of {benchmark}, and {place} holds no finished run of it on this checkpoint with "
        f"this seed; run both: ./run_all.sh CKPT{profile} --only {only}"
    )


def _hits(folder: Path, result: Result) -> Hits:
    kept = [o for o in outcomes_of(folder, result, {result.task}) if isinstance(o, Hits)]
    if len(kept) != 1 or not len(kept[0].images) or np.any(kept[0].labels < 0):
        raise UserError(
            f"{folder} keeps no predictions of single images: its head cannot be compared with clean "
            f"images; run {result.benchmark} again (--fresh)"
        )
    return kept[0]
