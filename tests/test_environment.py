"""What run_tests.sh promises: nothing is skipped because a framework is missing."""

import importlib
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FRAMEWORKS = [
    "torch",
    "torchvision",
    "timm",
    "detectron2",
    "mmengine",
    "mmcv",
    "mmseg",
    "faiss",
    "sklearn",
    "skimage",
    "pycocotools",
    "faster_coco_eval",
    "submitit",
    "tensorboard",
    "hypothesis",
    "jaxtyping",
    "beartype",
]


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_framework_can_be_imported(name: str) -> None:
    """Under run_tests.sh a missing framework fails here; a bare pytest may go without one."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        if os.environ.get("MIMBENCH_REQUIRE_ALL") != "1":
            pytest.skip(f"{name} is not installed ({error}); ./setup.sh installs it")
        raise


def test_run_tests_requires_all_frameworks() -> None:
    assert "export MIMBENCH_REQUIRE_ALL=1" in (ROOT / "run_tests.sh").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["setup.sh", "run_all.sh", "run_tests.sh", ".ci/run"])
def test_script_is_executable(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
