"""The demo over several seeds: leads are paired and signed, and one seed without a lead is enough for a no."""

from pathlib import Path

import pytest

from bench.demo_seeds import DemoColumn, markdown, read_lines
from mimbench.__main__ import main
from mimbench.benchmarks.cells import Request
from mimbench.benchmarks.manifest import load_manifest
from mimbench.scores.confidence import Interval
from mimbench.suite.demo import NAME, farewell
from mimbench.system.errors import UserError
from mimbench.tables.table import TWIN, read_results_with_folders
from tests.support.results_folder import write_manifest, write_run

NAMES = ["seed-1", "seed-2"]


def lines(folder: Path, second: float) -> list[DemoColumn]:
    for name, share in ((f"{TWIN}x", 0.5), ("seed-1", 0.6), ("seed-2", second)):
        write_run(folder / "out", name, share=share)
    manifest = load_manifest(write_manifest(folder))
    return read_lines(read_results_with_folders(folder / "out"), manifest, NAMES, ["in-knn"])


def test_every_seed_ahead_is_a_yes(tmp_path: Path) -> None:
    (line,) = lines(tmp_path, 0.7)
    first, second = line.leads
    assert first
    assert second
    assert 0 < first.low < 10 < first.high < 15
    assert 15 < second.low < 20 < second.high < 25
    assert line.shown
    assert line.twin.startswith("5")
    assert "| k-NN | 5" in markdown([line], [1, 2])
    assert "| yes |" in markdown([line], [1, 2])


@pytest.mark.parametrize("second", [0.5, 0.3])
def test_one_seed_that_is_not_ahead_is_a_no(tmp_path: Path, second: float) -> None:
    (line,) = lines(tmp_path, second)
    assert not line.shown
    assert "| no |" in markdown([line], [1, 2])


def test_a_missing_interval_is_a_no() -> None:
    line = DemoColumn("x", "1.0", ["2.0", "3.0"], [Interval(1.0, 2.0), None])
    assert not line.shown
    assert "| - | no |" in markdown([line], [1, 2])
    assert "| - | - |" in markdown([line._replace(beside=True)], [1, 2])


def test_a_seed_that_is_not_finished_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "out", f"{TWIN}x", share=0.5)
    manifest = load_manifest(write_manifest(tmp_path))
    with pytest.raises(UserError, match="in-knn is not finished for every seed"):
        read_lines(read_results_with_folders(tmp_path / "out"), manifest, NAMES, ["in-knn"])


def test_the_demo_ends_with_the_report_and_the_next_command() -> None:
    said = farewell(Path("runs/demo"))
    assert "runs/demo/report.html" in said
    assert said.rstrip().endswith("./run_all.sh ckpt.pth --data DATA")
    assert max(map(len, said.splitlines())) <= 100


@pytest.mark.parametrize("words", [["--demo"], ["--demo", "mine.pth"], ["mine.pth"]])
def test_the_canary_is_asked_about_everything_but_the_demos_own(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []

    def run_suite(manifest: object, checkpoints: object, request: Request, cluster: object) -> int:
        asked.append(request)
        return 0

    monkeypatch.setattr("mimbench.suite.suite.run_suite", run_suite)
    monkeypatch.setattr("mimbench.suite.demo.demo_checkpoint", lambda out, track: out / "x")
    assert main(["run", *words]) == 0
    [request] = asked
    assert request.canary
    assert request.unasked == ({NAME} if "--demo" in words else set())
