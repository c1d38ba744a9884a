"""The shape of masks: their counts, places, grain and gaps, how they repeat, and what they know of objects."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 64
"""Masks whose distances are held at once."""
SHUFFLES = 4
"""Other images whose objects stand in for an image's own: what information chance alone seems to give."""
INSIDE = 0.5
"""Share of a patch that is annotated from which on it counts as part of an object."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One strategy's masks; in brackets what random masks of 0.75 on 14 x 14 give."""

    count_entropy: float
    """Entropy in bits of the number hidden in an image: 0 where it is fixed (0)."""
    border: float
    """How often the outer ring is hidden, over the central half (1)."""
    dead: float
    """Share of places that are nearly never or nearly always hidden (0)."""
    grain: float
    """Lag in patches at which the autocorrelation falls below 1/e (0.63)."""
    evenness: float
    """The most negative autocorrelation (0)."""
    distance: float
    """Mean distance of a hidden patch to the nearest visible one, in patches (1.25)."""
    parts: float
    """Connected parts of what is visible (27)."""
    repetition: float | None
    """Overlap of two masks of one image, over that of two images (1)."""
    information: float | None = None
    """Bits that a patch's being hidden tells of its being an object, less what chance gives (0)."""
    place: float | None = None
    """Bits that the mean mask of each place tells, whatever the image: not part of those above (0)."""
    lift: float | None = None
    """Mean reconstruction loss under these masks, over random ones' (1)."""


def shape_of(
    draws: Tensor,
    grid: tuple[int, int],
    *,
    objects: Tensor | None = None,
    lift: float | None = None,
) -> Shape:
    """Return the statistics of masks.

    Args:
        draws: (draws, b, n) masks, several of each image.
        grid: Rows and columns.
        objects: (b, n) share of each patch that is annotated; NaN rows have nothing.
        lift: The loss under these masks, over that under random ones.
    """
    masks = draws.flatten(0, 1)
    where = masks.float().mean(0).view(grid)
    grain, evenness = autocorrelation(masks.view(-1, *grid))
    information, place = (None, None) if objects is None else knowledge(draws, objects)
    return Shape(
        count_entropy=count_entropy(masks),
        border=border_bias(where),
        dead=((where < 0.01) | (where > 0.99)).float().mean().item(),
        grain=grain,
        evenness=evenness,
        distance=distance_to_sight(masks, grid),
        parts=visible_parts(masks.view(-1, *grid)),
        repetition=repetition(draws),
        information=information,
        place=place,
        lift=lift,
    )


def count_entropy(masks: Tensor) -> float:
    """Return the entropy in bits of how many patches (b, n) are hidden in an image."""
    share = masks.sum(1).bincount().double() / len(masks)
    share = share[share > 0]
    # a single count has an entropy of 0, not of minus 0
    return abs(-(share * share.log2()).sum().item())


def border_bias(where: Tensor) -> float:
    """Return how often the outer ring (rows, columns) is hidden, over the central half."""
    rows, columns = where.shape
    ring = torch.ones_like(where, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    middle = where[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4]
    return (where[ring].mean() / middle.mean().clamp(min=1e-9)).item()


def autocorrelation(masks: Tensor) -> tuple[float, float]:
    """Return the lag at which masks' (m, rows, columns) correlation falls below 1/e, and its minimum."""
    x = masks.double() - masks.double().mean(0)
    power = x.square().mean().item()
    if power == 0:
        return 0.0, 0.0
    found = [1.0]
    for lag in range(1, min(x.shape[1:])):
        down = (x[:, lag:] * x[:, :-lag]).mean().item()
        right = (x[:, :, lag:] * x[:, :, :-lag]).mean().item()
        found.append((down + right) / 2 / power)
    limit = 1 / math.e
    for lag, (before, after) in enumerate(itertools.pairwise(found)):
        if after < limit:
            return lag + (before - limit) / (before - after), min(found)
    return float(len(found) - 1), min(found)


def distance_to_sight(masks: Tensor, grid: tuple[int, int]) -> float:
    """Return the mean distance of hidden patches to the nearest visible one, in patches."""
    places = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float32) for side in grid))
    apart = torch.cdist(places, places)
    total, count = 0.0, 0
    for part in masks.split(CHUNK):
        seen = apart.masked_fill(part.unsqueeze(1), math.inf).amin(2)
        hidden = part & seen.isfinite()
        total += seen[hidden].sum().item()
        count += int(hidden.sum())
    return total / max(1, count)


def visible_parts(masks: Tensor) -> float:
    """Return the mean number of connected parts of what is visible in masks (m, rows, columns)."""
    m, rows, columns = masks.shape
    hidden = rows * columns
    own = torch.arange(hidden).view(1, rows, columns).expand(m, -1, -1)
    label = own.masked_fill(masks, hidden)
    while True:
        wide = torch.nn.functional.pad(label, (1, 1, 1, 1), value=hidden)
        near = torch.stack(
            [wide[:, :-2, 1:-1], wide[:, 2:, 1:-1], wide[:, 1:-1, :-2], wide[:, 1:-1, 2:], label]
        )
        spread = near.amin(0).masked_fill(masks, hidden)
        if torch.equal(spread, label):
            # each part has taken the smallest number in it
            return (label == own).sum().item() / m
        label = spread


def repetition(draws: Tensor) -> float | None:
    """Return the overlap of two draws of one image, over that of two images; None for single ones."""
    if draws.shape[0] < 2 or draws.shape[1] < 2:
        return None
    same = _overlap(draws[:-1], draws[1:])
    other = _overlap(draws[:-1], draws[1:].roll(1, dims=1))
    return same / max(other, 1e-9)


def _overlap(one: Tensor, other: Tensor) -> float:
    return ((one & other).sum(-1) / (one | other).sum(-1).clamp(min=1)).mean().item()


def knowledge(draws: Tensor, objects: Tensor) -> tuple[float | None, float | None]:
    """Return the bits that masks tell of their images' objects, and those that places alone tell.

    What they tell of other images' objects is taken from the first: places and chance.
    """
    known = objects.isfinite().all(1)
    if known.sum() < 2:
        return None, None
    inside = objects[known] > INSIDE
    often = draws.float().mean(0)[known]
    place = often.mean(0).expand_as(often)
    shifts = range(1, min(SHUFFLES, len(inside) - 1) + 1)
    others = [mutual_information(often, inside.roll(s, dims=0)) for s in shifts]
    own = mutual_information(often, inside) - sum(others) / len(others)
    return own, mutual_information(place, inside)


def mutual_information(hidden: Tensor, inside: Tensor) -> float:
    """Return the bits between how likely patches are hidden (b, n) and whether they are objects."""
    total = 0.0
    hide = hidden.double()
    chance = hide.mean(), inside.double().mean()
    for h, p_h in ((hide, chance[0]), (1 - hide, 1 - chance[0])):
        for o, p_o in ((inside, chance[1]), (~inside, 1 - chance[1])):
            both = (h * o).mean()
            if both > 0:
                total += (both * (both / (p_h * p_o)).log2()).item()
    return total
