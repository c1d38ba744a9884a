"""The ladder: calibrated on public tables, better than what it has to beat, silent where it knows nothing."""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import linregress, t

from mimbench.benchmarks.manifest import load_manifest
from mimbench.commands import ladder as command
from mimbench.results.record import Result, write_result
from mimbench.system.errors import UserError
from mimbench.tables.foreign.rows import ForeignRow, write_rows
from mimbench.tables.ladder import judge, public_rows
from mimbench.tables.ladder.answers import as_json, as_text, from_public, from_results
from mimbench.tables.ladder.judge import Ladder, LadderRow, answer, at_most, check, from_rows
from mimbench.tables.ladder.public_rows import ladders_of, public_tables, read_seeds, read_table
from mimbench.tables.ladder.regression import Predicted, log_odds, percent, predict
from tests.support.results_folder import SOURCE

[TABLE] = public_tables()
ROWS, PROTOCOLS = read_table(TABLE)
LADDERS = ladders_of(TABLE)
NAMES = [entry.title for entry in LADDERS]
MANIFEST = load_manifest()


def test_one_rung_is_the_textbooks_line_and_interval() -> None:
    rng = np.random.default_rng(0)
    x, noise = rng.uniform(20, 80, 12), rng.normal(0, 0.3, 12)
    y = [percent(0.5 * a - 1 + b) for a, b in zip(log_odds(x), noise, strict=True)]
    found = predict(x[:, None].tolist(), y, [66.0])
    u, v, at = log_odds(x), log_odds(y), float(log_odds([66.0])[0])
    line: Any = linregress(u, v)
    slope, intercept = line.slope, line.intercept
    middle = intercept + slope * at
    s = np.sqrt(np.sum((v - intercept - slope * u) ** 2) / 10)
    spread = np.sqrt(1 + 1 / 12 + (at - u.mean()) ** 2 / np.sum((u - u.mean()) ** 2))
    half = t.ppf(0.95, 10) * s * spread
    expected = [percent(middle), percent(middle - half), percent(middle + half)]
    assert [found.value, found.low, found.high] == pytest.approx(expected, abs=1e-9)


def test_intervals_hold_nine_of_ten_new_rows() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(600):
        x = rng.uniform(20, 80, (13, 2))
        odds = log_odds(x) @ [0.8, 0.4] + rng.normal(0, 0.2, 13)
        y = [percent(value) for value in odds]
        inside += predict(x[:-1].tolist(), y[:-1], x[-1].tolist()).covers(y[-1])
    assert 0.87 < inside / 600 < 0.93


def test_shares_stay_shares() -> None:
    assert predict([], [98.0, 99.0, 100.0], []).high < 100
    assert percent(float(log_odds([37.5])[0])) == pytest.approx(37.5)
    with pytest.raises(UserError, match="shares in percent, not -3 to 50"):
        log_odds([50.0, -3.0])
    with pytest.raises(UserError, match="2 rows are too few for a line over 1 rung"):
        predict([[1.0], [2.0]], [1.0, 2.0], [1.0])


# ---- public tables


def test_the_public_table_is_whole() -> None:
    seeds, protocols = read_seeds(TABLE)
    assert (len(seeds), len(protocols)) == (13, 20)
    counts = {cell: {len(cells[cell]) for cells in seeds.values()} for cell in protocols}
    assert sorted(n for found in counts.values() for n in found) == [1] * 3 + [5] * 17
    assert (public_rows.FOLDER / "LICENSE.visbench").read_text().startswith("MIT License")
    assert "MIT" in (public_rows.FOLDER / TABLE.rows).read_text().split("\nbenchmark,")[0]


def by_seed(seed: int) -> list[LadderRow]:
    """Return the rows of one seed alone; boards without training have one run."""
    found, _ = read_seeds(TABLE)
    return [
        LadderRow(
            model=model,
            family=TABLE.families[model],
            values={cell: seeds.get(seed, seeds[0]) for cell, seeds in cells.items()},
        )
        for model, cells in found.items()
    ]


@pytest.mark.parametrize("rows", [ROWS, *map(by_seed, range(5))], ids=["mean", *"01234"])
def test_left_out_rows_lie_in_their_intervals(rows: list[LadderRow]) -> None:
    """85 to 95 % of what is predicted; every ladder stands."""
    tested = [check(ladder, rows) for ladder in LADDERS]
    assert [one.reason for one in tested] == [""] * 5
    covered, of = (
        sum(x) for x in zip(*[(c.covered, len(c.left_out)) for c in tested], strict=True)
    )
    assert of == 55
    assert 0.85 <= covered / of <= 0.95


@pytest.mark.parametrize("ladder", LADDERS, ids=NAMES)
@pytest.mark.parametrize("top1", ["classification/top1", "scene_classification/top1"])
def test_it_beats_the_mean_and_top1_alone(ladder: Ladder, top1: str) -> None:
    found = check(replace(ladder, top1=top1), ROWS)
    mine, mean, other = (found.error(by) for by in ("ladder", "mean", "top1"))
    assert mine is not None
    assert mean is not None
    assert other is not None
    assert mine < judge.MARGIN * min(mean, other)


@pytest.mark.parametrize("model", ["mae_vitb16", "sam_vitb16"])
def test_a_family_of_one_is_refused(model: str) -> None:
    """Both are the only ones of their kind: the other rows say nothing of them."""
    for ladder in LADDERS:
        found = check(ladder, ROWS)
        assert model not in {one.row.model for one in found.left_out}
        [row] = [row for row in ROWS if row.model == model]
        said = answer(found, replace(row, model="another"))
        assert said.predicted is None
        assert said.reason.startswith(f"1 row of the family '{row.family}', it takes 2")


def test_rungs_that_say_nothing_are_refused() -> None:
    """The same table with the rungs of other models: better by a fifth by chance only."""
    ladder, refused = LADDERS[0], 0
    for seed in range(60):
        order = np.random.default_rng(seed).permutation(len(ROWS))
        mixed = [
            replace(row, values={**row.values, **{r: ROWS[i].values[r] for r in ladder.rungs}})
            for row, i in zip(ROWS, order, strict=True)
        ]
        refused += check(ladder, mixed).reason != ""
    assert refused >= 56


def test_intervals_that_are_too_short_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def boastful(*args: Any) -> Predicted:
        found = predict(*args)
        shrunk = [found.value + (end - found.value) / 5 for end in (found.low, found.high)]
        return Predicted(found.value, *shrunk)

    monkeypatch.setattr(judge, "predict", boastful)
    assert "its 90 % intervals cover" in check(LADDERS[0], ROWS).reason
    assert at_most(9, 11, 0.9) == pytest.approx(1 - 0.9**11 - 11 * 0.1 * 0.9**10)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (ROWS[:10], "10 rows with detection/map_50_95 and every rung (10 rows with the former"),
        ([replace(r, family=r.model) for r in ROWS], "only 0 of 13 rows have 2 others of their"),
        ([], "0 rows with"),
    ],
)
def test_too_few_rows_are_refused(rows: Sequence[LadderRow], reason: str) -> None:
    found = check(LADDERS[0], rows)
    assert found.reason.startswith(reason)
    said = answer(found, LadderRow(model="m", family="labels", values=ROWS[0].values))
    assert (said.predicted, said.reason) == (None, found.reason)


def test_a_damaged_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (public_rows.FOLDER / TABLE.rows).read_text()
    monkeypatch.setattr(public_rows, "FOLDER", tmp_path)
    (tmp_path / TABLE.rows).write_text(text.replace("mae_vitb16", "mae_vitb61"))
    with pytest.raises(UserError, match="columns and families differ in mae_vitb16, mae_vitb61"):
        read_table(TABLE)
    (tmp_path / TABLE.rows).write_text(text.replace("[80a5f073]", "[other]", 1))
    with pytest.raises(UserError, match="detection/map_50_95 stands under two protocols"):
        read_table(TABLE)


def foreign(cell: str, value: float, **changes: Any) -> ForeignRow:
    benchmark, metric = cell.split("/")
    plain: dict[str, Any] = {
        "model": "my_vit", "family": "my", "benchmark": benchmark, "metric": metric,
        "dataset": "d", "value": value, "protocol": PROTOCOLS[cell], "source": "me", "licence": "MIT",
    }  # fmt: skip
    return ForeignRow(**{**plain, **changes})


def test_imported_rows_are_predicted_under_the_same_protocol_only(tmp_path: Path) -> None:
    like = next(row for row in ROWS if row.model == "dino_vitb16")
    rungs = [foreign(cell, like.values[cell]) for cell in LADDERS[0].rungs]
    text = as_text(from_public(rungs, {}))
    assert "my_vit: cannot tell: 0 rows of the family 'my', it takes 2; known families: " in text
    found = from_public(rungs, {"my_vit": "self-distillation"})
    for one, ladder in zip(found, LADDERS, strict=True):
        [said] = one.answers
        assert said.predicted == from_rows(ladder.target, ladder.rungs, like, ROWS)
    other = [replace(row, protocol="visbench another recipe") for row in rungs]
    assert all(one.answers == () for one in from_public(other, {}))
    write_rows(tmp_path / "mine.csv", rungs)
    args = parsed("--imported", str(tmp_path / "mine.csv"), "--family", "my_vit=labels", "--json")
    assert command.main(args) == 0
    with pytest.raises(UserError, match="--family names 'nobody', which no row is called"):
        from_public(rungs, {"nobody": "labels"})
    with pytest.raises(UserError, match="--family 'labels' is not of the form"):
        command.parse_families(["labels"])


# ---- one's own results

CELLS = {
    "ade-patch-logreg": "miou",
    "ade-patch-knn": "miou",
    "in-knn": "top1",
    "coco-vitdet-100": "box_ap",
}


def parsed(*arguments: str) -> argparse.Namespace:
    parser = command.Parser(prog="ladder")
    command.add_arguments(parser)
    return parser.parse_args(list(arguments))


def write(out: Path, name: str, values: Mapping[str, float], **changes: Any) -> None:
    """Write finished runs of one checkpoint by hand."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    for benchmark, value in values.items():
        fields: dict[str, Any] = {
            "benchmark": benchmark, "task": "t", "version": 1, "main_metric": CELLS[benchmark],
            "profile": "paper", "protocol": f"p-{benchmark}", "metrics": {CELLS[benchmark]: value},
            "config": {}, "status": "done", "provenance": SOURCE,
            "weights": {"name": name, "digest": digest, "format": "hpm", "which": "", "model": "B/16"},
        }  # fmt: skip
        folder = out / f"{digest[:12]}-{name}" / benchmark
        folder.mkdir(parents=True)
        write_result(folder / "result.json", Result(**{**fields, **changes}))


def values_of(i: int, *, target: bool = True) -> dict[str, float]:
    rng = np.random.default_rng(i)
    logreg, knn = rng.uniform(20, 40, 2)
    found = {"ade-patch-logreg": logreg, "ade-patch-knn": knn, "in-knn": rng.uniform(40, 70)}
    ap = percent(
        float(log_odds([logreg])[0] * 0.7 + log_odds([knn])[0] * 0.4 + rng.normal(0, 0.05))
    )
    return found | ({"coco-vitdet-100": ap} if target else {})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for i in range(14):
        write(tmp_path / "runs", f"ckpt{i}", values_of(i))
    write(tmp_path / "runs", "new", values_of(20, target=False))
    return tmp_path / "runs"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_expensive_cell_is_predicted_and_never_filled(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(out)
    assert command.main(parsed(str(out), "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert tree(out) == before, "nothing is written"
    assert found["note"] == "predictions, not measurements: they enter no table"
    ladders = {one["title"]: one for one in found["ladders"]}
    one = ladders["COCO box AP (100 ep)"]
    assert (one["rows"], one["left_out"], one["cannot_tell"]) == (14, 14, "")
    assert one["error"] < one["error_of_mean"]
    assert one["error"] < one["error_of_top1"]
    [said] = one["answers"]
    assert said["model"].startswith("new (")
    true = values_of(20)["coco-vitdet-100"]
    assert said["low"] < true < said["high"]
    assert said["high"] - said["low"] < 15
    assert "0 rows with ADE20K mIoU and every rung" in ladders["ADE20K mIoU"]["cannot_tell"]
    text = as_text(from_results(results(out), MANIFEST, {}))
    assert "these results and published rows" in text
    assert "14 rows, 14 of them left out in turn" in text


def results(out: Path) -> list[Result]:
    from mimbench.tables.table import read_results

    return read_results(out)


def answers(out: Path, **families: str) -> dict[str, Any]:
    found = json.loads(as_json(from_results(results(out), MANIFEST, families)))["ladders"]
    [one] = [one for one in found if one["target"] == "coco-vitdet-100"]
    return {a["model"].partition(" (")[0]: a for a in one["answers"]} | {"rows": one["rows"]}


def test_what_does_not_belong_stands_on_no_ladder(out: Path) -> None:
    alone = answers(out)
    write(out, "random-768x12", values_of(30))
    write(out, "other-recipe", values_of(31), protocol="another")
    write(out, "quick", values_of(32), profile="quick", protocol="quick")
    write(out, "half", {"ade-patch-knn": 30.0})
    write(out, "stranger", values_of(33, target=False), weights=stranger("stranger"))
    found = answers(out)
    assert found["rows"] == alone["rows"] == 14
    assert found["new"] == alone["new"]
    assert found["half"]["cannot_tell"] == "it lacks ADE20K patch logistic mIoU"
    assert found["stranger"]["cannot_tell"].startswith("0 rows of the family 'mae', it takes 2")
    assert answers(out, stranger="hpm")["stranger"]["value"] is not None
    with pytest.raises(UserError, match="--family names 'nobody'"):
        answers(out, nobody="hpm")


def stranger(name: str) -> dict[str, str]:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return {"name": name, "digest": digest, "format": "mae", "which": "", "model": "B/16"}


def test_a_folder_without_results_and_one_without_rungs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name the folder that a run wrote, or --public"):
        command.main(parsed(str(tmp_path)))
    write(tmp_path, "a", {"in-knn": 50.0})
    assert "has a rung among these results" in as_text(
        from_results(results(tmp_path), MANIFEST, {})
    )


def test_the_pages_figures_are_those_of_the_command() -> None:
    page = (Path(__file__).parents[1] / "docs" / "numbers" / "uncertainty.md").read_text()
    for one in from_public([], {}):
        found = one.checked
        errors = " | ".join(f"{found.error(by):.2f}" for by in ("ladder", "mean", "top1"))
        row = f"| {found.ladder.title} | {errors} | {found.covered} of {len(found.left_out)} |"
        assert row in page
