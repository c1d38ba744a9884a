"""Large-scale jitter for pictures of any shape, and cropping polygons without shapely."""

from typing import Any

import numpy as np
from detectron2.data.transforms import FixedSizeCrop, ResizeScale, ResizeTransform
from fvcore.transforms.transform import CropTransform, Transform, TransformList
from numpy.typing import NDArray

Points = NDArray[np.float64]


class WindowCrop(CropTransform):
    """fvcore's crop, but polygons are clipped here: each part inside the window is a polygon."""

    x0: int
    y0: int
    w: int
    h: int

    def apply_polygons(self, polygons: list[Points]) -> list[Points]:
        """Return the parts of the polygons inside the window, in its coordinates."""
        corner = np.array([self.x0, self.y0], dtype=np.float64)
        parts = [np.asarray(polygon, dtype=np.float64) - corner for polygon in polygons]
        for axis, extent in ((0, self.w), (1, self.h)):
            parts = [q for p in parts for q in clip_side(p, axis, 0.0, sign=1)]
            parts = [q for p in parts for q in clip_side(p, axis, float(extent), sign=-1)]
        return [part for part in parts if polygon_area(part) > 0]


def clip_side(points: Points, axis: int, limit: float, *, sign: int) -> list[Points]:
    """Return the parts of a polygon on one side of a line: `sign * (coordinate - limit) >= 0`.

    The outline falls into chains between two crossings of the line. Sorted along the line, the
    crossings bound in pairs what of the line lies inside the polygon: chains joined by these
    segments are the parts.
    """
    ahead = sign * (points[:, axis] - limit)
    if (ahead >= 0).all():
        return [points]
    if (ahead <= 0).all():
        return []
    chains = _chains(points, ahead, axis, limit)
    ends = [(chain[e][1 - axis], i, e) for i, chain in enumerate(chains) for e in (0, -1)]
    ends.sort(key=lambda end: end[0])
    partner = {}
    for (_, *first), (_, *second) in zip(ends[::2], ends[1::2], strict=True):
        partner[tuple(first)], partner[tuple(second)] = tuple(second), tuple(first)
    parts, left = [], set(range(len(chains)))
    while left:
        chain, entry, walked = min(left), 0, []
        while chain in left:
            left.remove(chain)
            walked += chains[chain] if entry == 0 else chains[chain][::-1]
            chain, entry = partner[chain, -1 if entry == 0 else 0]
        parts.append(np.stack(walked))
    return parts


def _chains(points: Points, ahead: Points, axis: int, limit: float) -> list[list[Points]]:
    """Return the pieces of the outline that lie ahead of the line, each from crossing to crossing."""
    # a point on the line counts as outside: edges along the line would make spikes without area
    start = int(np.flatnonzero(ahead <= 0)[0])
    points, ahead = np.roll(points, -start, axis=0), np.roll(ahead, -start)
    chains: list[list[Points]] = []
    for i in range(1, len(points) + 1):
        here, there = i % len(points), i - 1
        if (ahead[here] > 0) != (ahead[there] > 0):
            share = ahead[there] / (ahead[there] - ahead[here])
            crossing = points[there] + (points[here] - points[there]) * share
            crossing[axis] = limit
            if ahead[here] > 0:
                chains.append([crossing])
            else:
                chains[-1].append(crossing)
        if ahead[here] > 0:
            chains[-1].append(points[here])
    return chains


def polygon_area(points: Points) -> float:
    """Return the area of a polygon."""
    x, y = points[:, 0], points[:, 1]
    return 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


class VisibleScale(ResizeScale):
    """detectron2's jitter of the scale, but of a thin picture at least one pixel is left.

    Rounded to none it would end the training, at a draw that nobody can foresee.
    """

    def get_transform(self, image: NDArray[np.uint8]) -> Transform:
        """Draw the scale for a picture."""
        return at_least_a_pixel(super().get_transform(image))


def at_least_a_pixel(transform: Any) -> Transform:
    """Return a resize whose sides are one pixel or more; anything else stays as it is."""
    if not isinstance(transform, ResizeTransform):
        return transform
    # fvcore sets its attributes where no type checker sees them
    t: Any = transform
    return ResizeTransform(t.h, t.w, max(t.new_h, 1), max(t.new_w, 1), t.interp)


class LimitedCrop(FixedSizeCrop):
    """detectron2's random crop of at most a fixed size, with the crop above."""

    def get_transform(self, image: NDArray[np.uint8]) -> TransformList:
        """Draw the crop for a picture."""
        drawn: list[Transform] = super().get_transform(image).transforms
        return TransformList([windowed(transform) for transform in drawn])


def windowed(transform: Any) -> Transform:
    """Return a crop that cuts polygons by the rule above; anything else stays as it is."""
    if not isinstance(transform, CropTransform):
        return transform
    # fvcore sets its attributes where no type checker sees them
    t: Any = transform
    return WindowCrop(t.x0, t.y0, t.w, t.h, t.orig_w, t.orig_h)
