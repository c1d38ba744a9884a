"""The template of a task in docs/adding.md works as it stands."""

import sys
from pathlib import Path

import pytest
import yaml

from mimbench.benchmarks.manifest import Benchmark
from mimbench.sample import generate
from mimbench.system.config import from_mapping
from mimbench.task import Task, load_task
from mimbench.vit.weights import VitSpec, random_weights
from tests.support.documents import template


def test_the_template_is_a_task_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "neighbours_of_the_docs.py").write_text(
        template("A downstream task"), encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    task = load_task("neighbours_of_the_docs")
    assert isinstance(task, Task)

    (entry,) = yaml.safe_load(template("A downstream task", "yaml")).values()
    benchmark = from_mapping(Benchmark, entry, "retrieval")
    data = tmp_path / "sample"
    generate(data, train_per_class=1, val_per_class=4, train_scenes=4, val_scenes=4)
    demo = benchmark.profiles["demo"]
    mapping = {**demo.config, "data": str(data / "classification")}
    config = from_mapping(task.Config, mapping, "retrieval")
    spec = VitSpec(embed_dim=48, depth=2, num_heads=3, mlp_dim=96, patch_size=8, grid=(4, 4))
    metrics = task.run(random_weights(spec, seed=0), config, tmp_path / "out")
    assert metrics.keys() == {task.MAIN_METRIC}
    assert 0 <= metrics["recall1"] <= 100
    sys.modules.pop("neighbours_of_the_docs")
