"""Forecasts from short measurements, and what they turn out to be worth."""

from pathlib import Path

import pytest

from mimbench.config import to_mapping
from mimbench.forecast import (
    Pace,
    clock_seconds,
    compare_with_actual,
    forecast,
    read_pace,
    tree_memory_mb,
)
from mimbench.progress import clock
from mimbench.runner import run_cells
from tests.light_cells import cell, child


@pytest.mark.parametrize("seconds", [0, 42, 187, 7500, 273_600])
def test_clock_is_read_back(seconds: int) -> None:
    assert clock_seconds(clock(seconds)) == seconds


def test_pace_of_our_own_lines_and_of_the_frameworks() -> None:
    ours = "11:06:18 linear probe 111/345 32% 2m20s left 4m55s loss 0.4873"
    assert read_pace(["starting", ours, "something else"]) == Pace("linear probe", 345, 295.0)
    assert read_pace(["eta: 1 day, 2:00:05  iter: 20  total_loss: 3.2"]) == Pace(
        "training", None, 93605.0
    )
    assert read_pace(["eta: 0:01:00 iter: 20"]) == Pace("training", None, 60.0)
    assert read_pace(["nothing to see"]) is None
    assert clock_seconds("soon") is None


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
    assert by["short"].seconds == pytest.approx(0.3)
    assert by["bad"].seconds is None
    assert "broken on purpose" in by["bad"].how
    assert "no pace told yet" in by["silent"].how
    assert by["no"].how == "not possible: needs the moon"
    assert not any((tmp_path / c.contestant.folder).exists() for c in cells), (
        "measured in a scratch folder"
    )


def test_what_really_happened_is_kept_beside(tmp_path: Path) -> None:
    one = cell(tmp_path, "short", seconds=0.3)
    found = forecast([one], patience=5, command=child)
    run_cells([one], command=child)
    [entry] = compare_with_actual(to_mapping(found), [one])
    assert entry["seconds"] == pytest.approx(entry["actual_seconds"], rel=0.3)
    [again] = forecast([one], command=child)
    assert (again.how, again.seconds) == ("done before", 0.0)


def test_memory_of_this_process_is_counted() -> None:
    import os

    assert tree_memory_mb(os.getpid()) > 20
