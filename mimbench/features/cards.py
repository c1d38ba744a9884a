"""A few labelled images of each class, and their features: enough for a canary or a picture."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mimbench.data.lists import ImageList, read_folder
from mimbench.data.preprocess import Preprocess
from mimbench.model import Network


@dataclass(frozen=True, kw_only=True)
class Cards:
    """A small labelled set, decoded: bank and queries."""

    bank: Tensor
    bank_labels: Tensor
    queries: Tensor
    query_labels: Tensor
    classes: int


def read_cards(
    data: Path, size: int, *, classes: int = 50, bank: int = 20, queries: int = 10
) -> Cards:
    """Return a few images of each class from an ImageNet-like folder, the same ones every time."""
    resize = max(size, round(size * 256 / 224)) if size >= 128 else size
    preprocess = Preprocess(size=size, resize=resize)
    train, val = (read_folder(data, split) for split in ("train", "val"))
    chosen = range(0, len(train.classes), max(1, len(train.classes) // classes))[:classes]
    parts = [
        _few(images, chosen, count, preprocess) for images, count in ((train, bank), (val, queries))
    ]
    return Cards(
        bank=parts[0][0],
        bank_labels=parts[0][1],
        queries=parts[1][0],
        query_labels=parts[1][1],
        classes=len(train.classes),
    )


def _few(
    images: ImageList, classes: range, count: int, preprocess: Preprocess
) -> tuple[Tensor, Tensor]:
    labels = torch.from_numpy(images.labels)
    picked = torch.cat([torch.nonzero(labels == c)[:count, 0] for c in classes])
    pixels = torch.stack([preprocess(images.open(int(i))) for i in picked])
    return pixels, labels[picked]


@torch.inference_mode()
def embed(
    network: Network, images: Tensor, device: torch.device, batch: int = 64
) -> dict[str, Tensor]:
    """Return the unit-length class token and mean of patches of uint8 images."""
    found: dict[str, list[Tensor]] = {"cls": [], "avg": []}
    for part in images.split(batch):
        vectors = network.vectors(part.to(device).float() / 255, 1)
        for name, parts in found.items():
            parts.append(vectors[f"{name}.1"].cpu())
    return {k: torch.nn.functional.normalize(torch.cat(v).float(), dim=1) for k, v in found.items()}
