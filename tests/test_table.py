"""The table in all formats, against files written by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from mimbench.benchmarks.manifest import (
    Benchmark,
    Manifest,
    Protocol,
    Reference,
    load_manifest,
)
from mimbench.results.record import Provenance, Result
from mimbench.tables.formats import FORMATS, comma, latex, markdown, terminal
from mimbench.tables.published import match, method_of
from mimbench.tables.rows import Value
from mimbench.tables.table import Table, make_table
from mimbench.tables.ties import difference_p, ties

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


def test_a_change_that_moves_nothing_leaves_the_published_rows() -> None:
    """`--set in-ft-hpm.lr=5e-4` says what a ViT-B gets anyway: the same digest, the same column."""
    said = result("in-ft-hpm", 80.0, name="said", overrides={"in-ft-hpm": {"lr": 5e-4}})
    both = make_table([result("in-ft-hpm", 84.0), said], MANIFEST)
    assert len(both.columns) == 1
    assert {row.kind for row in both.rows} == {"measured", "published"}
    alone = make_table([said], MANIFEST)
    assert {row.kind for row in alone.rows} == {"measured"}, (
        "nothing here shows that it is the recipe"
    )


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

    def found(name: str, choice: str = "", **changes: Any) -> float | str:
        run = result("in-ft-hpm", 84.0, name=name, **changes)
        reference, reason = match(run, column, MANIFEST.references, choice)
        return reference.value if reference else reason

    def read_as(kind: str) -> dict[str, Any]:
        return {"weights": {"name": "", "digest": "0", "format": kind, "model": "B/16"}}

    assert found("hpm_0799") == 84.2
    assert found("hpm-200ep") == 83.0
    assert "does not say how long" in str(found("hpm")), "two rows fit: neither may be picked"
    assert found("hpm", "HPM 200") == 83.0
    assert found("hpm_0799", "MAE") == "'MAE' is not one row"
    assert "no row is published for 400 epochs" in str(found("hpm 400 ep"))
    assert "the name says dinov2" in str(found("dinov2_hpm_800"))
    assert "published for another size" in str(
        found("hpm_0799", notes={"unpublished": "published for another size"})
    )
    assert "of DINO, iBOT, AttMask-High" in str(found("", **read_as("dino")))


@pytest.mark.parametrize(
    ("kind", "name", "method"),
    [
        ("dino", "dino_deitsmall16_pretrain", "DINO"),
        ("dino", "ibot_vits_800ep", "iBOT"),
        ("dino", "attmask_high_100", "AttMask-High"),
        ("dino", "checkpoint_teacher", ""),
        ("dino", "mae_vitb", ""),
        ("ibot", "checkpoint", ""),
        ("mae", "mae_pretrain_vit_base", "MAE"),
        ("mae", "checkpoint-1599", ""),
        ("hpm", "checkpoint-0799", "HPM"),
        ("hpm", "dinov2-800", ""),
    ],
)
def test_bare_backbones_are_of_the_method_that_the_name_says_or_of_none(
    kind: str, name: str, method: str
) -> None:
    """A bare iBOT or AttMask file reads as DINO, and DINO's row was subtracted from it."""
    assert method_of(kind, name)[0] == method


def test_a_200_epoch_model_is_not_held_against_the_800_epoch_row() -> None:
    large = {"name": "hpm_200ep", "digest": "0", "format": "hpm", "which": "", "model": "L/16"}
    table = make_table([result("in-ft-hpm", 84.0, weights=large)], load_manifest())
    [value] = table.rows[0].values.values()
    assert value.difference is None
    assert any("no row is published for 200 epochs (published: 800)" in n for n in table.notes)


def test_shipped_rows_stand_under_the_recipe_they_were_made_with() -> None:
    """One UperNet column mixed MAE's, iBOT's, searched and mmsegmentation's recipes."""
    rows = load_manifest().references
    own = {(r.method, r.model) for r in rows if r.protocol == "ade-upernet-160"}
    assert own == {("MAE", "B/16"), ("HPM", "B/16"), ("MAE, raw pixels", "B/16")}
    assert {r.source for r in rows if r.protocol == "ade-upernet-160-ibot"} == {"iBOT paper"}
    assert not [r for r in rows if r.protocol == "in-ft-hpm" and r.value in (83.6, 85.1)]
    assert not [r for r in rows if r.protocol == "in-ft-beit" and r.source == "BEiT paper"]


def test_the_star_goes_to_all_that_nothing_tells_apart() -> None:
    close = [
        result("in-ft-hpm", value, name=name, intervals={"top1": 1.0})
        for name, value in (("a", 80.0), ("b", 80.9), ("c", 70.0))
    ]
    stars = [v.best for row in make_table(close, MANIFEST).rows[:3] for v in row.values.values()]
    assert stars == [True, True, False]
    seeds = [
        result("in-ft-hpm", value, name=name, seed=seed, intervals={"top1": 0.1})
        for name, values in (("a", (80.0, 82.0)), ("b", (81.5, 83.5)), ("c", (20.0, 20.1)))
        for seed, value in enumerate(values)
    ]
    stars = [v.best for row in make_table(seeds, MANIFEST).rows[:3] for v in row.values.values()]
    assert stars == [True, True, False]


@pytest.mark.parametrize("failed_first", [False, True])
def test_the_star_follows_the_direction_of_the_metric(failed_first: bool) -> None:
    """A failed cell, which knows no direction, changes nothing wherever it stands."""
    done = [
        result("in-ft-hpm", value, name=name, lower_is_better=True)
        for name, value in (("a", 3.0), ("b", 2.0), ("c", 9.0))
    ]
    failed = [result("in-ft-hpm", None, name="d", error="broke")]
    table = make_table(failed + done if failed_first else done + failed, MANIFEST)
    best = {row.label: v.best for row in table.rows for v in row.values.values() if v.best}
    assert best == {"b": True}


def test_runs_that_fell_short_of_the_protocol_stand_apart() -> None:
    """--max-batch 2 moved segmentation from 5.27 to 5.35 under one digest: batch norm saw 2 images."""
    short = result("in-ft-hpm", 80.0, name="short", ran={"batch_norm_over": 2})
    table = make_table([result("in-ft-hpm", 81.0, name="whole"), short], MANIFEST)
    assert [c.ran for c in table.columns] == ["", "batch norm over 2"]
    assert [c.official for c in table.columns] == [True, False]
    assert "[batch norm over 2]" in terminal(table)
    assert "batch norm over 2" in comma(table)
    assert not any(v.best for row in table.rows for v in row.values.values())


@pytest.mark.parametrize("name", ["terminal", "markdown", "latex"])
def test_a_column_over_data_of_ones_own_carries_its_name(name: str) -> None:
    own = result(
        "ade-upernet-160",
        40.0,
        main_metric="miou",
        metrics={"miou": 40.0},
        config={"dataset": "own-ade-abc123"},
        data="/somewhere/CamVid/ade",
    )
    shown = FORMATS[name](make_table([own], load_manifest()))
    assert "CamVid: mIoU" in shown
    assert "ADE20K mIoU" not in shown


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
    assert r"a\_b \& \textless{}c\textgreater{}\textbar{}d" in latex(example())
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


def test_the_stars_of_a_whole_table_are_corrected_together() -> None:
    """A difference that one comparison shows (p = 0.04) is none among twenty."""
    z, half = 2.054, 1.0
    gap = z * half * 2**0.5 / 1.96
    pair = (Value(value=50.0, interval=half), Value(value=50.0 + gap, interval=half))
    clear = (Value(value=50.0, interval=half), Value(value=60.0, interval=half))
    assert difference_p(*pair) == pytest.approx(0.04, abs=1e-3)
    assert ties([pair]) == [False]
    assert ties([pair, *[clear] * 19]) == [False] * 20, (
        "all but one are clear: nothing is left to pay"
    )
    assert ties([pair] * 20) == [True] * 20
    assert ties([pair, (Value(value=1.0), Value(value=2.0))]) == [False, False], (
        "not known: not counted"
    )
    same = (Value(value=1.0), Value(value=1.0))
    assert ties([same]) == [True]
