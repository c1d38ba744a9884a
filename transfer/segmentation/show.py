"""Pictures of a run: image, prediction and ground truth side by side, with a legend."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from mimbench.scores.figures import Picture
from mimbench.scores.label_pictures import compose
from mimbench.system.errors import UserError
from transfer.segmentation.data import DataSource
from transfer.segmentation.framework import DATASETS
from transfer.segmentation.labels import read_labels

Labels = NDArray[np.uint8]


def show(
    model: nn.Module,
    cfg: Config,
    source: DataSource,
    count: int,
    *,
    largest: int | None = None,
) -> list[Picture]:
    """Return `count` pictures, spread evenly over the validation images.

    Args:
        model: The trained segmentor, on its device.
        cfg: The run's mmengine configuration.
        source: The data.
        count: How many.
        largest: Shrink panels to this longer side; None keeps the pictures' own.
    """
    if count < 1:
        raise UserError(f"--show {count}: ask for at least one picture")
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    pairs = source.pairs("val")
    chosen = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)
    found = []
    for index in chosen:
        image, labels = pairs[index]
        prediction = predict(model, dataset[int(index)])
        with Image.open(image) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        truth = source.loaded(read_labels(labels))
        panels = compose(pixels, prediction, truth, source.names, largest=largest)
        name = image.relative_to(source.root / source.folders["val"][0]).with_suffix("")
        found.append(Picture(name="_".join(name.parts), image=panels))
    return found


@torch.no_grad()
def predict(model: nn.Module, item: Mapping[str, Any]) -> Labels:
    """Return the predicted classes (H, W) of one item of the validation set, by sliding window."""
    model.eval()
    [sample] = cast(Any, model).test_step(pseudo_collate([item]))
    return sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8)
