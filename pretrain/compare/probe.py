"""How frozen features are scored: ridge regression and weighted k-NN, on patches' mean and class token.

Ridge regression has a closed form, no learning rate and the smallest spread over seeds; its strength
is chosen on a tenth of the training labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.scores import neighbours
from mimbench.system.errors import UserError
from mimbench.system.seeds import derive_seed
from mimbench.vit.backbone import Backbone
from pretrain.compare.design import ProbeConfig, split_of
from pretrain.sources.crops import Crops, DataConfig
from pretrain.sources.images import EvenSubset, ImageSource, open_source

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the ridge, over the number of images; features are standardised."""
NEIGHBOURS, TEMPERATURE = 20, 0.07
BATCH = 250


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Images (n, 3, S, S) in bytes and their classes (n,)."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def class_of(source: ImageSource, index: int) -> str:
    """Return an image's class: the folder that it lies in."""
    return Path(source.name(index).rpartition(":")[2]).parent.name


def load_labelled(data: Path, split: str, images: int, config: DataConfig) -> Labelled:
    """Return images of a split, whole, spread evenly over their order."""
    source: ImageSource = open_source("", split_of(data, split), split)
    source = EvenSubset(source, min(images, len(source)))
    whole = Crops(source, DataConfig(image_size=config.image_size, augment="none"))
    names = [class_of(source, i) for i in range(len(source))]
    classes = tuple(sorted(set(names)))
    if len(classes) < 2:
        raise UserError(f"{data}: the images of '{split}' are in one folder; classes are folders")
    labels = torch.tensor([classes.index(name) for name in names])
    return Labelled(
        images=torch.stack([whole.plain(i) for i in range(len(source))]),
        labels=labels,
        classes=classes,
    )


def both_splits(data: Path, probe: ProbeConfig, config: DataConfig) -> tuple[Labelled, Labelled]:
    """Return what features are fitted on and what they are scored on."""
    train = load_labelled(data, "train", probe.train, config)
    test = load_labelled(data, "test", probe.test, config)
    if train.classes != test.classes:
        raise UserError(f"{data}: the folders of 'train' and of 'test' are not the same classes")
    return train, test


@torch.no_grad()
def features(backbone: Backbone, images: Tensor) -> dict[str, Tensor]:
    """Return the mean of the patches and the class token of images in bytes, each (n, d)."""
    device = next(backbone.parameters()).device
    found: dict[str, list[Tensor]] = {"mean": [], "class": []}
    for part in images.split(BATCH):
        seen = backbone(part.to(device).float() / 255)
        found["mean"].append(seen.patches.mean(dim=(1, 2)).float().cpu())
        found["class"].append(seen.cls.float().cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def score(train: Tensor, test: Tensor, labels: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Return, for each way of scoring, which test images are right (n,)."""
    return {"ridge": ridge(train, test, labels), "knn": knn(train, test, labels)}


def all_scores(
    train: Mapping[str, Tensor], test: Mapping[str, Tensor], labels: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """Return the hits of every outcome; those on the class token carry its name."""
    found = score(train["mean"], test["mean"], labels)
    further = score(train["class"], test["class"], labels)
    return found | {f"{name}_class": hits for name, hits in further.items()}


def ridge(train: Tensor, test: Tensor, labels: tuple[Tensor, Tensor]) -> Tensor:
    """Return which test images a ridge regression on one-hot labels gets right."""
    train, test = train.double(), test.double()
    mean, std = train.mean(0), train.std(0).clamp(min=1e-8)
    train, test = (train - mean) / std, (test - mean) / std
    classes = int(torch.cat(labels).max()) + 1
    targets = F.one_hot(labels[0], classes).double()
    order = torch.randperm(
        len(train), generator=torch.Generator().manual_seed(derive_seed(len(train)))
    )
    held, kept = order[: len(train) // 10], order[len(train) // 10 :]
    gram = train[kept].T @ train[kept]
    cross, middle = train[kept].T @ (targets[kept] - targets[kept].mean(0)), targets[kept].mean(0)
    values, vectors = torch.linalg.eigh(gram)
    best, strength = -1.0, STRENGTHS[0]
    for candidate in STRENGTHS:
        weights = _solve(values, vectors, cross, candidate * len(kept))
        right = ((train[held] @ weights + middle).argmax(1) == labels[0][held]).double().mean()
        if right.item() > best:
            best, strength = right.item(), candidate
    values, vectors = torch.linalg.eigh(train.T @ train)
    middle = targets.mean(0)
    weights = _solve(values, vectors, train.T @ (targets - middle), strength * len(train))
    return (test @ weights + middle).argmax(1) == labels[1]


def _solve(values: Tensor, vectors: Tensor, cross: Tensor, strength: float) -> Tensor:
    return vectors @ ((vectors.T @ cross) / (values + strength).unsqueeze(1))


def knn(train: Tensor, test: Tensor, labels: tuple[Tensor, Tensor]) -> Tensor:
    """Return which test images their nearest training images vote right, weighted by similarity."""
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    classes = int(torch.cat(labels).max()) + 1
    ranked = neighbours.knn(
        train, labels[0], test, k=NEIGHBOURS, temperature=TEMPERATURE, classes=classes
    )
    return ranked[:, 0] == labels[1]
