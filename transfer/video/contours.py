"""DAVIS's measures: region similarity J and contour accuracy F, and how they are summed up."""

import math

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Scores = NDArray[np.float64]

TOLERANCE = 0.008
"""Contours match within this share of the picture's diagonal."""
BINS = 4


def region(annotation: Mask, segmentation: Mask) -> float:
    """Return J, the intersection over the union; 1 where both are empty."""
    union = int((annotation | segmentation).sum())
    return float((annotation & segmentation).sum() / union) if union else 1.0


def boundary(mask: Mask) -> Mask:
    """Return a mask's contour, one pixel wide: pixels that differ from the next to the right or below."""
    right, below, corner = mask.copy(), mask.copy(), mask.copy()
    right[:, :-1] = mask[:, 1:]
    below[:-1] = mask[1:]
    corner[:-1, :-1] = mask[1:, 1:]
    edge = (mask ^ right) | (mask ^ below) | (mask ^ corner)
    # beyond the last row and column there is nothing to differ from
    edge[-1], edge[:, -1] = (mask ^ right)[-1], (mask ^ below)[:, -1]
    edge[-1, -1] = False
    return edge


def contour(annotation: Mask, segmentation: Mask) -> float:
    """Return F, the harmonic mean of the contours' precision and recall; 1 where neither has any."""
    truth, found = boundary(annotation), boundary(segmentation)
    if not truth.any() or not found.any():
        # precision or recall is 0, or both contours are empty
        return float(not truth.any() and not found.any())
    reach = math.ceil(TOLERANCE * math.hypot(*annotation.shape))
    precision = (found & widened(truth, reach)).sum() / found.sum()
    recall = (truth & widened(found, reach)).sum() / truth.sum()
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


def widened(mask: Mask, reach: int) -> Mask:
    """Return the pixels within a disk of this radius around the mask's."""
    # OpenCV is slow to import
    import cv2  # noqa: PLC0415

    offsets = np.arange(-reach, reach + 1) ** 2
    disk = (offsets[:, None] + offsets[None] <= reach**2).astype(np.uint8)
    return cv2.dilate(mask.astype(np.uint8), disk).astype(bool)


def summary(frames: Scores) -> tuple[float, float, float]:
    """Return mean, recall (share above 0.5) and decay (first quarter minus last) over an object's frames.

    Neighbouring quarters share the frame at their border, as in the official code.
    """
    edges = np.round(np.linspace(1, len(frames), BINS + 1) + 1e-10).astype(int) - 1
    first, last = frames[edges[0] : edges[1] + 1], frames[edges[-2] : edges[-1] + 1]
    return float(frames.mean()), float((frames > 0.5).mean()), float(first.mean() - last.mean())


def object_scores(annotations: NDArray[np.uint8], segmentations: NDArray[np.uint8]) -> Scores:
    """Return (objects, 6): J mean, recall, decay, then the same of F.

    Args:
        annotations: (frames, H, W) objects from 1, 0 is background; first and last frame do not count.
        segmentations: The same, as predicted.
    """
    rows = []
    for number in range(1, int(annotations[0].max()) + 1):
        pairs = [
            (a == number, s == number)
            for a, s in zip(annotations[1:-1], segmentations[1:-1], strict=True)
        ]
        regions = summary(np.array([region(a, s) for a, s in pairs]))
        contours = summary(np.array([contour(a, s) for a, s in pairs]))
        rows.append([*regions, *contours])
    return np.array(rows, dtype=np.float64).reshape(-1, 6)
