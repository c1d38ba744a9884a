"""The two data sets of a run as detectron2's lazy configurations: records, mapper, augmentation."""

from collections.abc import Mapping
from typing import Any

from detectron2.config import LazyCall
from detectron2.data import DatasetMapper, get_detection_dataset_dicts
from detectron2.data import transforms as T
from omegaconf import DictConfig, OmegaConf

from transfer.detection.crop import LimitedCrop, VisibleScale
from transfer.detection.detector import DetectorConfig
from transfer.detection.edges import VisibleEdge, augmentations


def jitter(config: DetectorConfig) -> list[Any]:
    """Return large-scale jitter: a flip, a scale of the square, a crop of at most the square."""
    side = config.image_size
    scale = LazyCall(VisibleScale)(
        min_scale=config.resize[0],
        max_scale=config.resize[1],
        target_height=side,
        target_width=side,
    )
    return [
        LazyCall(T.RandomFlip)(prob=config.flip, horizontal=True),
        scale,
        LazyCall(LimitedCrop)(crop_size=(side, side), pad=False),
    ]


def build_data_config(
    config: DetectorConfig, names: Mapping[str, str], *, bitmask: bool
) -> DictConfig:
    """Return the two data sets with their mappers: augmented in training, plain in scoring.

    Args:
        config: The recipe.
        names: The registered data sets, `train` and `val`.
        bitmask: Masks are run-length codes rather than polygons.
    """
    edges = config.edges
    train = LazyCall(DatasetMapper)(
        is_train=True,
        augmentations=jitter(config) if edges is None else augmentations(edges, config.flip),
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask" if bitmask else "polygon",
        # large-scale jitter's boxes are those of the masks that it left; elsewhere boxes are only cut
        recompute_boxes=edges is None,
    )
    longest = config.image_size if edges is None else edges.longest
    plain = LazyCall(VisibleEdge)(short_edge_length=config.image_size, max_size=longest)
    val = LazyCall(DatasetMapper)(is_train=False, augmentations=[plain], image_format="RGB")
    datasets = LazyCall(get_detection_dataset_dicts)
    return OmegaConf.create(
        {
            "train": {"dataset": datasets(names=names["train"]), "mapper": train},
            "val": {"dataset": datasets(names=names["val"], filter_empty=False), "mapper": val},
        },
        flags={"allow_objects": True},
    )
