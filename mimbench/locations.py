"""Where a data set lies: its name and the user's --data folder in, a checked folder out."""

from dataclasses import dataclass
from pathlib import Path

from mimbench.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Layout:
    """What a data set's folder must hold, and how a person gets it."""

    folder: str
    parts: tuple[str, ...]
    mend: str


LAYOUTS = {
    "imagenet": Layout(
        "imagenet",
        ("train", "val"),
        "one folder for each class under train/ and val/; see https://image-net.org/download",
    ),
    "coco": Layout(
        "coco",
        (
            "train2017",
            "val2017",
            "annotations/instances_train2017.json",
            "annotations/instances_val2017.json",
        ),
        "unpack train2017.zip, val2017.zip and annotations_trainval2017.zip from https://cocodataset.org",
    ),
    "ade": Layout(
        "ade",
        ("images/training", "images/validation", "annotations/training", "annotations/validation"),
        "unpack ADEChallengeData2016.zip from http://sceneparsing.csail.mit.edu",
    ),
}
SAMPLES = {"sample-classification": "classification", "sample-coco": "coco", "sample-ade": "ade"}
ALSO = {"imagenet": ("imagenet-1k", "ILSVRC2012"), "coco": (), "ade": ("ADEChallengeData2016",)}


def locate(dataset: str, data: Path | None) -> Path:
    """Return the folder of a data set.

    Args:
        dataset: A name of `LAYOUTS` or `SAMPLES`.
        data: The user's --data: a folder that holds the data set's folder, or that folder itself.
    """
    if dataset in SAMPLES:
        # the generator pulls in scikit-image: only the sample data needs it
        from mimbench.sample import sample_root  # noqa: PLC0415

        return sample_root() / SAMPLES[dataset]
    if dataset not in LAYOUTS:
        raise UserError(f"unknown data set '{dataset}'" + did_you_mean(dataset, {*LAYOUTS, *SAMPLES}))
    layout = LAYOUTS[dataset]
    if data is None:
        raise UserError(
            f"needs the data set '{dataset}': pass --data DIR, where DIR/{layout.folder} holds "
            f"{', '.join(layout.parts)} ({layout.mend})"
        )
    tried = [data / name for name in (layout.folder, *ALSO[dataset])] + [data]
    for folder in tried:
        if not _lacking(folder, layout):
            return folder.resolve()
    best = min(tried, key=lambda folder: len(_lacking(folder, layout)))
    raise UserError(
        f"needs the data set '{dataset}', but {best} lacks {', '.join(_lacking(best, layout))}; "
        f"expected {data / layout.folder} or {data} itself to hold {', '.join(layout.parts)} ({layout.mend})"
    )


def _lacking(folder: Path, layout: Layout) -> list[str]:
    return [part for part in layout.parts if not (folder / part).exists()]
