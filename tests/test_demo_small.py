"""The demo at reduced size: real pretraining, real runner, real child processes, both frameworks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mimbench.sample import generate

ROOT = Path(__file__).parents[1]
SMALL = [
    "detection.images=16",
    "detection.image_size=64",
    "segmentation.iterations=4",
    "segmentation.warmup=0",
    "segmentation.evaluate_every=4",
]


def run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MIMBENCH_CACHE": str(place / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_demo_from_sample_data_to_table_and_report(tmp_path: Path) -> None:
    for framework in ("detectron2", "mmseg"):
        pytest.importorskip(framework, reason=f"{framework} is not installed")
    generate(
        tmp_path / "cache" / "sample",
        train_per_class=20,
        val_per_class=5,
        train_scenes=16,
        val_scenes=6,
    )
    out = tmp_path / "out"
    tiny = ["--set", "training.epochs=1", "--set", "optimizer.warmup_epochs=0"]
    made = run(tmp_path, "pretrain", "demo", "--out", str(out / "pretrain"), *tiny)
    assert made.returncode == 0, made.stderr
    chosen = [word for change in SMALL for word in ("--set", change)]
    command = ["mimbench", "run", str(out / "pretrain" / "encoder.safetensors"), "--no-canary"]
    command += ["--profile", "demo", "--only", "in-knn,coco-vitdet-12,ade-upernet-160"]
    done = run(tmp_path, *command, "--out", str(out), "--jobs", "2", *chosen)
    assert done.returncode == 0, done.stderr
    results = [json.loads(p.read_text()) for p in out.glob("*/*/result.json")]
    assert {r["benchmark"]: r["main_metric"] for r in results} == {
        "in-knn": "top1",
        "coco-vitdet-12": "box_ap",
        "ade-upernet-160": "miou",
    }
    assert all(0 <= r["metrics"][r["main_metric"]] <= 100 for r in results)
    table = done.stdout
    assert all(t in table for t in ("k-NN", "COCO box AP", "ADE20K mIoU", "[demo] sample data"))
    assert "room: at least" in done.stderr
    assert len(json.loads((out / "forecast.json").read_text())) == 3
    assert run(tmp_path, "mimbench", "bundle", str(out), "-o", "b.tar.gz").returncode == 0
    checked = run(tmp_path, "mimbench", "verify", "b.tar.gz")
    assert "b.tar.gz: verified" in checked.stdout, checked.stderr
    page = (out / "report.html").read_text()
    assert 'id="pictures"' in page
    assert "Warning" not in done.stderr, "nothing that its user cannot act on"
