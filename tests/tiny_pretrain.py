"""A pretraining run of a tiny network on noise, for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

NETWORK = (
    "encoder.width=24",
    "encoder.heads=2",
    "decoder.width=16",
    "decoder.depth=1",
    "decoder.heads=2",
    "data.image_size=32",
    "machine.device=cpu",
)
"""What makes any recipe small; the encoder's depth and patch are the test's."""


def noisy_images(root: Path, count: int, suffix: str = ".jpg") -> Path:
    """Write noise into the two classes of a training folder, in turns; return the root."""
    dice = np.random.default_rng(0)
    for i in range(count):
        path = root / "train" / "ab"[i % 2] / f"{i:02d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return root
