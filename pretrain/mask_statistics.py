"""What masks are like: how much, where, how clumped, over which objects, on how hard patches."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from mimbench.errors import UserError
from pretrain.archives import SUFFIXES
from pretrain.laboratory import fit_image


@dataclass(frozen=True, kw_only=True)
class Row:
    """One strategy's statistics over a set of images."""

    label: str
    ratio: float
    """Share of patches hidden."""
    spatial_entropy: float
    """Entropy of where masks lie over the set, over its maximum: 1 is everywhere alike."""
    clumping: float
    """Share of a hidden patch's neighbours that are hidden, over the ratio: 1 is no clumping."""
    objects: float | None
    """Share of object area hidden, over the ratio: above 1 objects are sought out."""
    rank_correlation: float | None
    """Spearman's, between how often a patch is hidden and its true reconstruction loss."""
    where: Tensor
    """(rows, columns): how often each place is hidden."""


def describe(
    label: str,
    draws: Tensor,
    grid: tuple[int, int],
    *,
    objects: Tensor | None,
    loss: Tensor | None,
) -> Row:
    """Return the statistics of masks.

    Args:
        label: What to call them.
        draws: (draws, b, n) masks, several of each image.
        grid: Rows and columns.
        objects: (b, n) share of each patch that objects cover; NaN rows have no annotation.
        loss: (b, n) true reconstruction loss.
    """
    often = draws.float().mean(0)
    where, ratio = often.mean(0), often.mean().item()
    share = where / where.sum()
    entropy = -(share * share.clamp(min=1e-12).log()).sum().item() / math.log(len(share))
    over = None
    if objects is not None:
        known = objects.isfinite().all(1) & (objects.sum(1) > 0)
        if known.any():
            area = objects[known]
            over = ((often[known] * area).sum() / area.sum()).item() / ratio
    return Row(
        label=label,
        ratio=ratio,
        spatial_entropy=entropy,
        clumping=_clumping(draws.flatten(0, 1).float().unflatten(1, grid)) / ratio,
        objects=over,
        rank_correlation=None if loss is None else spearman(often, loss),
        where=where.unflatten(0, grid),
    )


def _clumping(masks: Tensor) -> float:
    kernel = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    x = masks.unsqueeze(1)
    hidden = F.conv2d(x, kernel, padding=1)
    neighbours = F.conv2d(torch.ones_like(x), kernel, padding=1)
    return ((hidden * x).sum() / (neighbours * x).sum()).item()


def spearman(one: Tensor, other: Tensor) -> float:
    """Return the mean over rows of Spearman's rank correlation, ties sharing their mean rank."""
    ranks = [_ranks(values) for values in (one, other)]
    a, b = (r - r.mean(1, keepdim=True) for r in ranks)
    scale = a.norm(dim=1) * b.norm(dim=1)
    # a row without any order has no correlation
    known = scale > 0
    return ((a * b).sum(1)[known] / scale[known]).mean().item() if known.any() else 0.0


def _ranks(values: Tensor) -> Tensor:
    smaller = (values.unsqueeze(2) > values.unsqueeze(1)).sum(2)
    equal = (values.unsqueeze(2) == values.unsqueeze(1)).sum(2)
    return smaller + (equal - 1) / 2


def find_images(root: Path, limit: int) -> list[Path]:
    """Return up to `limit` images below a folder, spread evenly over their sorted names."""
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"no images below {root}")
    step = max(1, len(found) // limit)
    return found[::step][:limit]


def find_annotations(root: Path, given: Path | None) -> list[Path]:
    """Return the COCO annotation files that belong to a folder of images."""
    if given is not None:
        return [given]
    folders = (root / "annotations", root.parent / "annotations")
    return [path for folder in folders for path in sorted(folder.glob("instances_*.json"))]


def object_cover(
    paths: Sequence[Path], annotations: Sequence[Path], size: tuple[int, int], patch: int
) -> Tensor | None:
    """Return the share of each patch that objects cover (b, n), NaN for unknown images.

    Segments are taken where they are polygons, boxes elsewhere; the middle of each image counts, as
    it is looked at.
    """
    known: dict[str, tuple[tuple[int, int], list[Mapping[str, object]]]] = {}
    for path in annotations:
        known |= _read_coco(path)
    if not any(path.name in known for path in paths):
        return None
    rows = []
    for path in paths:
        if path.name in known:
            cover = fit_image(_paint(*known[path.name]), size).float()[:1] / 255
            rows.append(F.avg_pool2d(cover.unsqueeze(0), patch).flatten())
        else:
            rows.append(torch.full((size[0] * size[1] // patch**2,), float("nan")))
    return torch.stack(rows)


def _read_coco(
    path: Path,
) -> dict[str, tuple[tuple[int, int], list[Mapping[str, object]]]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = {
            image["id"]: (image["file_name"], (image["width"], image["height"]))
            for image in content["images"]
        }
        found = {Path(name).name: (size, []) for name, size in images.values()}
        for item in content["annotations"]:
            found[Path(images[item["image_id"]][0]).name][1].append(item)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no COCO annotation file: {error!r}") from error
    return found


def _paint(size: tuple[int, int], items: Sequence[Mapping[str, object]]) -> Tensor:
    canvas = Image.new("RGB", size)
    brush = ImageDraw.Draw(canvas)
    for item in items:
        shapes, box = item.get("segmentation"), item["bbox"]
        assert isinstance(box, list)
        if isinstance(shapes, list) and shapes:
            for shape in shapes:
                brush.polygon([float(v) for v in shape], fill="white")
        else:
            x, y, width, height = box
            brush.rectangle((x, y, x + width, y + height), fill="white")
    return vision.pil_to_tensor(canvas)
