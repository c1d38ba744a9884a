"""ImageNet-C: fifteen corruptions at five severities, and the mean corruption error (mCE).

Hendrycks & Dietterich 2019 (1903.12261): a corruption's error summed over severities is divided by
AlexNet's, mCE is the mean of the fifteen, in percent: lower is better, 100 is AlexNet. Files are 224 pixels
already and are cropped, never resized. Nothing is trained: the head is that of a finished run. With
`made: true` val is corrupted on the fly: deterministic, of any size, and another protocol than the files.

    python -m transfer.classification.robustness.corrupted checkpoint.pth --benchmark rob-c --data DIR
"""

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.classification.robustness.corrupted"))

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from mimbench.data.lists import ImageList, read_folder
from mimbench.data.preprocess import Pixels, Preprocess
from mimbench.data.subsets import first_per_class
from mimbench.features.protocol import from_main
from mimbench.model import Weights
from mimbench.scores.figures import Figure
from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path, value_digest
from mimbench.system.listing import first_few
from mimbench.system.runtime import Ranks, process_group
from mimbench.task import Machine, TaskResult, Traits
from mimbench.vit.footprint import frozen
from transfer.classification.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from transfer.classification.robustness.finished import HeadRun, find_cell
from transfer.classification.robustness.mce import CorruptionErrors, corruption_error, levels
from transfer.classification.robustness.pictures import worst_corruptions
from transfer.classification.robustness.scoring import HeadJudge

VERSION = 1
MAIN_METRIC = "mce"
TRAITS = Traits(
    footprint=frozen,
    uses=lambda config: (config.head,),
    lower_is_better=True,
    beside={"drop": "drop of top-1 from clean"},
)
__all__ = ["MAIN_METRIC", "TRAITS", "VERSION", "Config", "CorruptionErrors", "run"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Whose head, and where the corrupted images come from."""

    head: str
    """The benchmark whose finished run leaves the head."""
    made: bool = False
    """Corrupt the head's own val images on the fly; otherwise `data` holds corruption/severity/class."""
    per_class: int | None = None
    """Only the first images of each class."""
    part: str = ""
    """The folder of val images or of the corruptions in the data set, where not that itself."""
    witnesses: tuple[str, ...] = ("gaussian_noise/1", "jpeg_compression/5")
    """Parts that the data's identity is taken from: all 3.75 million files would take an hour."""
    data: Path
    seed: int = 0
    machine: Machine = field(default_factory=Machine)


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """From a clean image to the pixels of one corruption: crop, corrupt, save as JPEG."""

    names: tuple[str, ...]
    corruption: str
    severity: int
    inner: Preprocess

    def __call__(self, image: Image.Image, index: int = 0) -> Tensor:
        """Return (3, size, size) uint8."""
        clean: Any = TF.to_pil_image(self.inner(image))
        return TF.pil_to_tensor(corrupt(clean, self.corruption, self.severity, self.names[index]))

    def key(self) -> dict[str, Any]:
        """Return what identifies the rule."""
        return {"corruption": [self.corruption, self.severity], **self.inner.key()}


@dataclass(frozen=True, kw_only=True)
class CorruptedLists:
    """Corrupted images, list by list, each beside how it is read."""

    config: Config
    cell: HeadRun
    clean: ImageList
    ready_made: Preprocess
    own: Preprocess

    @classmethod
    def of(cls, config: Config, judge: HeadJudge) -> "CorruptedLists":
        """Return the source of a run."""
        clean = judge.cell.val()
        if config.per_class is not None:
            clean = clean.subset(first_per_class(clean.labels, config.per_class))
        return cls(
            config=config,
            cell=judge.cell,
            clean=clean,
            ready_made=judge.ready_made(),
            own=judge.classifier.preprocess,
        )

    def open(self, corruption: str, severity: int) -> tuple[ImageList, Pixels]:
        """Return the images of one corruption, in the order of the clean ones."""
        if self.config.made:
            rule = Corrupted(
                names=self.clean.names, corruption=corruption, severity=severity, inner=self.own
            )
            return self.clean, rule
        found = read_folder(self.config.data / self.config.part / corruption, str(severity))
        place = {_key(name): i for i, name in enumerate(found.names)}
        lacking = [name for name in self.clean.names if _key(name) not in place]
        if lacking:
            raise UserError(
                f"{found.where} lacks {first_few(lacking, 3)}; expected one file for each val image of "
                f"{self.cell.run.benchmark}, under the same name"
            )
        ordered = found.subset([place[_key(name)] for name in self.clean.names])
        return ordered.relabel(self.clean.labels), self.ready_made


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return mCE, mean top-1 over corruptions, clean top-1, and the drop between the two."""
    cell = find_cell(out, config.head, weights, seed=config.seed)
    with process_group(config.machine.device) as ranks:
        judge = HeadJudge.of(cell, weights, config.machine, ranks)
        source = CorruptedLists.of(config, judge)
        labels = source.clean.labels
        right = np.stack([found == labels for found in _answers(judge, source, out, ranks)])
        clean = judge.predict(source.clean, label="clean") == labels
    found = CorruptionErrors(images=tuple(source.clean.names), right=right, clean_right=clean)
    errors = found.errors()
    ce = {name: 100 * corruption_error(name, errors[name]) for name in CORRUPTIONS}
    by_severity = 1 - np.mean(list(errors.values()), axis=0)
    return TaskResult(
        metrics=found.metrics(),
        outcomes=[found],
        figures=[
            Figure(title="corruption error (AlexNet: 100)", values=ce),
            Figure(
                title="top-1 by severity",
                values={
                    str(s): 100 * float(v) for s, v in zip(SEVERITIES, by_severity, strict=True)
                },
                kind="line",
            ),
        ],
        pictures=worst_corruptions(source.clean, source.open, ce),
        notes={
            "head": cell.described(),
            "images": len(labels),
            "pictures": "made on the fly" if config.made else "read from files",
            "top1": {name: [100 * (1 - e) for e in values] for name, values in errors.items()},
        },
        built_on=cell.built_on(),
        ran=cell.changed(),
    )


def _answers(
    judge: HeadJudge, source: CorruptedLists, out: Path, ranks: Ranks
) -> list[NDArray[np.int64]]:
    """Return the answers of each corruption and severity; those of an interrupted run are kept."""
    config = replace(source.config, machine=Machine(), data=Path())
    key = value_digest([VERSION, judge.cell.result.checksum, source.clean.digest, repr(config)])[
        :12
    ]
    paths = {level: out / "answers" / f"{key}-{level[0]}-{level[1]}.npy" for level in levels()}
    kept: Mapping[Any, NDArray[np.int64]] = from_main(
        lambda: {level: np.load(p) for level, p in paths.items() if p.is_file()}, ranks
    )
    found = dict(kept)
    for level, path in paths.items():
        if level in kept:
            continue
        images, pixels = source.open(*level)
        found[level] = judge.predict(images, pixels=pixels, label=f"{level[0]} {level[1]}")
        if ranks.main:
            with atomic_path(path) as part, part.open("wb") as file:
                np.save(file, found[level], allow_pickle=False)
    return [found[level] for level in paths]


def _key(name: str) -> tuple[str, ...]:
    """Return class folder and stem: files may have lost their capital letters."""
    path = Path(name)
    return path.parent.name, path.stem
