"""Where a data set lies: its name and the user's --data folder in, a checked folder out."""

from functools import cache
from pathlib import Path

from mimbench.doctor.data import ALIASES, LAYOUTS, sample_manifest
from mimbench.doctor.folders import image_names, subfolder_names
from mimbench.doctor.shifted import SETS as SHIFTED
from mimbench.system.errors import UserError, did_you_mean

SAMPLES = {"sample-classification": "classification", "sample-coco": "coco", "sample-ade": "ade"}
MOVING_SAMPLES = {"sample-landmarks": "roxford5k", "sample-clips": "davis"}

MANY = "published-sets"
"""The folder that holds several of them; which ones, the configuration says."""
SHIFTED_SAMPLES = {f"sample-{name}": name for name in SHIFTED if name != "imagenet-c"}
"""Cards that are not as the sample's training cards are, in the layouts of robustness sets; ImageNet-C is
made on the fly."""


def is_sample(data: Path | None) -> bool:
    """Return whether --data is the word `sample`, or the sample data's own folder."""
    if data is None:
        return False
    return (data == Path("sample") and not data.exists()) or sample_manifest(data) is not None


def locate(dataset: str, data: Path | None) -> Path:
    """Return the folder of a data set.

    Args:
        dataset: A published set (imagenet, coco, imagenet-v2...), or one of the samples.
        data: The user's --data: a folder that holds the data set's folder, or that folder itself.
    """
    if dataset in SAMPLES:
        # the generator pulls in scikit-image: only the sample data needs it
        from mimbench.sample import sample_root  # noqa: PLC0415

        return sample_root() / SAMPLES[dataset]
    if dataset in MOVING_SAMPLES:
        from mimbench.sample.moving import moving_root  # noqa: PLC0415

        return moving_root() / MOVING_SAMPLES[dataset]
    if dataset in SHIFTED_SAMPLES:
        from mimbench.sample.shifted import shifted_root  # noqa: PLC0415

        return shifted_root() / SHIFTED_SAMPLES[dataset]
    if dataset not in {*LAYOUTS, MANY}:
        known = {*LAYOUTS, MANY, *SAMPLES, *MOVING_SAMPLES, *SHIFTED_SAMPLES}
        raise UserError(f"unknown data set '{dataset}'" + did_you_mean(dataset, known))
    if dataset == MANY:
        if data is None:
            raise UserError(
                "needs several published sets: pass --data DIR, the folder that holds them"
            )
        return data.resolve()
    layout = LAYOUTS[dataset]
    if data is None:
        raise UserError(
            f"needs {layout.TITLE}: pass --data DIR where DIR/{dataset} (or DIR itself) is the data "
            "set; `python -m mimbench doctor --data DIR` shows how to get it"
        )
    for folder in (data / dataset, *(data / name for name in ALIASES[dataset]), data):
        if layout.looks_like(folder):
            return folder.resolve()
    raise UserError(
        f"needs {layout.TITLE}, but neither {data / dataset} nor {data} looks like it; "
        f"to get it:\n{layout.obtain(data / dataset)}"
    )


@cache
def known_faults(dataset: str, folder: Path) -> tuple[str, ...]:
    """Return what is wrong with a published data set, each with what fixes it; counted once."""
    if dataset not in LAYOUTS:
        return ()
    checks = LAYOUTS[dataset].check(folder)
    return tuple(f"{c.name}: {c.detail}; {c.fix}" for c in checks if c.status == "fault")


@cache
def count_images(folder: Path) -> int:
    """Return how many images lie in train/<class> and val/<class>; counted once."""
    splits = [folder / split for split in ("train", "val")]
    return sum(len(image_names(s / name)) for s in splits for name in subfolder_names(s))


OWN = "own-"
"""How the name of a data set of the user's own begins: `own-<layout>-<digest>`."""


def data_name(dataset: str, *, own: bool, digest: str) -> str:
    """Return the name under which results remember a data set; a user's own is named by its content."""
    return f"{OWN}{dataset}-{digest[:6]}" if own and dataset in LAYOUTS else dataset
