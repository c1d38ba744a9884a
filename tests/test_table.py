"""The table in all formats, against files written by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from mimbench.benchmarks.manifest import Benchmark, Manifest, Protocol, Reference
from mimbench.results.record import Provenance, Result
from mimbench.tables.formats import FORMATS, comma, latex, markdown, terminal
from mimbench.tables.table import Table, make_table, match

GOLDEN = Path(__file__).parent / "golden_tables"
SOURCE = Provenance(
    commit="c",
    dirty=False,
    python="3",
    libraries={},
    device="cpu",
    host_cores=1,
    seed=0,
    seconds=1.0,
    peak_memory_mb=1.0,
    argv=(),
)
MANIFEST = Manifest(
    defaults={},
    benchmarks={
        "in-ft-hpm": Benchmark(title="Fine-tune", group="finetune", task="t", dataset="imagenet"),
        "in-knn": Benchmark(title="k-NN", group="knn", task="t", dataset="imagenet"),
    },
    protocols={
        p: Protocol(title=p, summary="", source="s", group="finetune")
        for p in ("in-ft-hpm", "in-ft-mae")
    },
    references=(
        Reference(
            method="HPM",
            model="B/16",
            epochs=200,
            protocol="in-ft-hpm",
            metric="top1",
            value=83.0,
            source="HPM README",
            grade="R",
        ),
        Reference(
            method="HPM",
            model="B/16",
            epochs=800,
            protocol="in-ft-hpm",
            metric="top1",
            value=84.2,
            source="HPM README",
            grade="R",
        ),
        Reference(
            method="MAE",
            model="B/16",
            epochs=1600,
            protocol="in-ft-mae",
            metric="top1",
            value=83.6,
            source="MAE paper",
            grade="P",
        ),
    ),
)


def result(
    benchmark: str, value: float | None, name: str = "hpm_0799", seed: int = 0, **changes: Any
) -> Result:
    weights = {
        "name": name,
        "digest": name.encode().hex().ljust(64, "0"),
        "format": "hpm",
        "which": "",
        "model": "B/16",
    }
    fields: dict[str, Any] = {
        "benchmark": benchmark,
        "task": "t",
        "version": 1,
        "main_metric": "top1",
        "profile": "paper",
        "protocol": f"p-{benchmark}",
        "metrics": {} if value is None else {"top1": value},
        "config": {},
        "weights": weights,
        "status": "failed" if value is None else "done",
        "provenance": Provenance(**{**vars(SOURCE), "seed": seed}),
        **changes,
    }
    return Result(**fields)


def example() -> Table:
    results = [
        result("in-knn", 50.123, intervals={"top1": 0.4381}),
        result("in-ft-hpm", 84.0),
        result("in-ft-hpm", 84.4, seed=1),
        result("in-ft-hpm", None, name="a_b & <c>|d", error="RuntimeError: out of memory\nmore"),
        result("in-knn", 49.0, name="a_b & <c>|d"),
        result("in-knn", 12.0, name="a_b & <c>|d", profile="quick", protocol="quick1"),
    ]
    return make_table(results, MANIFEST)


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_what_they_were(name: str) -> None:
    assert FORMATS[name](example()) == (GOLDEN / f"{name}.txt").read_text()


def test_published_rows_stand_only_beside_the_published_recipe() -> None:
    labels = {row.label for row in example().rows}
    assert "HPM B/16, 800 ep" in labels
    assert not any("MAE" in label for label in labels)
    changed = make_table(
        [result("in-ft-hpm", 80.0, overrides={"finetune": {"epochs": 1}})], MANIFEST
    )
    assert [row.kind for row in changed.rows] == ["measured"]
    assert "Fine-tune [changed]" in terminal(changed)
    own = make_table([result("in-ft-hpm", 80.0, config={"dataset": "own-imagenet"})], MANIFEST)
    assert [row.kind for row in own.rows] == ["measured"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_failed_cell_under_a_changed_recipe_brings_no_published_rows(order: int) -> None:
    """A failure's protocol alone does not tell that the recipe was changed."""
    both = [
        result("in-ft-hpm", None, name="first", error="out of memory"),
        result("in-ft-hpm", 80.0, overrides={"finetune": {"epochs": 1}}),
    ]
    table = make_table(both[::order], MANIFEST)
    assert {row.kind for row in table.rows} == {"measured"}


def test_a_corner_in_brackets_is_no_argument_of_the_rule() -> None:
    text = FORMATS["latex"](make_table([result("in-knn", 50.0, profile="demo")], MANIFEST))
    line = text.splitlines()[text.splitlines().index(r"\toprule") + 1]
    assert line.startswith("{}[demo] & ")


def test_different_protocols_never_share_a_column() -> None:
    table = make_table(
        [result("in-knn", 50.0), result("in-knn", 60.0, name="b", protocol="other")], MANIFEST
    )
    assert len(table.columns) == 2
    assert not any(v.best for row in table.rows for v in row.values.values())
    assert terminal(table).count("k-NN") == 2


def test_best_is_marked_among_measured_rows_only() -> None:
    table = make_table(
        [result("in-ft-hpm", 80.0), result("in-ft-hpm", 81.0, name="b_0799")], MANIFEST
    )
    assert [[v.best for v in row.values.values()] for row in table.rows] == [
        [False],
        [True],
        [False],
        [False],
    ]


def test_the_matching_row_is_found_by_family_and_epochs_or_named() -> None:
    column = make_table([result("in-ft-hpm", 84.0)], MANIFEST).columns[0]

    def found(name: str, choice: str = "") -> float | None:
        reference = match(result("in-ft-hpm", 84.0, name=name), column, MANIFEST.references, choice)
        return reference.value if reference else None

    assert found("hpm_0799") == 84.2
    assert found("hpm-200ep") == 83.0
    assert found("hpm") is None, "two rows fit: neither may be picked"
    assert found("hpm", "HPM 200") == 83.0
    assert found("hpm_0799", "MAE") is None


def test_seeds_are_averaged_with_their_spread() -> None:
    values = {r.label: r.values for r in example().rows}
    [fine] = [v for c, v in values["hpm_0799"].items() if c.benchmark == "in-ft-hpm"]
    assert fine.value == pytest.approx(84.2)
    assert fine.spread == pytest.approx(0.2828, abs=1e-4)
    assert fine.difference == pytest.approx(0.0)


def test_the_spread_over_draws_stands_beside_that_over_seeds() -> None:
    drawn: dict[str, Any] = {"draws": 2, "intervals": {"top1": 0.5, "top1_sd": 0.1}}
    results = [
        result("in-knn", v, metrics={"top1": v, "top1_sd": sd}, seed=s, **drawn)
        for s, (v, sd) in enumerate([(40.0, 1.0), (41.0, 2.0)])
    ]
    shown = terminal(make_table(results, MANIFEST))
    assert "40.50 ±0.50 sd 0.71 n=2 sd 1.50 d=2" in shown
    assert "over d draws of the training images" in shown
    alone = make_table(results[:1], MANIFEST)
    assert "40.00 ±0.50 sd 1.00 d=2" in markdown(alone)
    # one list has no spread
    listed = result("in-knn", 40.0, metrics={"top1": 40.0, "top1_sd": 0.0})
    assert " d=" not in terminal(make_table([listed], MANIFEST))


def test_names_from_the_user_are_escaped() -> None:
    assert r"a_b & <c>\|d" in markdown(example())
    assert r"a\_b \& <c>|d" in latex(example())
    assert "a_b & <c>|d" in comma(example())
    assert json.loads(FORMATS["json"](example()))["rows"][0]["label"]


def test_no_results_make_an_empty_table() -> None:
    assert terminal(make_table([], MANIFEST)).strip() == ""


def test_a_profile_that_all_columns_share_is_said_once() -> None:
    table = make_table(
        [
            result("in-knn", 25.0, name="random-96x4-8", profile="demo"),
            result("in-knn", 62.0, name="tiny", profile="demo"),
            result("in-ft-hpm", 78.0, name="tiny", profile="demo"),
        ],
        MANIFEST,
    )
    lines = terminal(table).splitlines()
    assert lines[0].split() == ["[demo]", "Fine-tune", "k-NN"]
    assert [line.split()[0] for line in lines[2:4]] == ["tiny", "random-96x4-8"], "twins last"
    assert lines[-1].startswith("[demo] sample data")
    assert markdown(table).splitlines()[0] == "| [demo] | Fine-tune | k-NN |"
    assert "- bold: best measured value" in markdown(table)
