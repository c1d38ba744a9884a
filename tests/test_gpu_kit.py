"""The prepared GPU run: every part rehearsed on a CPU, and what happens to a part that fails."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.gpu import __main__ as kit
from bench.gpu.__main__ import PARTS, BenchPart, chosen_parts, main
from mimbench.system.errors import UserError

ROOT = Path(__file__).parents[1]


def test_the_whole_run_rehearses_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [ROOT / "bench/gpu/run.sh", "--rehearse", "--minutes", "5", "--out", out],
        env={**os.environ, "WHEELS": str(tmp_path / "none"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((out / "summary.json").read_text())
    assert list(found["parts"]) == [part.name for part in PARTS]
    assert {name: part["status"] for name, part in found["parts"].items()} == {
        part.name: "done" for part in PARTS
    }
    figures = {name: part["figures"] for name, part in found["parts"].items()}
    assert figures["tests"]["passed"] >= 30
    assert "failed" not in figures["tests"]
    assert figures["pretrain"]["hpm over mae"] > 1.2
    assert figures["pretrain"]["plain"]["plain_over_ours"] > 0.8
    assert figures["segmentation"]["fp32"]["train_images_per_second"] > 0
    assert figures["classification"]["features"]["images_per_second_from_jpeg"] > 0
    assert figures["classification"]["attentive probe"]["images_per_second"] > 0
    assert figures["neighbours"]["faiss"]["agreement"] == 1.0
    assert found["commit"]
    assert (out / "summary.md").read_text().count("## ") == len(PARTS)


def fake(monkeypatch: pytest.MonkeyPatch, **codes: str) -> None:
    """Replace each part by a few lines of Python."""

    def run(
        command: list[str], *, check: bool, **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        code = codes[command[2].rpartition(".")[2]]
        return subprocess.run([sys.executable, "-c", code, *command[3:]], **options, check=check)

    names = {"STDOUT": subprocess.STDOUT, "TimeoutExpired": subprocess.TimeoutExpired}
    monkeypatch.setattr(kit, "subprocess", SimpleNamespace(run=run, **names))
    monkeypatch.setattr(kit, "PARTS", tuple(BenchPart(name, 2) for name in codes))


def test_a_part_that_fails_or_hangs_does_not_stop_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figures = "import sys, pathlib; pathlib.Path(sys.argv[2], 'good.json').write_text('{\"x\": 1}')"
    fake(
        monkeypatch,
        bad="raise SystemExit(3)",
        slow="import time; print('half way', flush=True); time.sleep(60)",
        good=figures,
    )
    assert main(["--out", str(tmp_path)]) == 1
    parts = json.loads((tmp_path / "summary.json").read_text())["parts"]
    assert parts["bad"]["status"] == "failed with exit code 3"
    assert parts["slow"]["status"] == "cut off after 2 s"
    assert "half way" in parts["slow"]["log_tail"]
    assert parts["good"] == {
        "status": "done",
        "seconds": parts["good"]["seconds"],
        "figures": {"x": 1},
    }


def test_what_needs_an_absent_package_is_skipped_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kit, "PARTS", (BenchPart("x", 2, ("no_such_package",)),))
    assert main(["--out", str(tmp_path)]) == 0
    parts = json.loads((tmp_path / "summary.json").read_text())["parts"]
    assert parts["x"]["status"] == "skipped: no_such_package not installed"


def test_no_time_left_is_said(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path), "--minutes", "0", "--parts", "tests"]) == 1
    parts = json.loads((tmp_path / "summary.json").read_text())["parts"]
    assert parts["tests"]["status"] == "not begun: no time was left"


def test_parts_keep_their_order_and_a_wrong_name_is_an_error() -> None:
    assert [p.name for p in chosen_parts("demo,tests")] == ["tests", "demo"]
    with pytest.raises(UserError, match="no part 'tset'.*tests"):
        chosen_parts("tset")


def test_every_gpu_machine_needs_no_package_index() -> None:
    for name in ("pack.sh", "run.sh"):
        assert (
            subprocess.run(["bash", "-n", ROOT / "bench/gpu" / name], check=False).returncode == 0
        )
    assert "--no-index" in (ROOT / "bench/gpu/run.sh").read_text()
