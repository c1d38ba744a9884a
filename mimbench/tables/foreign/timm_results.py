"""`results/results-*.csv` of github.com/huggingface/pytorch-image-models: released classifiers, scored."""

from collections.abc import Iterator
from pathlib import Path

from mimbench.system.errors import UserError
from mimbench.tables.foreign.reading import Line, read_csv
from mimbench.tables.foreign.rows import ForeignRow

LICENCE = "Apache-2.0"
NEEDED = (
    "model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct",
    "interpolation",
)  # fmt: skip
PROTOCOL = "timm validate, each model at its own size and crop"
DATASETS = {
    "results-imagenet": "ImageNet-1k val",
    "results-imagenet-real": "ImageNet-ReaL",
    "results-imagenet-a": "ImageNet-A",
    "results-imagenet-a-clean": "ImageNet-1k val, the classes of ImageNet-A",
    "results-imagenet-r": "ImageNet-R",
    "results-imagenet-r-clean": "ImageNet-1k val, the classes of ImageNet-R",
    "results-imagenetv2-matched-frequency": "ImageNetV2 matched frequency",
    "results-sketch": "ImageNet-Sketch",
}
"""The file's name is the only thing that says which images were scored."""
ROUNDING = 0.002
"""Accuracy and error are rounded apart, to three places."""


def read(path: Path, source: str, licence: str) -> Iterator[tuple[int, ForeignRow]]:
    """Yield line and row for top-1 and top-5 of every model."""
    if path.stem not in DATASETS:
        raise UserError(
            f"{path}: the name does not say which images were scored; keep the name that the file "
            f"has upstream: {', '.join(f'{name}.csv' for name in DATASETS)}"
        )
    for record in read_csv(path, needed=NEEDED):
        size = record.whole("img_size", 16, 4096)
        crop = record.number("crop_pct", 0.1, 2)
        how = f"{size} px, crop {crop:.3f}, {record.text('interpolation')}"
        for metric in ("top1", "top5"):
            yield (
                record.line,
                ForeignRow(
                    model=record.text("model"),
                    family=record.text("model").partition("_")[0].partition(".")[0],
                    setting=how,
                    benchmark="timm-validate",
                    dataset=DATASETS[path.stem],
                    metric=metric,
                    value=_accuracy(record, metric),
                    protocol=PROTOCOL,
                    source=source,
                    licence=licence,
                ),
            )


def _accuracy(record: Line, metric: str) -> float:
    value = record.number(metric, 0, 100)
    error = record.number(f"{metric}_err", 0, 100)
    if abs(value + error - 100) > ROUNDING:
        raise record.error(f"{metric} {value:g} and {metric}_err {error:g} do not add up to 100")
    return value
