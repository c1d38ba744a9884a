"""The comparison of strategies: every one loads, and the table says what was measured."""

from pathlib import Path

import pytest

from mimbench.config import parse_overrides
from pretrain import masks
from pretrain.compare_masks import STRATEGIES, Plan, main, table
from pretrain.config import read_config


def test_every_strategy_is_compared_at_the_same_ratio() -> None:
    names = set()
    for overrides in STRATEGIES.values():
        config = read_config("demo", ["mask.ratio=0.5", *overrides])
        names.add(config.mask["name"])
        strategy = masks.build(config.mask)
        assert strategy.count(16) == 8
        assert parse_overrides(list(overrides))["mask"]["name"] in masks.available()
    assert names == set(masks.available())


def test_table_of_means_and_spreads(tmp_path: Path) -> None:
    plan = Plan(
        out=tmp_path,
        epochs=1,
        seeds=3,
        benchmarks=["knn", "ap"],
        strategies=["one", "two"],
        device="cpu",
    )
    rows = table(plan, {"one": [{"knn": 10.0}, {"knn": 20.0, "ap": 3.0}], "two": []})
    assert rows.splitlines()[2:] == ["| one | 2 | 15.0 ± 7.1 | 3.0 |", "| two | 0 | - | - |"]


def test_what_is_not_done_is_not_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "benchmarks.yaml"
    path.write_text("defaults: {paper: [], quick: [], demo: []}\nbenchmarks: {}\n")
    arguments = ["--out", str(tmp_path), "--done", "--benchmarks", str(path)]
    assert main(arguments) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 + len(STRATEGIES)
    assert all(row.split("|")[2].strip() == "0" for row in rows[2:])
    assert not (tmp_path / "pretrain").exists()
