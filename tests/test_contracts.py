"""Every plug-in satisfies its contract: pyright reads the assignments, the tests load the modules."""

from pathlib import Path

import pytest

import knn.classify
import mimbench.checkpoints.formats.mae
import pretrain.masks.hard
import pretrain.masks.uniform
import transfer.classification.attentive
import transfer.classification.finetune
import transfer.classification.label_free
import transfer.classification.layers
import transfer.classification.linear
import transfer.classification.logreg
import transfer.classification.lowshot
import transfer.classification.robustness.backgrounds
import transfer.classification.robustness.corrupted
import transfer.classification.robustness.shifted
import transfer.classification.sets.finetune
import transfer.classification.sets.logreg
import transfer.classification.sets.twelve
import transfer.dense.hummingbird
import transfer.dense.layers
import transfer.dense.patch_knn
import transfer.dense.patch_logreg
import transfer.detection.fpn
import transfer.detection.vitdet
import transfer.retrieval.landmarks
import transfer.retrieval.recall
import transfer.segmentation.finetune_linear
import transfer.segmentation.linear
import transfer.segmentation.upernet
import transfer.video.davis
from mimbench.benchmarks.manifest import load_manifest
from mimbench.checkpoints.formats import Format
from mimbench.system.config import from_mapping, merge
from mimbench.task import Task, load_task
from pretrain.masks import MaskStrategy, available

TASKS: list[Task] = [
    knn.classify,
    transfer.classification.attentive,
    transfer.classification.finetune,
    transfer.classification.label_free,
    transfer.classification.layers,
    transfer.classification.linear,
    transfer.classification.logreg,
    transfer.classification.lowshot,
    transfer.classification.robustness.backgrounds,
    transfer.classification.robustness.corrupted,
    transfer.classification.robustness.shifted,
    transfer.classification.sets.finetune,
    transfer.classification.sets.logreg,
    transfer.classification.sets.twelve,
    transfer.dense.hummingbird,
    transfer.dense.layers,
    transfer.dense.patch_knn,
    transfer.dense.patch_logreg,
    transfer.detection.fpn,
    transfer.detection.vitdet,
    transfer.retrieval.landmarks,
    transfer.retrieval.recall,
    transfer.segmentation.finetune_linear,
    transfer.segmentation.linear,
    transfer.segmentation.upernet,
    transfer.video.davis,
]
FORMAT: Format = mimbench.checkpoints.formats.mae
STRATEGIES: list[type[MaskStrategy]] = [
    pretrain.masks.hard.Strategy,
    pretrain.masks.uniform.Strategy,
]

MANIFEST = load_manifest()
CELLS = [(id_, profile) for id_, b in MANIFEST.benchmarks.items() for profile in b.profiles]


@pytest.mark.parametrize(("benchmark", "profile"), CELLS)
def test_every_shipped_benchmark_configures_its_task(
    benchmark: str, profile: str, tmp_path: Path
) -> None:
    entry = MANIFEST.benchmarks[benchmark]
    change = entry.profiles[profile]  # pyright: ignore[reportArgumentType]
    task = load_task(entry.task)
    assert task in TASKS
    # the mean over several sets looks for them wherever a folder is named
    data = Path() if entry.task.endswith(".twelve") else tmp_path
    mapping = {**merge(entry.config, change.config), "data": str(data)}
    config = from_mapping(task.Config, mapping, benchmark)
    assert config.data == data


def test_every_mask_strategy_is_found() -> None:
    assert {"hard", "random"} <= available().keys()
    for strategy in available().values():
        assert isinstance(strategy.needs, frozenset)
