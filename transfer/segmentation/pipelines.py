"""What happens to a picture before the model: training crops, plain and multi-scale tests."""

from typing import Any

from transfer.segmentation.protocol import SegmentationConfig


def train_pipeline(config: SegmentationConfig) -> list[dict[str, Any]]:
    """Return the training transforms in their published order."""
    crop = {"type": "RandomCrop", "crop_size": tuple(config.crop)}
    resize = {"type": "RandomResize", "scale": tuple(config.scale), "keep_ratio": True}
    return [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations"},
        {**resize, "ratio_range": tuple(config.resize)},
        {**crop, "cat_max_ratio": config.max_class_share},
        {"type": "RandomFlip", "prob": 0.5},
        *([{"type": "PhotoMetricDistortion"}] if config.distortion else []),
        {"type": "PackSegInputs"},
    ]


def test_pipeline(config: SegmentationConfig) -> list[dict[str, Any]]:
    """Return the test transforms; labels are loaded after resizing, so they keep their size."""
    return [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": tuple(config.scale), "keep_ratio": True},
        {"type": "LoadAnnotations"},
        {"type": "PackSegInputs"},
    ]


def multiscale_pipeline(config: SegmentationConfig) -> list[dict[str, Any]]:
    """Return the multi-scale and flip transforms; no scale makes the short side less than 1 x."""
    scales = [
        tuple(round(side * max(1.0, ratio)) for side in config.scale) for ratio in config.multiscale
    ]
    flips = [{"type": "RandomFlip", "prob": p, "direction": "horizontal"} for p in (0.0, 1.0)]
    transforms = [
        [{"type": "Resize", "scale": scale, "keep_ratio": True} for scale in scales],
        flips,
        [{"type": "LoadAnnotations"}],
        [{"type": "PackSegInputs"}],
    ]
    return [{"type": "LoadImageFromFile"}, {"type": "TestTimeAug", "transforms": transforms}]
