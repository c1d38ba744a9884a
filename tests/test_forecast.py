"""Forecasts from short measurements, and what they turn out to be worth."""

from dataclasses import replace
from pathlib import Path

import pytest

from mimbench.suite.costs.forecast import forecast, tree_memory_mb
from mimbench.suite.costs.forecast_log import ForecastLog, makespan, plan_lines
from mimbench.suite.costs.planning import longest_first
from mimbench.suite.costs.stage_progress import StageProgress, clock_seconds, read_stage
from mimbench.suite.running.runner import run_cells
from mimbench.system.progress import clock
from tests.support.light_cells import cell, child


@pytest.mark.parametrize("seconds", [0, 42, 187, 7500, 273_600])
def test_clock_is_read_back(seconds: int) -> None:
    assert clock_seconds(clock(seconds)) == seconds


def test_pace_of_our_own_lines_and_of_the_frameworks() -> None:
    ours = "11:06:18 linear probe 111/345 32% 2m20s left 4m55s loss 0.4873"
    assert read_stage(["starting", ours, "something else"]) == StageProgress(
        "linear probe", 345, 295.0, 140.0
    )
    assert read_stage(["eta: 1 day, 2:00:05  iter: 20  total_loss: 3.2"]) == StageProgress(
        "other", None, 93605.0
    )
    assert read_stage(["Inference done 49/200. Eval: 0.0027 s/iter. ETA=0:00:21"]) == StageProgress(
        "other", None, 21.0
    )
    assert read_stage(["nothing to see"]) is None
    assert clock_seconds("soon") is None


def test_a_slow_beginning_is_not_taken_for_the_pace() -> None:
    lines = [
        "features 10/10 100% 9s left 0s",
        "train 1/101 1% 10s left 16m40s",
        "train 21/101 21% 20s left 1m16s loss 2",
    ]
    assert read_stage(lines) == StageProgress("train", 101, 40.0, 20.0)


def test_each_kind_of_cell_is_measured_once_and_told_honestly(tmp_path: Path) -> None:
    cells = [
        cell(tmp_path, "long", seconds=60, say="train 10/100 10% 5s left 45s"),
        cell(tmp_path, "short", seconds=0.3),
        cell(tmp_path, "bad", fail=True),
        cell(tmp_path, "silent", seconds=60),
        cell(tmp_path, "no", problem="needs the moon"),
    ]
    found = forecast(cells, patience=1.5, command=child)
    by = {f.cell.split(" ")[0]: f for f in found}
    assert by["long"].seconds == pytest.approx(46.5, abs=1.0)
    assert by["long"].units == 100
    assert by["short"].how == "ran to its end"
    assert by["short"].seconds is not None
    assert 0.3 <= by["short"].seconds < 1.5, "with the start of its process"
    assert by["bad"].seconds is None
    assert "broken on purpose" in by["bad"].how
    assert "its speed is not known yet" in by["silent"].how
    assert by["no"].how == "not possible: needs the moon"
    assert not any((tmp_path / c.candidate.folder).exists() for c in cells), (
        "measured in a scratch folder"
    )


def test_what_follows_a_training_is_rehearsed(tmp_path: Path) -> None:
    """The trial is stopped in its training; the rehearsal shows what comes after."""
    say = "train 10/100 10% 0s left 45s"
    long = cell(tmp_path, "long", seconds=60, say=say)
    plain = forecast([long], patience=1.0, command=child)[0]
    config = {**long.run.config, "seconds": 0.6}
    [expected] = forecast([replace(long, rehearsal=config)], patience=1.0, command=child)
    assert plain.seconds == pytest.approx(46.0, abs=0.5)
    assert expected.seconds is not None
    assert plain.seconds is not None
    # the script says its line at once, so all of the rehearsal but the way to that line follows it
    assert expected.seconds - plain.seconds == pytest.approx(0.0, abs=0.5)
    assert expected.how.startswith("measured for 1 s, stage train")


def test_a_cell_that_finds_its_bank_ready_is_not_charged_for_it(tmp_path: Path) -> None:
    say = "features of train 10/100 10% 0s left 45s"
    cells = [
        cell(tmp_path, "knn", seconds=60, say=say),
        cell(tmp_path, "logreg", after=("knn",), seconds=60, say=say),
    ]
    found = forecast(cells, patience=1.0, command=child)
    assert [f.seconds for f in found] == [
        pytest.approx(46.0, abs=0.5),
        pytest.approx(1.0, abs=0.5),
    ]


def test_what_really_happened_is_kept_beside(tmp_path: Path) -> None:
    one = cell(tmp_path, "short", seconds=0.5)
    path = tmp_path / "forecast.json"
    plan = forecast([one], patience=5, command=child)
    ForecastLog(path, [one]).keep(plan)
    run_cells([one], command=child, monitor=ForecastLog(path, [one]))
    forecasts = ForecastLog(path, [one])
    entry = forecasts.entries[one.label]
    assert entry.how == "ran to its end"
    assert entry.seconds == pytest.approx(entry.actual_seconds, rel=0.3)
    assert forecasts.summary([one.label]).startswith("1 cells took ")
    [again] = forecast([one], command=child)
    assert (again.how, again.seconds) == ("done before", 0.0)
    forecasts.keep([again])
    assert forecasts.entries[one.label] == entry, "a plan of done cells forgets nothing"


def test_a_run_learns_from_its_first_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = cell(tmp_path, "knn", seconds=0.5)
    weights = {**first.candidate.weights, "name": "twin", "digest": "e" * 64}
    twin = replace(first.candidate, weights=weights)
    run = replace(first.run, weights_digest="e" * 64)
    second = replace(first, candidate=twin, run=run, folder=tmp_path / twin.folder / "knn")
    path = tmp_path / "forecast.json"
    with caplog.at_level("INFO"):
        run_cells([first, second], command=child, monitor=ForecastLog(path, [first, second]))
    entries = ForecastLog(path).entries
    assert entries[first.label].how == "not measured before the run"
    assert entries[second.label].how == "a finished run"
    assert entries[second.label].seconds == entries[first.label].actual_seconds
    assert "knn · twin: started, expected to take 1s" in caplog.text


def test_the_total_is_that_of_cells_side_by_side(tmp_path: Path) -> None:
    assert makespan([3.0, 1.0, 1.0, 5.0], 2) == 7.0
    assert makespan([3.0, 1.0], 1) == 4.0
    assert makespan([], 2) == 0.0
    one = cell(tmp_path, "short", seconds=0.2)
    found = forecast([one], patience=5, command=child)
    seconds = found[0].seconds
    assert seconds is not None
    assert plan_lines([one], found)[-1] == f"total: {clock(seconds)}"


def test_each_checkpoint_begins_with_its_longest_cells(tmp_path: Path) -> None:
    efforts = {"knn": 0, "det": 3, "seg": 2}
    first = [replace(cell(tmp_path, n), effort=effort) for n, effort in efforts.items()]
    weights = {**first[0].candidate.weights, "name": "b", "digest": "e" * 64}
    other = replace(first[0].candidate, weights=weights)
    cells = [*first, *(replace(c, candidate=other) for c in first)]
    found = [(c.candidate.weights["name"], c.run.benchmark) for c in longest_first(cells)]
    assert found == [(name, b) for name in "ab" for b in ("det", "seg", "knn")]


def test_memory_of_this_process_is_counted() -> None:
    import os

    assert tree_memory_mb(os.getpid()) > 20
