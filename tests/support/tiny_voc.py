"""A few pictures in Pascal VOC 2012's own layout: palettes, void rims, lists (shared by tests)."""

from pathlib import Path

import numpy as np
from PIL import Image

from mimbench.data.label_colours import label_colour

TRAIN, VAL = 8, 4
CLASSES = (0, 1, 15, 20)
"""Those that occur: background, aeroplane, person, tvmonitor."""


def make_voc(root: Path) -> Path:
    """Write `root`/VOCdevkit/VOC2012 and return it."""
    home = root / "VOCdevkit" / "VOC2012"
    lists = home / "ImageSets" / "Segmentation"
    folders = ("JPEGImages", "SegmentationClass", "SegmentationClassAug")
    for folder in (*(home / name for name in folders), lists):
        folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    stems = [f"2007_{i:06d}" for i in range(TRAIN + VAL)]
    for i, stem in enumerate(stems):
        labels = _labels(rng)
        pixels = np.array([label_colour(max(1, c)) for c in range(256)], dtype=np.uint8)[labels]
        noise = rng.integers(0, 60, size=pixels.shape, dtype=np.uint8)
        Image.fromarray(pixels // 2 + noise).save(home / "JPEGImages" / f"{stem}.jpg")
        save_labels(home / "SegmentationClass" / f"{stem}.png", labels)
        # SBD's label maps have neither palette nor rims; those of VOC itself have both
        augmented = home / "SegmentationClassAug" / f"{stem}.png"
        if i % 2 or i >= TRAIN:
            save_labels(augmented, labels)
        else:
            Image.fromarray(np.where(labels == 255, 0, labels).astype(np.uint8)).save(augmented)
    (lists / "trainaug.txt").write_text("\n".join(stems[:TRAIN]) + "\n")
    (lists / "train.txt").write_text("\n".join(stems[1:TRAIN:2]) + "\n")
    (lists / "val.txt").write_text("\n".join(stems[TRAIN:]) + "\n")
    return home


def _labels(rng: np.random.Generator) -> np.ndarray:
    """Return a map (48, 64) with a thing or two on background, each within a void rim."""
    labels = np.zeros((48, 64), dtype=np.uint8)
    for place, label in enumerate(rng.permutation(CLASSES[1:])[:2]):
        left = 4 + 30 * place
        labels[8:40, left : left + 26] = 255
        labels[10:38, left + 2 : left + 24] = label
    return labels


def save_labels(path: Path, labels: np.ndarray) -> None:
    """Write a label map with VOC's palette."""
    image = Image.fromarray(labels, mode="P")
    image.putpalette([channel for label in range(256) for channel in label_colour(label)])
    image.save(path)
