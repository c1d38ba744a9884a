"""Every task on a GPU: trained and scored on sample data, its numbers beside the CPU's.

`pytest -m gpu` needs a GPU; MIMBENCH_GPU_DEVICE=cpu rehearses the tests without one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mimbench.checkpoints.files import write_weights
from mimbench.sample import generate
from mimbench.vit.weights import VitSpec, random_weights
from tests.support.gpu import chosen_device, real_gpu

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[1]
SPEC = VitSpec(embed_dim=48, depth=4, num_heads=3, mlp_dim=192, patch_size=8, grid=(4, 4))
CASES: dict[str, tuple[str, str, list[str], float]] = {
    # benchmark -> module, package it needs, changes of the demo recipe, largest difference in points
    "in-knn": ("knn", "faiss", [], 1.0),
    "in-lin-mae": ("transfer.classification.linear", "", ["epochs=1", "warmup=0", "batch=64"], 3.0),
    "in-logreg": ("transfer.classification.logreg", "", [], 3.0),
    "in-shot-5": ("transfer.classification.lowshot", "", [], 3.0),
    "in-ft-hpm": (
        "transfer.classification.finetune",
        "",
        ["epochs=1", "subset.per_class=20", "eval_every=1"],
        6.0,
    ),
    "coco-vitdet-12": (
        "transfer.detection",
        "detectron2",
        ["images=16", "image_size=64"],
        6.0,
    ),
    "ade-upernet-160": (
        "transfer.segmentation",
        "mmseg",
        ["iterations=4", "warmup=0", "evaluate_every=4"],
        3.0,
    ),
}


@pytest.fixture
def device() -> torch.device:
    return chosen_device()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small sample data and a checkpoint of random weights."""
    root = tmp_path_factory.mktemp("gpu")
    generate(
        root / "cache" / "sample",
        train_per_class=30,
        val_per_class=10,
        train_scenes=16,
        val_scenes=6,
    )
    write_weights(root / "tiny.safetensors", random_weights(SPEC, seed=0))
    return root


def run(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "MIMBENCH_CACHE": str(place / "cache"),
    }
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def result(place: Path, benchmark: str, device: str) -> dict[str, object]:
    """Run one benchmark through its own command; return its result."""
    module, _, changes, _ = CASES[benchmark]
    out = f"out-{device.replace(':', '')}-{benchmark}"
    chosen = [w for change in changes for w in ("--set", change)]
    words = [module, "tiny.safetensors", "--profile", "demo", "--benchmark", benchmark]
    done = run(place, *words, "--device", device, "--workers", "0", "--out", out, *chosen)
    assert done.returncode == 0, done.stderr[-3000:]
    [path] = (place / out).glob("*/*/result.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("benchmark", list(CASES))
def test_a_task_on_the_gpu_gives_the_cpus_number(
    benchmark: str, place: Path, device: torch.device
) -> None:
    _, package, _, tolerance = CASES[benchmark]
    if package:
        pytest.importorskip(package, reason=f"{package} is not installed")
    found = result(place, benchmark, str(device))
    main = str(found["main_metric"])
    metrics, provenance = found["metrics"], found["provenance"]
    assert isinstance(metrics, dict)
    assert isinstance(provenance, dict)
    if device.type == "cuda":
        assert torch.cuda.get_device_name(0) == provenance["device"]
        wanted = result(place, benchmark, "cpu")["metrics"]
        assert isinstance(wanted, dict)
        assert metrics[main] == pytest.approx(wanted[main], abs=tolerance)
    assert 0 <= metrics[main] <= 100


def test_the_suites_own_process_leaves_the_gpu_free(place: Path, device: torch.device) -> None:
    real_gpu(device)
    code = (
        "import sys, torch\n"
        "from mimbench.__main__ import main\n"
        "sys.argv[1:] = ['run', 'tiny.safetensors', '--profile', 'demo', '--only', 'in-shot-5',"
        " '--no-canary', '--out', 'out-suite']\n"
        "code = main(sys.argv[1:])\n"
        "assert not torch.cuda.is_initialized()\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MIMBENCH_CACHE": str(place / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
