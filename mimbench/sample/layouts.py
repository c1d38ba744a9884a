"""Writes the three layouts of the sample data into a folder."""

import hashlib
import io
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mimbench.sample import ade, coco
from mimbench.sample.cards import card_digit, make_card
from mimbench.sample.scenes import make_scene
from mimbench.system.errors import UserError
from mimbench.system.files import file_digest

_JPEG_QUALITY = 95


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many of each: cards per class, scenes."""

    train_per_class: int = 600
    val_per_class: int = 100
    train_scenes: int = 800
    val_scenes: int = 200

    def __post_init__(self):
        for name, value in asdict(self).items():
            if value < 1:
                raise UserError(f"sample data: {name} is {value}; expected at least 1")

    def cards(self, split: str) -> int:
        """Return the number of cards of `split`, all classes together."""
        return 10 * (self.train_per_class if split == "train" else self.val_per_class)

    def scenes(self, split: str) -> int:
        """Return the number of scenes of `split`."""
        return self.train_scenes if split == "train" else self.val_scenes


def write_classification(root: Path, sizes: Sizes) -> str:
    """Write <split>/<class>/<index>.png; return the digest of the decoded pictures."""
    digest = hashlib.sha256()
    for split in ("train", "val"):
        for digit in range(10):
            (root / split / str(digit)).mkdir(parents=True)
        for index in range(sizes.cards(split)):
            card = make_card(split, index)
            digest.update(card.tobytes())
            file = root / split / str(card_digit(index)) / f"{index:06d}.png"
            Image.fromarray(card).save(file, compress_level=1)
    return digest.hexdigest()


def write_scenes(coco_root: Path, ade_root: Path, sizes: Sizes) -> dict[str, str]:
    """Write the same scenes as COCO and as ADE20K; return the digests of the truth in each.

    The digests cover annotations and label maps, not JPEG pixels: those depend on the decoder.
    """
    census = ade.ClassCensus()
    labels_digest, instances_digest = hashlib.sha256(), hashlib.sha256()
    for split in ("train", "val"):
        folders = _scene_folders(coco_root, ade_root, split)
        annotations = []
        for index in range(sizes.scenes(split)):
            scene = make_scene(split, index)
            stem = ade.file_stem(split, index)
            picture = _jpeg(scene.image)
            folders["coco"].joinpath(coco.file_name(index)).write_bytes(picture)
            folders["images"].joinpath(f"{stem}.jpg").write_bytes(picture)
            labels = ade.label_map(scene)
            Image.fromarray(labels).save(folders["labels"] / f"{stem}.png", compress_level=1)
            labels_digest.update(labels.tobytes())
            census.add(split, labels)
            annotations += coco.annotate(split, index, scene)
        coco.write_instances(coco_root, split, sizes.scenes(split), annotations)
        name = f"instances_{coco.FOLDERS[split]}.json"
        instances_digest.update(file_digest(coco_root / "annotations" / name).encode())
    census.write(ade_root / "objectInfo150.txt")
    return {"coco": instances_digest.hexdigest(), "ade": labels_digest.hexdigest()}


def _scene_folders(coco_root: Path, ade_root: Path, split: str) -> dict[str, Path]:
    folders = {
        "coco": coco_root / coco.FOLDERS[split],
        "images": ade_root / "images" / ade.FOLDERS[split],
        "labels": ade_root / "annotations" / ade.FOLDERS[split],
    }
    for folder in folders.values():
        folder.mkdir(parents=True)
    return folders


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
