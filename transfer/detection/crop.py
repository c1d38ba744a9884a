"""Cropping polygons to the picture without shapely, which fvcore's own crop would need."""

from typing import Any

import numpy as np
from detectron2.data.transforms import FixedSizeCrop
from fvcore.transforms.transform import CropTransform, Transform, TransformList
from numpy.typing import NDArray

Points = NDArray[np.float64]


class WindowCrop(CropTransform):
    """fvcore's crop, but polygons are clipped side by side (Sutherland and Hodgman).

    A polygon that leaves the window and comes back stays one polygon whose parts are joined along
    the window's edge by a line without area: mask and box are those of the separate parts.
    """

    x0: int
    y0: int
    w: int
    h: int

    def apply_polygons(self, polygons: list[Points]) -> list[Points]:
        """Return the parts of the polygons inside the window, in its coordinates."""
        clipped = [self._clip(np.asarray(polygon, dtype=np.float64)) for polygon in polygons]
        return [
            points - (self.x0, self.y0)
            for points in clipped
            if len(points) >= 3 and polygon_area(points) > 0
        ]

    def _clip(self, points: Points) -> Points:
        low = (self.x0, self.y0)
        high = (self.x0 + self.w, self.y0 + self.h)
        for axis in (0, 1):
            points = clip_side(points, axis, low[axis], sign=1)
            points = clip_side(points, axis, high[axis], sign=-1)
        return points


def clip_side(points: Points, axis: int, limit: float, *, sign: int) -> Points:
    """Return the polygon cut by one line: what lies at `sign * (coordinate - limit) >= 0` stays."""
    if not len(points):
        return points
    ahead = sign * (points[:, axis] - limit)
    if (ahead >= 0).all():
        return points
    out = []
    for i, (point, reach) in enumerate(zip(points, ahead, strict=True)):
        before, reached = points[i - 1], ahead[i - 1]
        if (reach >= 0) != (reached >= 0):
            cut = before + (point - before) * (reached / (reached - reach))
            cut[axis] = limit
            out.append(cut)
        if reach >= 0:
            out.append(point)
    return np.asarray(out, dtype=np.float64).reshape(-1, 2)


def polygon_area(points: Points) -> float:
    """Return the area of a polygon."""
    x, y = points[:, 0], points[:, 1]
    return 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


class LimitedCrop(FixedSizeCrop):
    """detectron2's random crop of at most a fixed size, with the crop above."""

    def get_transform(self, image: NDArray[np.uint8]) -> TransformList:
        """Draw the crop for a picture."""
        drawn: list[Transform] = super().get_transform(image).transforms
        return TransformList([_windowed(transform) for transform in drawn])


def _windowed(transform: Any) -> Transform:
    if not isinstance(transform, CropTransform):
        return transform
    # fvcore sets its attributes where no type checker sees them
    t: Any = transform
    return WindowCrop(t.x0, t.y0, t.w, t.h, t.orig_w, t.orig_h)
