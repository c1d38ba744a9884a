"""The demo's claim: a backbone that saw the sample cards beats a random one, at the same short budget."""

from pathlib import Path
from typing import Any

import pytest

from mimbench.benchmarks.manifest import load_manifest
from mimbench.checkpoints.files import read_vit
from mimbench.sample import sample_root
from mimbench.suite.demo import demo_checkpoint
from mimbench.system.config import from_mapping
from mimbench.task import Machine, load_task
from mimbench.vit.weights import random_weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pretraining of the demo: about three minutes."""
    return demo_checkpoint(tmp_path_factory.mktemp("demo"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["ade-upernet-160", "ade-linear-40"])
def test_pretrained_beats_its_random_twin_after_the_demo_recipe(
    name: str, checkpoint: Path, tmp_path: Path
) -> None:
    manifest = load_manifest()
    task: Any = load_task(manifest.benchmarks[name].task)
    _, recipe = manifest.recipe(name, "demo", {})
    machine = Machine(device="cpu", workers=0)
    config = from_mapping(task.Config, {**recipe, "data": sample_root() / "ade"}, name)
    config = type(config)(**{**vars(config), "machine": machine})
    weights = read_vit(checkpoint)
    found = {
        who: task.run(weights if who == "pretrained" else random_weights(weights.spec, seed=0),
                      config, tmp_path / who).metrics
        for who in ("pretrained", "random")
    }  # fmt: skip
    assert found["pretrained"]["miou"] > found["random"]["miou"] + 0.5
    assert found["pretrained"]["aacc"] > found["random"]["aacc"]
