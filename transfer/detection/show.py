"""Pictures with a run's detections beside the ground truth."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import Visualizer
from numpy.typing import NDArray
from PIL import Image

from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path
from transfer.detection import data
from transfer.detection.protocol import Config
from transfer.detection.score import read_detections

logger = logging.getLogger(__name__)

GAP = 8
"""White pixels between the two pictures."""


def show(
    folder: Path, detections: Path, config: Config, *, count: int, threshold: float
) -> list[Path]:
    """Write `count` pictures, truth on the left and detections on the right; return their paths.

    Args:
        folder: Where the pictures go.
        detections: COCO results.
        config: The run's configuration: it names the validation data.
        count: How many, spread evenly over the validation pictures.
        threshold: The lowest score drawn.
    """
    if count < 1:
        raise UserError(f"--show {count}: ask for at least one picture")
    split = data.inspect(config.data / config.val_json, config.data / config.val_images)
    name = data.register(split)
    records = DatasetCatalog.get(name)
    found: dict[int, list[Mapping[str, Any]]] = {}
    kept = read_detections(detections)
    for item in kept:
        if item["score"] >= threshold:
            found.setdefault(item["image_id"], []).append(item)
    if not found:
        best = max((item["score"] for item in kept), default=0.0)
        logger.warning(
            "no detection scores %.2f or more (the best has %.2f): lower --threshold",
            threshold,
            best,
        )
    chosen = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    paths = []
    for index in chosen:
        record = records[index]
        picture = _side_by_side(record, found.get(record["image_id"], []), name)
        path = folder / f"{Path(record['file_name']).stem}.png"
        with atomic_path(path) as part:
            Image.fromarray(picture).save(part, format="PNG")
        paths.append(path)
    logger.info("wrote %d pictures to %s", len(paths), folder)
    return paths


def _side_by_side(
    record: Mapping[str, Any], found: Sequence[Mapping[str, Any]], name: str
) -> NDArray[np.uint8]:
    metadata = MetadataCatalog.get(name)
    image = read_image(record["file_name"], format="RGB")
    # small pictures are enlarged, so that labels can be read
    scale = max(1.0, 400 / image.shape[1])
    truth = Visualizer(image, metadata, scale=scale).draw_dataset_dict(dict(record))
    seen = Visualizer(image, metadata, scale=scale).draw_instance_predictions(
        _instances(found, image.shape[:2], metadata.thing_dataset_id_to_contiguous_id)
    )
    left, right = truth.get_image(), seen.get_image()
    gap = np.full((left.shape[0], GAP, 3), 255, dtype=np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def _instances(
    found: Sequence[Mapping[str, Any]], size: tuple[int, int], places: Mapping[int, int]
) -> Instances:
    boxes = [BoxMode.convert(d["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for d in found]
    masks = [rle.decode(d["segmentation"]).astype(bool) for d in found]
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor([d["score"] for d in found])
    instances.pred_classes = torch.tensor(
        [places[d["category_id"]] for d in found], dtype=torch.int64
    )
    instances.pred_masks = torch.from_numpy(
        np.stack(masks) if masks else np.zeros((0, *size), bool)
    )
    return instances
