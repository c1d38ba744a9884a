"""Per-image outcomes that tasks leave beside their numbers, read back for intervals."""

import math
from pathlib import Path

import numpy as np

CLASSIFICATION, SEGMENTATION, DETECTION = "outcomes.npz", "confusion.npz", "detections.json"
Z95 = 1.959964


def top1_hits(path: Path) -> np.ndarray:
    """Return which images were right, 1 or 0, in the order of the outcomes file."""
    with np.load(path, allow_pickle=False) as file:
        return (file["top5"][:, 0] == file["labels"]).astype(np.float64)


def intervals(out: Path) -> dict[str, float]:
    """Return metric -> half width of its 95 % sampling interval, for the outcomes found in `out`."""
    path = out / CLASSIFICATION
    if not path.is_file():
        return {}
    hits = top1_hits(path)
    share = hits.mean()
    return {"top1": float(100 * Z95 * math.sqrt(share * (1 - share) / len(hits)))}
