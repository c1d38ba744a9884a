"""The runner under bad luck: killed at random moments, two at once, children that fail."""

import logging
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mimbench.benchmarks.cells import Cell, Request
from mimbench.benchmarks.lifecycle import finished
from mimbench.benchmarks.manifest import Manifest
from mimbench.benchmarks.run_config import safe_name
from mimbench.results.record import read_result
from mimbench.suite.running.launch import Slot, eval_command, make_slots
from mimbench.suite.running.runner import run_cells
from mimbench.suite.running.screen import last_lines
from mimbench.suite.suite import _slots
from mimbench.system.errors import UserError
from mimbench.system.lock import folder_lock
from mimbench.tables.formats import comma
from mimbench.tables.table import make_table, read_results
from tests.support.light_cells import cell, child


def cells_of(out: Path) -> list[Cell]:
    return [cell(out, f"b{i}", answer=float(i)) for i in range(4)]


def table_of(out: Path) -> str:
    return comma(make_table(read_results(out), Manifest(defaults={}, benchmarks={})))


def test_killed_at_twenty_random_moments_the_table_is_the_same(tmp_path: Path) -> None:
    run_cells(cells_of(tmp_path / "whole"), command=child)
    wanted = table_of(tmp_path / "whole")
    rng, out = random.Random(0), tmp_path / "killed"
    for _ in range(20):
        runner = os.fork()
        if runner == 0:
            with folder_lock(out, "busy"):
                run_cells(cells_of(out), command=child)
            os._exit(0)
        time.sleep(rng.uniform(0.0, 0.6))
        os.kill(runner, signal.SIGKILL)
        os.waitpid(runner, 0)
        for path in out.glob("*/*/result.json"):
            assert read_result(path).status == "done"
    with folder_lock(out, "busy"):
        run_cells(cells_of(out), command=child)
    assert table_of(out) == wanted


def test_a_second_runner_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    with folder_lock(tmp_path, "another run is using it"):
        holder = f"process {os.getpid()}"
        with (
            pytest.raises(
                UserError, match=rf"another run is using it \({holder} .*use another --out"
            ),
            folder_lock(tmp_path, "another run is using it"),
        ):
            pass
    with folder_lock(tmp_path, "free again"):
        pass


def test_a_failed_cell_is_marked_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cells = [
        cell(tmp_path, "bad", fail=True),
        cell(tmp_path, "no", problem="needs the moon"),
        cell(tmp_path, "good"),
    ]
    with caplog.at_level(logging.INFO):
        ended = run_cells(cells, command=child)
    assert {e.cell.run.benchmark: e.status for e in ended} == {
        "bad": "failed",
        "no": "failed",
        "good": "done",
    }
    assert "FAILED with exit code 3" in caplog.text
    assert "    broken on purpose" in caplog.text
    assert read_result(cells[0].folder / "result.json").error == "broken on purpose"
    assert read_result(cells[1].folder / "result.json").error == "needs the moon"


def test_done_cells_are_skipped_failed_and_changed_ones_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = cell(tmp_path, "good")
    run_cells([good], command=child)
    assert finished(good)
    with caplog.at_level(logging.INFO):
        [again] = run_cells([good], command=child)
    assert again.status == "skipped"
    assert "skipped, done before: top1 1.00" in caplog.text
    changed = cell(tmp_path, "good", answer=2.0)
    newer = Cell(**{**vars(changed), "protocol": "another"})
    assert not finished(newer)
    run_cells([newer], command=child)
    assert (tmp_path / good.candidate.folder / "good.stale-1" / "result.json").is_file()
    [redone] = run_cells([good], command=child, fresh=True)
    assert redone.status == "done"


def test_cells_side_by_side_respect_what_comes_first(tmp_path: Path) -> None:
    cells = [
        cell(tmp_path, "second", after=("first",)),
        cell(tmp_path, "other"),
        cell(tmp_path, "first", seconds=0.4),
    ]
    ended = run_cells(cells, [Slot(), Slot()], command=child)
    order = [e.cell.run.benchmark for e in ended]
    assert order.index("first") < order.index("second")
    assert order[0] == "other"


def test_an_interrupted_run_leaves_no_child_and_goes_on_later(tmp_path: Path) -> None:
    slow = cell(tmp_path, "slow", seconds=60)
    runner = os.fork()
    if runner == 0:
        # a shell that starts the tests in the background has them ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            run_cells([slow], command=child)
        except KeyboardInterrupt:
            os._exit(7)
        os._exit(0)
    while not last_lines(slow.folder / "log.txt"):
        time.sleep(0.02)
    os.kill(runner, signal.SIGINT)
    _, status = os.waitpid(runner, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert not (slow.folder / "result.json").exists()


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("device", "gpus", "visible"),
    [
        ("auto", None, ["0"]),
        ("auto", 2, ["0,1"]),
        ("cuda:2", None, ["2"]),
        ("cpu", None, ["", ""]),
        ("auto", 0, ["", ""]),
    ],
)
def test_a_cell_sees_the_gpus_that_were_asked_for_and_no_other(
    device: str, gpus: int | None, visible: list[str], four_gpus: None
) -> None:
    slots = _slots(Request(gpus=gpus, side_by_side=2, device=device))
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == visible


def test_one_gpu_and_a_number_of_gpus_exclude_each_other(
    four_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="--device cuda:1 is one GPU, --gpus 2 a number"):
        _slots(Request(gpus=2, device="cuda:1"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    [slot] = _slots(Request(device="cuda:1"))
    assert slot.environment["CUDA_VISIBLE_DEVICES"] == "6"
    with pytest.raises(UserError, match="there is no GPU 3: CUDA_VISIBLE_DEVICES allows 5, 6"):
        _slots(Request(device="cuda:3"))


def test_slots_and_commands() -> None:
    assert [s.gpus for s in make_slots(4, 2)] == [(0, 1), (2, 3)]
    assert make_slots(0, 0) == [Slot()]
    assert "torch.distributed.run" not in eval_command(Path("x"))
    assert eval_command(Path("x"), 4)[1:6] == [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "4",
    ]
    assert safe_name("../a b\nc") == "a-b-c"
    assert safe_name("<>") == "checkpoint"


def test_a_number_stays_when_its_cell_is_asked_for_without_its_data(tmp_path: Path) -> None:
    """--data forgotten, or a disk not mounted: a finished run was replaced by a failure."""
    run_cells([cell(tmp_path, "knn", answer=81.5)], [Slot()], command=child)
    before = (tmp_path / "dddddddddddd-a" / "knn" / "result.json").read_bytes()
    again = replace(cell(tmp_path, "knn", problem="needs ImageNet: pass --data DIR"), protocol="")
    for fresh in (False, True):
        [ended] = run_cells([again], [Slot()], command=child, fresh=fresh)
        assert ended.status == "failed"
    assert (tmp_path / "dddddddddddd-a" / "knn" / "result.json").read_bytes() == before


def test_a_failure_remembers_data_and_changes_of_the_recipe(tmp_path: Path) -> None:
    one = cell(tmp_path, "knn", problem="no")
    overrides = {"knn": {"k": [5], "machine": {"max_batch": 8}}, "linear": {"machine": {}}}
    one = replace(one, run=replace(one.run, overrides=overrides))
    run_cells([one], [Slot()], command=child)
    found = read_result(one.folder / "result.json")
    assert found.config == {"dataset": "imagenet"}
    assert found.overrides == {"knn": {"k": [5]}}
