"""Imported rows beside measured ones: where the protocol is the same, never starred, never subtracted elsewhere."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from mimbench.__main__ import main
from mimbench.results.record import read_result, write_result
from tests.support.foreign_files import EP, TIMM, TIMM_HEADER, record, visbench
from tests.support.results_folder import write_manifest, write_run

SOURCE = "github.com/billpsomas/efficient-probing at b8f4fb8, results.csv"
SAME, OTHER = "75.46", "57.00"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two measured rows of one protocol, which efficient-probing's 32 queries are too."""
    write_manifest(tmp_path)
    reference = (tmp_path / "reference.yaml").read_text()
    same = "source: DINO code, also: ['efficient-probing ep, 32 queries, 224 px']"
    (tmp_path / "reference.yaml").write_text(reference.replace("source: DINO code", same))
    for name, share in (("good", 0.8), ("bad", 0.6)):
        write_run(tmp_path / "runs", name, share=share)
    (tmp_path / "results.csv").write_text(EP)
    (tmp_path / "results-imagenet.csv").write_text(TIMM)
    monkeypatch.chdir(tmp_path)
    assert main(["import", "results.csv", "--as", "ep", "--source", SOURCE]) == 0
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main([*arguments, "--benchmarks", "benchmarks.yaml"]) == 0
    return capsys.readouterr().out


def test_import_says_what_it_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    arguments = ["import", "results-imagenet.csv", "--as", "timm", "--source", "timm at 0173a13"]
    assert main([*arguments, "--models", "eva*,beit_*", "--metrics", "top1"]) == 0
    assert capsys.readouterr().out == (
        "rows/results-imagenet.csv: 2 numbers of 2 models\n"
        "source timm at 0173a13, licence Apache-2.0\n"
        "protocols: timm validate, each model at its own size and crop\n"
        "to show them: mimbench table RUNS --imported rows/results-imagenet.csv\n"
    )
    assert main([*arguments, "--models", "nothing"]) == 2
    assert "no row is left; models are beit_large_patch16_224" in capsys.readouterr().err
    assert main(["import", "results.csv", "--as", "timm", "--source", "x"]) == 2


def test_the_same_protocol_shares_a_column(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, "table", "runs", "--imported", "rows/results.csv", "--format", "csv")
    lines = list(csv.DictReader(io.StringIO(text)))
    cells = {(r["row"], r["benchmark"]): r for r in lines}
    mine = cells["MAE ViT-B/16", "in-knn"]
    assert (mine["kind"], float(mine["value"]), mine["difference"]) == ("imported", 75.46, "")
    assert mine["source"] == f"{SOURCE} (Apache-2.0)"
    apart = {r["benchmark"] for r in lines if r["kind"] == "imported"} - {"in-knn"}
    assert len(apart) == 6  # another size, another number of queries, other probes
    assert ("DiT DiT-XL/2", "in-knn") not in cells
    measured = [r for r in lines if r["kind"] == "measured"]
    plain = shown(capsys, "table", "runs", "--format", "csv")
    assert measured == [r for r in csv.DictReader(io.StringIO(plain)) if r["kind"] == "measured"]


@pytest.mark.parametrize("change", ["quick", "changed", "part"])
def test_a_column_of_another_recipe_takes_no_imported_row(
    change: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (folder / "runs").glob("*/*/result.json"):
        result = read_result(path)
        write_result(
            path,
            {
                "quick": replace(result, profile="quick"),
                "changed": replace(result, overrides={"in-knn": {"k": 7}}),
                "part": replace(result, ran={"images": 10}),
            }[change],
        )
    text = shown(capsys, "table", "runs", "--imported", "rows", "--format", "csv")
    lines = list(csv.DictReader(io.StringIO(text)))
    assert not [r for r in lines if r["kind"] == "imported" and r["benchmark"] == "in-knn"]
    out = shown(capsys, "compare", "good", "MAE ViT-B/16", "runs", "--imported", "rows")
    assert "measured - imported" not in out


def test_imported_rows_are_never_the_best(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Even where theirs is the largest number of the column."""
    rows = folder / "rows" / "results.csv"
    rows.write_text(rows.read_text().replace("75.46", "99.99"))
    for form, mark in (
        ("terminal", "99.99*"),
        ("markdown", "**99.99"),
        ("latex", r"\textbf{99.99"),
    ):
        text = shown(capsys, "table", "runs", "--imported", "rows", "--format", form)
        assert "99.99" in text
        assert mark not in text
    value = json.loads(shown(capsys, "table", "runs", "--imported", "rows", "--format", "json"))
    imported = [v for row in value["rows"] if row["kind"] == "imported" for v in row["values"]]
    assert imported
    assert not any(v["best"] or v["difference"] is not None for v in imported)


def test_notes_name_protocol_source_and_licence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, "table", "runs", "--imported", "rows")
    assert f"imported, not measured here: {SOURCE} (Apache-2.0): 3 models" in text
    assert "] lp on ImageNet-1k val: efficient-probing lp, 224 px" in text
    assert "lp top1 [1]" in text.splitlines()[0]


def test_seeds_are_averaged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [record(seed=n, metrics={"miou": 0.5 + n / 100}) for n in range(3)]
    (folder / "v.jsonl").write_text(visbench(*lines))
    assert main(["import", "v.jsonl", "--as", "visbench", "--source", "VisBench 0.27.0"]) == 0
    text = shown(capsys, "table", "runs", "--imported", "rows/v.csv", "--format", "csv")
    [cell] = [r for r in csv.DictReader(io.StringIO(text)) if r["kind"] == "imported"]
    assert (cell["row"], float(cell["value"]), cell["seeds"]) == ("dino_vitb16", 51.0, "3")
    assert float(cell["seed_sd"]) == pytest.approx(1.0)


def test_compare_subtracts_only_under_the_same_protocol(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = read_result(next((folder / "runs").glob("*-good/*/result.json"))).metrics["top1"]
    out = shown(capsys, "compare", "good", "MAE ViT-B/16", "runs", "--imported", "rows")
    [same] = [line for line in out.splitlines() if line.startswith("in-knn")]
    assert f"{value:.2f} ±" in same
    assert f"measured - imported = {value - 75.46:+.2f}" in same
    assert SOURCE in same
    others = [line for line in out.splitlines() if not line.startswith("in-knn")]
    assert len(others) == 2
    assert all(line.endswith("no difference is given") for line in others)
    out = shown(capsys, "compare", "good", "DiT DiT-XL/2", "runs", "--imported", "rows")
    assert OTHER in out
    assert "measured - imported" not in out


def test_compare_names_the_models_there_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["runs", "--imported", "rows", "--benchmarks", "benchmarks.yaml"]
    assert main(["compare", "good", "MAE VIT-B/16", *arguments]) == 2
    assert "did you mean 'MAE ViT-B/16'?" in capsys.readouterr().err
    assert main(["table", "runs", "--table", "hpm.main", *arguments[1:]]) == 2
    assert "no place in a paper's own table" in capsys.readouterr().err


HOSTILE = "\x1b[2J\u202e|&_<b>"


def test_hostile_names_reach_no_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "results-sketch.csv").write_text(
        f'{TIMM_HEADER}\n"{HOSTILE}",50,50,70,30,9,224,1,bicubic\n'
    )
    given = ["--as", "timm", "--source", HOSTILE, "--licence", HOSTILE]
    assert main(["import", "results-sketch.csv", *given]) == 0
    for form in ("terminal", "markdown", "csv", "latex", "json"):
        out = shown(capsys, "table", "runs", "--imported", "rows", "--format", form)
        assert "\x1b" not in out
        assert "\u202e" not in out
        assert "\\x1b[2J" in out or form in ("latex", "json")
