"""`results.csv` of github.com/billpsomas/efficient-probing: k-NN, linear and attentive probe of each model."""

from collections.abc import Iterator
from pathlib import Path

from mimbench.tables.foreign.reading import Line, read_csv
from mimbench.tables.foreign.rows import ForeignRow

LICENCE = "Apache-2.0"
NEEDED = (
    "family", "method", "arch", "pretrain", "eval", "image_size", "lp", "lp_gap", "ep",
    "ep_queries", "ep_variant", "verified", "knn", "knn_k", "knn_T",
)  # fmt: skip
DATASETS = {"IN-1K": "ImageNet-1k val"}


def read(path: Path, source: str, licence: str) -> Iterator[tuple[int, ForeignRow]]:
    """Yield line and row for every number that the authors mark as verified."""
    for record in read_csv(path, needed=NEEDED):
        if record.text("verified", empty=True) != "yes":
            continue
        dataset = record.text("eval")
        if dataset not in DATASETS:
            raise record.error(f"eval is '{dataset}', expected {' or '.join(DATASETS)}")
        size = record.whole("image_size", 16, 4096)
        setting = f"{record.text('pretrain')}, {size} px"
        for column, how in _numbers(record):
            if not record.text(column, empty=True):
                continue
            yield (
                record.line,
                ForeignRow(
                    model=f"{record.text('method')} {record.text('arch')}",
                    family=record.text("family"),
                    setting=setting,
                    benchmark=column,
                    dataset=DATASETS[dataset],
                    metric="top1",
                    value=record.number(column, 0, 100),
                    protocol=f"efficient-probing {how}, {size} px",
                    source=source,
                    licence=licence,
                ),
            )


def _numbers(record: Line) -> Iterator[tuple[str, str]]:
    """Yield column and what was done for its number, where that differs between models."""
    gap = record.text("lp_gap", empty=True)
    if gap not in {"yes", "no", ""}:
        raise record.error(f"lp_gap is '{gap}', expected yes or no")
    yield "lp", "lp"
    if record.text("ep", empty=True):
        variant = record.text("ep_variant")
        if variant not in {"ep", "ep_all"}:
            raise record.error(f"ep_variant is '{variant}', expected ep or ep_all")
        yield "ep", f"ep, {record.whole('ep_queries', 1, 4096)} queries"
    # k and temperature are the best ones on the validation images
    yield "knn", "knn, best k and T"
