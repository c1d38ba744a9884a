"""COCO scores from files: average precision of boxes and masks, overall and for each class."""

import contextlib
import importlib
import importlib.util
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mimbench.system.errors import UserError
from mimbench.system.files import write_text
from mimbench.system.listing import first_few

logger = logging.getLogger(__name__)

Engine = Literal["auto", "pycocotools", "faster"]
Detection = dict[str, Any]

KINDS = {"bbox": "box", "segm": "mask"}
FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
FASTER = "faster_coco_eval"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What one set of detections is worth, in percent."""

    metrics: Mapping[str, float]
    """`box_ap`, `mask_ap50`... A figure that the data cannot define (no small objects) is absent."""
    per_class: Mapping[str, Mapping[str, float]]
    """Class name -> `box` and `mask` AP; a class without ground truth is absent."""
    engine: str


def score(annotations: Path, detections: Sequence[Detection], *, engine: Engine = "auto") -> Scores:
    """Return the COCO scores of detections; none at all are worth 0.

    Args:
        annotations: The ground truth, in COCO's instances format.
        detections: COCO results with `bbox` and `segmentation`.
        engine: faster-coco-eval gives the same figures as pycocotools; `auto` takes it if installed.
    """
    coco_type, eval_type, name = _tools(engine)
    # pycocotools reports to stdout, which belongs to the final table
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_type(str(annotations))
        strangers = {d["image_id"] for d in detections} - set(truth.getImgIds())
        if strangers:
            raise UserError(
                f"{len(strangers)} detected pictures are not in {annotations.name} "
                f"({first_few(sorted(strangers), 3)}): these detections belong to other data"
            )
        metrics: dict[str, float] = {}
        per_class: dict[str, dict[str, float]] = {}
        for kind, prefix in KINDS.items():
            judged = _evaluate(truth, eval_type, detections, kind)
            metrics |= _figures(judged, prefix)
            for label, value in _by_class(judged, truth).items():
                per_class.setdefault(label, {})[prefix] = value
    return Scores(metrics=metrics, per_class=per_class, engine=name)


def _tools(engine: Engine) -> tuple[Any, Callable[..., Any], str]:
    installed = importlib.util.find_spec(FASTER) is not None
    if engine == "faster" and not installed:
        raise UserError("the engine 'faster' needs the package faster-coco-eval; run ./setup.sh")
    if engine == "pycocotools" or not installed:
        return COCO, COCOeval, "pycocotools"
    module = importlib.import_module(FASTER)
    quiet = partial(module.COCOeval_faster, print_function=logger.debug)
    return module.COCO, quiet, "faster-coco-eval"


def _evaluate(
    truth: Any, eval_type: Callable[..., Any], detections: Sequence[Detection], kind: str
) -> Any:
    # a box beside a mask would make pycocotools sort masks by the size of their boxes
    dropped = "segmentation" if kind == "bbox" else "bbox"
    own = [{k: v for k, v in item.items() if k != dropped} for item in detections]
    if own:
        found = truth.loadRes(own)
    else:
        found = type(truth)()
        found.dataset = {**truth.dataset, "annotations": []}
        found.createIndex()
    judge = eval_type(truth, found, kind)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return judge


def _figures(judge: Any, prefix: str) -> dict[str, float]:
    # -1 stands for a figure without any ground truth
    return {
        f"{prefix}_{name}": 100.0 * float(value)
        for name, value in zip(FIGURES, judge.stats[: len(FIGURES)], strict=True)
        if value >= 0
    }


def _by_class(judge: Any, truth: Any) -> dict[str, float]:
    # (threshold, recall, class, size of objects, detections per picture)
    precision = np.asarray(judge.eval["precision"])[:, :, :, 0, -1]
    names = [category["name"] for category in truth.loadCats(judge.params.catIds)]
    columns = {name: precision[:, :, i] for i, name in enumerate(names)}
    return {
        name: 100.0 * float(column[column > -1].mean())
        for name, column in columns.items()
        if (column > -1).any()
    }


def truth_as_detections(annotations: Path) -> list[Detection]:
    """Return the ground truth as perfect detections: they must score an AP of 1."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO(str(annotations))
    return [
        {
            "image_id": item["image_id"],
            "category_id": item["category_id"],
            "bbox": item["bbox"],
            "score": 1.0,
            "segmentation": _as_text(truth.annToRLE(item)),
        }
        for item in truth.anns.values()
        if not item.get("iscrowd", 0)
    ]


def _as_text(code: Mapping[str, Any]) -> dict[str, Any]:
    counts = code["counts"]
    return {**code, "counts": counts.decode() if isinstance(counts, bytes) else counts}


def read_detections(path: Path) -> list[Detection]:
    """Return the detections that a run kept."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} holds no readable detections: {error}; evaluate again") from error


class DetectionEvaluator(COCOEvaluator):
    """detectron2's evaluator, which gathers over processes, keeping a file and scoring as above."""

    def __init__(self, dataset: str, keep: Path | None) -> None:
        super().__init__(dataset, tasks=("bbox", "segm"), output_dir=None, use_fast_impl=False)
        self._keep = keep
        self._annotations = Path(MetadataCatalog.get(dataset).json_file)
        self.scores: Scores | None = None

    def _eval_predictions(
        self, predictions: list[dict[str, Any]], img_ids: list[int] | None = None
    ) -> None:
        if img_ids is not None:
            raise ValueError("scores are over all pictures of the data set")
        names = self._metadata.thing_dataset_id_to_contiguous_id
        original = {place: number for number, place in names.items()}
        found = [item for prediction in predictions for item in prediction["instances"]]
        for item in found:
            item["category_id"] = original[item["category_id"]]
        found.sort(key=lambda item: (item["image_id"], -item["score"]))
        if self._keep is not None:
            write_text(self._keep, json.dumps(found))
        self.scores = score(self._annotations, found)
        logger.info("scored %d detections with %s", len(found), self.scores.engine)
        self._results = dict(self.scores.metrics)
