"""Commands that compute nothing answer at once: they import no torch."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from mimbench.commands import command_summaries
from tests.support.foreign_files import EP
from tests.support.results_folder import write_manifest, write_run
from tests.test_comparison import TASK

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "timm", "sklearn", "scipy", "skimage", "matplotlib", "faiss")
HEAVY += ("mmseg", "mmengine", "detectron2", "tensorboard")
SCRIPT = """
import json, sys
from mimbench.__main__ import main
try:
    code = main(sys.argv[2:])
except SystemExit as error:
    code = error.code
open(sys.argv[1], "w").write(json.dumps([code, sorted(sys.modules)]))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_manifest(folder)
    (folder / "toy_task.py").write_text(TASK)
    write_run(folder / "runs", "good", share=0.8)
    write_run(folder / "runs", "bad", share=0.6, draw=1)
    write_run(folder / "one", "good", share=0.8)
    (folder / "results.csv").write_text(EP)
    return folder


def run(arguments: Sequence[str], folder: Path) -> tuple[int, set[str], str]:
    """Run a command; return its exit code, the modules that it imported, and what it printed."""
    report = folder / "modules.json"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(report), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])},
        capture_output=True,
        text=True,
        check=True,
    )
    code, modules = json.loads(report.read_text())
    return code, set(modules), done.stdout


COMMANDS = {
    "list": ["--help"],
    "version": ["--version"],
    "table": ["table", "runs", "--benchmarks", "benchmarks.yaml"],
    "table of the real manifest": ["table", "runs", "--format", "json"],
    "tables of the papers": ["tables"],
    "a paper's table": ["table", "runs", "--table", "hpm.main"],
    "compare": ["compare", "good", "bad", "runs", "--benchmarks", "benchmarks.yaml"],
    "compare with a published row": [
        "compare",
        "good",
        "HPM 800",
        "runs",
        "--benchmarks",
        "benchmarks.yaml",
    ],
    "ladder": ["ladder", "runs"],
    "bundle": ["bundle", "runs", "--benchmarks", "benchmarks.yaml"],
    "publish": ["publish", "one", "-o", "hub", "--benchmarks", "benchmarks.yaml"],
    "import": ["import", "results.csv", "--as", "ep", "--source", "somewhere"],
    "bash": ["completion", "bash"],
    "zsh": ["completion", "zsh"],
    **{f"{verb} --help": [verb, "--help"] for verb in command_summaries()},
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_heavy_library_is_imported(name: str, results: Path) -> None:
    code, modules, out = run(COMMANDS[name], results)
    assert code == 0
    assert sorted(modules.intersection(HEAVY)) == []
    assert out or name == "bundle"


def applications() -> list[str]:
    """Every module that users start with `python -m`."""
    starts = re.compile(r'^if __name__ == "__main__":', re.MULTILINE)
    files = [p for top in ("pretrain", "transfer", "knn") for p in (ROOT / top).rglob("*.py")]
    paths = [p.relative_to(ROOT) for p in files if starts.search(p.read_text(encoding="utf-8"))]
    return sorted(".".join(p.with_suffix("").parts).removesuffix(".__main__") for p in paths)


APPLICATIONS = {name: [name, "--help"] for name in applications()} | {"bench": ["bench"]}


@pytest.mark.parametrize("name", APPLICATIONS)
def test_applications_answer_without_torch(name: str, results: Path) -> None:
    """A heavy import is an error at once, so that this takes no longer than the answer."""
    script = "import runpy, sys; sys.argv[1:] = sys.argv[2:]\n"
    script += f"sys.modules.update(dict.fromkeys({HEAVY}))\n"
    script += f"runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    done = subprocess.run(
        [sys.executable, "-c", script, *APPLICATIONS[name]],
        cwd=results,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_all_applications_are_known() -> None:
    assert {
        "knn",
        "pretrain",
        "pretrain.masks",
        "pretrain.timeline",
        "transfer.detection",
    } <= APPLICATIONS.keys()
    assert "transfer.classification.linear" in APPLICATIONS
    assert len(APPLICATIONS) >= 20


def best_time(arguments: Sequence[str], folder: Path) -> float:
    """The shortest of a few runs: the others waited for the machine."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
        )
        times.append(time.perf_counter() - began)
    return min(times)


@pytest.mark.parametrize("name", ["list", "version", "table", "table of the real manifest", "bash"])
def test_answer_comes_at_once(name: str, results: Path) -> None:
    """A few times what importing NumPy takes (0.1 s on an idle machine); torch took fifty times that."""
    numpy = best_time(["-c", "import numpy"], results)
    assert best_time(["-m", "mimbench", *COMMANDS[name]], results) < 12 * numpy


def test_the_command_finds_a_heavy_import(results: Path) -> None:
    """What the tests above look for is there when a command does compute."""
    (results / "no.pth").write_bytes(b"")
    _, modules, _ = run(["inspect", "no.pth"], results)
    assert "torch" in modules
