"""What people have drawn around things, patch by patch: COCO's objects, or maps of segments as ADE20K's.

A COCO file (`annotations/instances_*.json` beside the images) gives objects, weighted by area.
A map of class numbers (`annotations/` in place of `images/` in the path, `.png`) gives segments:
there each segment of an image counts the same, whatever its area, so that small things weigh as
much as the wall behind them. Values 0 and 255 are not labelled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from mimbench.data.images import read
from mimbench.system.errors import UserError
from pretrain.sources.labels import UNLABELLED, Items, Labels, read_coco
from pretrain.viewing.laboratory import fit_image

IMAGES, LABELS = "images", "annotations"


@dataclass(frozen=True, kw_only=True)
class Cover:
    """Where annotated things lie."""

    kind: str
    """What they are: `objects` or `segments`."""
    weights: Tensor
    """(b, n): how much of them lies on each patch; NaN rows have no annotation."""


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """What belongs to a set of images."""

    coco: tuple[Path, ...] = ()
    maps: Mapping[Path, Path] | None = None
    """Image -> map of segments."""

    def cover(self, paths: Sequence[Path], size: tuple[int, int], patch: int) -> Cover | None:
        """Return what covers the patches of images, None where nothing is known of any.

        The middle of each image counts, as it is looked at.
        """
        if self.maps:
            found = {path: _segments(path, at, size, patch) for path, at in self.maps.items()}
            return _cover("segments", [found.get(path) for path in paths], size, patch)
        known: dict[str, tuple[tuple[int, int], Items]] = {}
        for path in self.coco:
            known |= read_coco(path)
        items = [known.get(path.name) for path in paths]
        rows = [None if item is None else _objects(*item, size, patch) for item in items]
        return _cover("objects", rows, size, patch)

    def numbers(self, paths: Sequence[Path], size: tuple[int, int]) -> dict[str, Tensor]:
        """Return the numbers (b, H, W) of each image's middle for masks: of boxes, of segments.

        Empty where nothing is known of any.
        """
        if not self.maps and not self.coco:
            return {}
        objects: dict[str, tuple[tuple[int, int], Items]] = {}
        for path in self.coco:
            objects |= read_coco(path)
        maps = {path.stem: at for path, at in (self.maps or {}).items()}
        found = {}
        for kind in ("boxes", "segments"):
            labels = Labels(boxes=kind == "boxes", objects=objects, maps=maps)
            rows = [labels.of(str(path), read(path)) for path in paths]
            fitted = [fit_image(row, size, InterpolationMode.NEAREST)[0] for row in rows]
            found[kind] = torch.stack(fitted)
        return found


def find_annotations(root: Path, paths: Sequence[Path], given: Path | None) -> Annotations:
    """Return the annotations of images below a folder.

    Args:
        root: The folder.
        paths: Images in it.
        given: A COCO file, or a folder of maps with the images' names; found by default.
    """
    if given is not None and not given.exists():
        raise UserError(f"--annotations {given} does not exist")
    if given is not None and given.is_dir():
        maps = {path: (given / path.relative_to(root)).with_suffix(".png") for path in paths}
        maps = {path: at for path, at in maps.items() if at.is_file()}
        if not maps:
            raise UserError(
                f"--annotations {given} holds no map for any image in {root}; expected the images' "
                f"paths with .png, as {next(iter(paths)).relative_to(root).with_suffix('.png')}"
            )
        return Annotations(maps=maps)
    if given is not None:
        return Annotations(coco=(given,))
    maps = {path: at for path in paths if (at := _map_of(path)) is not None}
    if maps:
        return Annotations(maps=maps)
    folders = (root / LABELS, root.parent / LABELS)
    files = [path for folder in folders for path in sorted(folder.glob("instances_*.json"))]
    return Annotations(coco=tuple(files))


def is_label_map(path: Path, root: Path) -> bool:
    """Tell whether a picture below a folder is a map of segments: it must not pass for an image."""
    parts = path.relative_to(root).parts[:-1]
    places = [i for i, part in enumerate(parts) if part == LABELS]
    return any(root.joinpath(*parts[:i], IMAGES).is_dir() for i in places)


def _map_of(path: Path) -> Path | None:
    parts = list(path.parts)
    if IMAGES not in parts[:-1]:
        return None
    last = len(parts) - 1 - parts[::-1].index(IMAGES)
    found = Path(*parts[:last], LABELS, *parts[last + 1 :]).with_suffix(".png")
    return found if found.is_file() else None


def _cover(
    kind: str, rows: Sequence[Tensor | None], size: tuple[int, int], patch: int
) -> Cover | None:
    if all(row is None for row in rows):
        return None
    none = torch.full((size[0] * size[1] // patch**2,), float("nan"))
    return Cover(kind=kind, weights=torch.stack([none if row is None else row for row in rows]))


def _segments(image: Path, at: Path, size: tuple[int, int], patch: int) -> Tensor:
    """Return, for each patch, its part of every segment, summed; each segment counts 1 in all."""
    try:
        with Image.open(at) as found, Image.open(image) as seen:
            if found.mode not in ("L", "P"):
                raise UserError(
                    f"{at} has mode {found.mode}; a map of segments has one 8-bit channel (L or P)"
                )
            if found.size != seen.size:
                raise UserError(f"{at} is {found.size} pixels, its image {image} {seen.size}")
            labels = torch.from_numpy(np.array(found)).unsqueeze(0)
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"cannot read the map of segments {at}: {error}") from error
    fitted = fit_image(labels, size, InterpolationMode.NEAREST)
    numbers = [number for number in fitted.unique().tolist() if number not in UNLABELLED]
    if not numbers:
        return torch.zeros(size[0] * size[1] // patch**2)
    each = torch.stack([fitted[0] == number for number in numbers]).float()
    shares = F.avg_pool2d(each.unsqueeze(0), patch)[0].flatten(1)
    return (shares / shares.sum(1, keepdim=True)).sum(0)


def _objects(shape: tuple[int, int], items: Items, size: tuple[int, int], patch: int) -> Tensor:
    """Return the share of each patch that objects cover: polygons where there are any, else boxes."""
    cover = fit_image(_paint(shape, items), size).float()[:1] / 255
    return F.avg_pool2d(cover.unsqueeze(0), patch).flatten()


def _paint(size: tuple[int, int], items: Items) -> Tensor:
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
