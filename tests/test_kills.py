"""Killed again and again, at any moment and by any signal: the same numbers, nothing left behind."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mimbench.sample import generate
from mimbench.system.exit_codes import ExitCode

ROOT = Path(__file__).parents[1]
ONLY = "in-knn,in-lin-mae,in-ft-hpm,coco-vitdet-12,ade-upernet-160"
SMALL = ["finetune.epochs=2", "finetune.subset.per_class=20", "linear.batch=64", "linear.norm_batch=64", "detection.images=32", "detection.image_size=64",
         "segmentation.iterations=8", "segmentation.warmup=0", "segmentation.evaluate_every=8"]  # fmt: skip
SIGNALS = (
    signal.SIGKILL,
    signal.SIGKILL,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGINT,
)
KILLS = int(os.environ.get("MIMBENCH_KILLS", "12"))
"""Each of pretraining and the run of five tasks is ended so often before it may finish."""
START = 2.0
"""Seconds before which nothing has begun: imports."""
SHARE = 0.25
"""A command lives on at most for this share of its whole length, so that most rounds end in a kill."""


def started(place: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MIMBENCH_CACHE": str(place / "cache"),
                   "OMP_NUM_THREADS": "1"}  # fmt: skip
    with (place / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=place, env=environment, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def finish(place: Path, arguments: list[str]) -> float:
    """Let a command run to its end; return the seconds that it took."""
    began = time.monotonic()
    process = started(place, arguments)
    assert process.wait() == 0, (place / "log.txt").read_text()[-3000:]
    return time.monotonic() - began


def killed(place: Path, arguments: list[str], rng: random.Random, longest: float) -> Iterator[int]:
    """Start a command and end it at a random moment, often; yield its exit codes."""
    for _ in range(KILLS):
        process = started(place, arguments)
        try:
            yield process.wait(timeout=rng.uniform(START, START + longest))
            continue
        except subprocess.TimeoutExpired:
            sign = rng.choice(SIGNALS)
        # a scheduler signals the whole group, a person the command
        if sign != signal.SIGKILL and rng.random() < 0.5:
            os.killpg(process.pid, sign)
        else:
            process.send_signal(sign)
        yield process.wait(timeout=120)
        wait_for_the_end(place)


def wait_for_the_end(place: Path) -> None:
    """Wait until no process works in the folder: what a killed parent started ends by itself."""
    until = time.monotonic() + 60
    while left := [p for p in Path("/proc").glob("[0-9]*") if _works_in(p, place)]:
        assert time.monotonic() < until, left
        time.sleep(0.2)


def _works_in(process: Path, place: Path) -> bool:
    try:
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and (process / "cwd").readlink() == place
    except OSError:
        return False


def figures(out: Path) -> dict[str, Any]:
    found = [json.loads(p.read_text()) for p in sorted(out.glob("*/*/result.json"))]
    assert all(r["status"] == "done" for r in found)
    return {r["benchmark"]: r["metrics"] for r in found}


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_no_kill_changes_a_result(tmp_path: Path) -> None:
    for framework in ("detectron2", "mmseg"):
        pytest.importorskip(framework, reason=f"{framework} is not installed")
    generate(
        tmp_path / "cache" / "sample",
        train_per_class=20,
        val_per_class=5,
        train_scenes=32,
        val_scenes=6,
    )
    rng = random.Random(0)
    allowed = {0, ExitCode.PREEMPTED, ExitCode.INTERRUPTED, *(-s for s in SIGNALS)}
    train = [
        "--set",
        "training.epochs=4",
        "--set",
        "optimizer.warmup_epochs=0",
        "--set",
        "machine.workers=2",
    ]
    codes, seconds = [], 0.0
    for name in ("whole", "killed"):
        made = ["pretrain", "demo", "--out", str(tmp_path / name / "pretrain"), *train]
        if name == "killed":
            codes += list(killed(tmp_path, made, rng, longest=SHARE * seconds))
        seconds = finish(tmp_path, made)
    [whole, again] = [
        (tmp_path / name / "pretrain" / "encoder.safetensors").read_bytes()
        for name in ("whole", "killed")
    ]
    assert whole == again
    chosen = [word for change in SMALL for word in ("--set", change)]
    for name in ("whole", "killed"):
        asked = ["mimbench", "run", str(tmp_path / "whole" / "pretrain" / "encoder.safetensors"), "--no-canary",
                 "--profile", "demo", "--only", ONLY, "--workers", "1", "--jobs", "2",
                 "--out", str(tmp_path / name / "runs"), *chosen]  # fmt: skip
        if name == "killed":
            codes += list(killed(tmp_path, asked, rng, longest=SHARE * seconds))
        seconds = finish(tmp_path, asked)
    assert figures(tmp_path / "killed" / "runs") == figures(tmp_path / "whole" / "runs")
    assert len(figures(tmp_path / "whole" / "runs")) == 5
    assert set(codes) <= allowed, codes
    assert len([c for c in codes if c]) >= KILLS
    assert "Traceback" not in (tmp_path / "log.txt").read_text()
    wait_for_the_end(tmp_path)
    assert not list((tmp_path / "killed").rglob("*.part"))
