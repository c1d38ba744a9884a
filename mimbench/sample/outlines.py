"""Masks as COCO writes them: polygons along the pixel edges, and uncompressed RLE."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def mask_to_polygons(mask: NDArray[np.bool_]) -> list[list[int]]:
    """Return polygons [x, y, x, y, ...] on pixel corners that cover exactly `mask`.

    A polygon has no holes, so a piece with a hole is cut through the hole into two pieces.
    """
    return [
        [value + (left, top)[place % 2] for place, value in enumerate(_trace(piece))]
        for piece, top, left in _solid_pieces(mask, 0, 0)
    ]


def _solid_pieces(
    mask: NDArray[np.bool_], top: int, left: int
) -> Iterator[tuple[NDArray[np.bool_], int, int]]:
    """Yield the 4-connected pieces of `mask`, cut until none has a hole, each with its place."""
    labels, _ = ndimage.label(mask)  # pyright: ignore[reportGeneralTypeIssues]
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        piece = labels[box] == label
        y, x = top + box[0].start, left + box[1].start
        holes = ndimage.binary_fill_holes(piece) & ~piece
        if holes.any():
            cut = int(np.flatnonzero(holes.any(axis=0))[0]) + 1
            yield from _solid_pieces(piece[:, :cut], y, x)
            yield from _solid_pieces(piece[:, cut:], y, x + cut)
        else:
            yield piece, y, x


def _trace(piece: NDArray[np.bool_]) -> list[int]:
    """Walk once around a 4-connected piece without holes, keeping only the corners."""
    ahead = _directed_edges(piece)
    start = min(ahead)
    corners, point, before = [], start, None
    while True:
        after = ahead[point]
        step = (after[0] - point[0], after[1] - point[1])
        if step != before:
            corners += [point[0], point[1]]
        point, before = after, step
        if point == start:
            return corners


def _directed_edges(piece: NDArray[np.bool_]) -> dict[tuple[int, int], tuple[int, int]]:
    """Return the pixel edges around `piece`, clockwise, as start (x, y) -> end (x, y).

    No corner starts two edges: two pixels of one piece that touch at a corner only would enclose
    a hole, and there is none.
    """
    padded = np.pad(piece, 1)
    inside = padded[1:-1, 1:-1]
    sides = (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)),
        (padded[1:-1, :-2], (0, 1), (0, 0)),
    )
    ahead = {}
    for neighbour, begin, end in sides:
        ys, xs = np.nonzero(inside & ~neighbour)
        for y, x in zip(ys.tolist(), xs.tolist(), strict=True):
            ahead[x + begin[0], y + begin[1]] = (x + end[0], y + end[1])
    return ahead


def mask_to_rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return uncompressed RLE: lengths of runs down the columns, the first run being empty space."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"counts": [0, *runs] if flat[0] else runs, "size": list(mask.shape)}


def mask_to_box(mask: NDArray[np.bool_]) -> list[int]:
    """Return the smallest box around `mask` as [x, y, width, height]."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1)]
