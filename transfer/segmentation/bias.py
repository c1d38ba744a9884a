"""BEiT's relative position bias at another size, as its authors resize it.

mmseg has the same rule, for squares only and through a SciPy function that no longer exists.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

TOKEN_ROWS = 3
"""Class to patch, patch to class, class to class: kept as they are."""


def resize_bias(table: Tensor, *, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Return a bias table (offsets + 3, heads) resampled from one grid of patches to another.

    Near offsets keep their values, far ones spread out: source offsets are placed at distances
    that grow geometrically up to the largest new offset, and a cubic spline runs through them.
    """
    if grid == to:
        return table
    source, target = _offsets(grid), _offsets(to)
    places = [_placed(old, new) for old, new in zip(source, target, strict=True)]
    wanted = [np.arange(-(new // 2), new // 2 + 1) for new in target]
    body = table[:-TOKEN_ROWS].double().reshape(*source, -1).numpy()
    (y, x), (to_y, to_x) = places, wanted
    heads = [RectBivariateSpline(y, x, body[..., h])(to_y, to_x) for h in range(body.shape[-1])]
    resized = torch.from_numpy(np.stack(heads, axis=-1)).to(table.dtype)
    return torch.cat([resized.flatten(0, 1), table[-TOKEN_ROWS:]])


def _offsets(grid: tuple[int, int]) -> tuple[int, int]:
    return 2 * grid[0] - 1, 2 * grid[1] - 1


def _placed(source: int, target: int) -> NDArray[np.float64]:
    """Return where `source` offsets lie among `target` ones: 0, then steps 1, q, q², ... outwards."""
    half, reach = source // 2, target // 2
    low, high = 1e-3, 4.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        too_far = (middle ** np.arange(half)).sum() > reach
        low, high = (low, middle) if too_far else (middle, high)
    outwards = np.cumsum(low ** np.arange(half))
    return np.concatenate([-outwards[::-1], [0.0], outwards])
