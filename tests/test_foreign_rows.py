"""Numbers of others: the three public layouts read exactly, everything else refused with the line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimbench.benchmarks.manifest import load_manifest
from mimbench.system.errors import UserError
from mimbench.tables.foreign import reading
from mimbench.tables.foreign.kinds import KINDS, parse_file
from mimbench.tables.foreign.rows import COLUMNS, ForeignRow, read_rows, write_rows
from tests.support.foreign_files import EP, EP_HEADER, TIMM, TIMM_HEADER, record, visbench

SOURCE = "github.com/someone/something at 1234567"


def rows_of(path: Path, kind: str, text: str) -> list[ForeignRow]:
    path.write_text(text, encoding="utf-8")
    return parse_file(path, kind, SOURCE)


def ep(folder: Path, text: str = EP) -> list[ForeignRow]:
    return rows_of(folder / "results.csv", "ep", text)


def timm(folder: Path, text: str = TIMM, name: str = "results-imagenet.csv") -> list[ForeignRow]:
    return rows_of(folder / name, "timm", text)


def records(folder: Path, *lines: dict[str, Any]) -> list[ForeignRow]:
    return rows_of(folder / "visbench.jsonl", "visbench", visbench(*lines))


def test_efficient_probings_numbers_as_published(tmp_path: Path) -> None:
    """Three numbers a model; queries and size tell which of them are of our own protocols."""
    found = {(r.model, r.protocol): r.value for r in ep(tmp_path)}
    assert found == {
        ("MAE ViT-B/16", "efficient-probing lp, 224 px"): 67.78,
        ("MAE ViT-B/16", "efficient-probing ep, 32 queries, 224 px"): 75.46,
        ("MAE ViT-B/16", "efficient-probing knn, best k and T, 224 px"): 35.57,
        ("SigLIP ViT-L/16", "efficient-probing lp, 256 px"): 84.11,
        ("SigLIP ViT-L/16", "efficient-probing ep, 32 queries, 256 px"): 85.86,
        ("SigLIP ViT-L/16", "efficient-probing knn, best k and T, 256 px"): 72.92,
        ("DiT DiT-XL/2", "efficient-probing lp, 256 px"): 32.70,
        ("DiT DiT-XL/2", "efficient-probing ep, 128 queries, 256 px"): 57.00,
        ("DiT DiT-XL/2", "efficient-probing knn, best k and T, 256 px"): 5.25,
    }
    also = [name for protocol in load_manifest().protocols.values() for name in protocol.also]
    assert len(also) == 2
    assert set(also) <= {protocol for _, protocol in found}
    first = ep(tmp_path)[0]
    assert (first.family, first.dataset, first.metric) == ("MIM", "ImageNet-1k val", "top1")
    assert (first.source, first.licence, first.setting) == (SOURCE, "Apache-2.0", "IN-1K, 224 px")


def test_what_the_authors_did_not_verify_is_left_out(tmp_path: Path) -> None:
    lines = EP.splitlines()
    lines[1] = lines[1].replace(",yes,", ",no,")
    assert {r.model for r in ep(tmp_path, "\n".join(lines))} == {"SigLIP ViT-L/16", "DiT DiT-XL/2"}


def test_timms_numbers_as_published(tmp_path: Path) -> None:
    found = {(r.model, r.setting, r.metric): r.value for r in timm(tmp_path)}
    assert found[
        "eva_giant_patch14_560.m30m_ft_in22k_in1k", "560 px, crop 1.000, bicubic", "top1"
    ] == (89.786)
    assert found["convnextv2_base.fcmae_ft_in1k", "288 px, crop 1.000, bicubic", "top5"] == 97.384
    assert len(found) == 6
    sketch = timm(tmp_path, name="results-sketch.csv")
    assert {r.dataset for r in sketch} == {"ImageNet-Sketch"}
    assert {r.family for r in sketch} == {"eva", "convnextv2", "beit"}


def test_visbenchs_numbers_in_percent_with_seeds(tmp_path: Path) -> None:
    found = records(
        tmp_path,
        record(metrics={"miou": 0.6184, "ceiling_miou": 0.9, "classes_scored": 20.0}),
        record(seed=1, metrics={"miou": 0.61}),
        record(task="surface_normal", metrics={"mean": 36.8, "d1": 0.124}),
    )
    shown = [(r.benchmark, r.metric, round(r.value, 4), r.seed, r.lower_is_better) for r in found]
    assert shown == [
        ("semantic_segmentation", "miou", 61.84, 0, False),
        ("semantic_segmentation", "miou", 61.0, 1, False),
        ("surface_normal", "mean", 36.8, 0, True),
        ("surface_normal", "d1", 12.4, 0, False),
    ]
    assert len({r.protocol for r in found}) == 2
    assert {r.licence for r in found} == {"MIT"}


def test_another_recipe_is_another_protocol(tmp_path: Path) -> None:
    """What a backbone turns a request into is its own; what was asked for is the protocol."""
    base = records(tmp_path, record())[0].protocol
    same = [record(pooling="mean"), record(hardware={"gpu": "x"}), record(backbone="other", seed=4)]
    assert [records(tmp_path, line)[0].protocol for line in same] == [base] * 3
    others = [
        record(task_params={"epochs": 41, "protocol": "visbench_semantic_seg"}),
        record(dataset_fingerprint="ffff"),
        record(pooling_requested="mean"),
        record(layers=[2, 5]),
        record(finetune={"blocks": 2, "backbone_lr": 1e-5}),
        record(split="test"),
    ]
    assert len({base, *(records(tmp_path, line)[0].protocol for line in others)}) == 7


def test_the_newest_run_of_a_cell_counts(tmp_path: Path) -> None:
    old = record(metrics={"miou": 0.5}, timestamp="2026-08-02T00:00:00+00:00")
    new = record(metrics={"miou": 0.6}, timestamp="2026-09-02T00:00:00+00:00")
    for lines in ((old, new), (new, old)):
        assert [r.value for r in records(tmp_path, *lines)] == [60.0]


def test_a_corrected_backbone_replaces_the_faulty_one(tmp_path: Path) -> None:
    faulty, right = "timm/resnet50/a1_in1k/224", "timm/resnet50/a1_in1k/224/crop1"
    lines = [record(backbone="resnet50", backbone_key=key) for key in (faulty, right)]
    assert [r.setting for r in records(tmp_path, *lines)] == [right]
    assert [r.setting for r in records(tmp_path, lines[0])] == [faulty]


@pytest.mark.parametrize("make", [ep, timm, lambda folder: records(folder, record())])
def test_rows_survive_their_file(make: Callable[[Path], list[ForeignRow]], tmp_path: Path) -> None:
    rows = make(tmp_path)
    write_rows(tmp_path / "rows" / "a.csv", rows)
    assert read_rows(tmp_path / "rows" / "a.csv") == rows == read_rows(tmp_path / "rows")


def test_two_files_that_contradict_each_other(tmp_path: Path) -> None:
    rows = records(tmp_path, record())
    for name in ("a", "b"):
        write_rows(tmp_path / "rows" / f"{name}.csv", rows)
    assert read_rows(tmp_path / "rows") == rows
    other = records(tmp_path, record(metrics={"miou": 0.1}))
    write_rows(tmp_path / "rows" / "b.csv", other)
    with pytest.raises(UserError, match=r"b\.csv, line 2: dino_vitb16 has a second miou .*10; .*a\.csv, line 2: 61\.84"):  # fmt: skip
        read_rows(tmp_path / "rows")


def line(number: int, old: str, new: str, text: str = EP) -> str:
    lines = text.splitlines()
    assert old in lines[number - 1]
    lines[number - 1] = lines[number - 1].replace(old, new, 1)
    return "\n".join(lines) + "\n"


FAULTS = {
    "no header": ("ep", "", "line 1: the header lacks family, method"),
    "another file's header": ("ep", TIMM, "line 1: the header lacks family, method, arch"),
    "a column lost": ("ep", line(1, ",ep,", ",eps,"), "line 1: the header lacks ep; it has"),
    "a column twice": ("ep", line(1, ",notes,", ",lp,"), "line 1: the header names lp twice"),
    "no number": ("ep", line(2, "75.46", "75.4x"), "line 2: ep is '75.4x', expected a number"),
    "not a number": ("ep", line(2, "75.46", "nan"), "line 2: ep is 'nan', expected a number"),
    "infinite": ("ep", line(2, "75.46", "1e999"), "line 2: ep is '1e999', expected a number"),
    "digits of Python": ("ep", line(2, "75.46", "7_5"), "line 2: ep is '7_5', expected a number"),
    "other digits": ("ep", line(2, "75.46", "\u0667\u0665"), "line 2: ep is '\u0667\u0665', expected a number"),
    "above 100": ("ep", line(3, "85.86", "858.6"), "line 3: ep is 858.6, expected 0 to 100"),
    "below 0": ("ep", line(3, "85.86", "-1"), "line 3: ep is -1, expected 0 to 100"),
    "another set": ("ep", line(2, "IN-1K,224", "IN-22K,224"), "line 2: eval is 'IN-22K', expected IN-1K"),
    "another variant": ("ep", line(2, ",32,ep,", ",32,epx,"), "line 2: ep_variant is 'epx', expected ep or"),
    "queries": ("ep", line(2, ",32,ep,", ",3.5,ep,"), "line 2: ep_queries is '3.5', expected a whole"),
    "a line twice": ("ep", EP + EP.splitlines()[1] + "\n", r"line 5: MAE ViT-B/16 has a second top1 .*line 2"),
    "a value lost": ("ep", line(2, ",no,", ","), "line 2: 2[0-9] values, the header has 28"),
    "an open quote": ("ep", EP + '"MIM', "line 5: is not CSV"),
    "a giant value": ("ep", line(2, "MAE", "M" * 9000), "line 2: a value of more than 8,192"),
    "only a header": ("ep", EP_HEADER + "\n", "holds no number"),
    "sum": ("timm", line(2, "10.214", "11.214", TIMM), "line 2: top1 89.786 and top1_err 11.214 do not add"),
    "size": ("timm", line(2, ",560,", ",0,", TIMM), "line 2: img_size is 0, expected 16 to 4096"),
    "percent as a share": ("timm", line(2, "1.000,bi", "100,bi", TIMM), "crop_pct is 100, expected 0.1 to 2"),
    "an old header": ("timm", TIMM.replace("crop_pct", "cropt_pct"), "line 1: the header lacks crop_pct"),
    "empty model": ("timm", line(3, "convnextv2_base.fcmae_ft_in1k", "", TIMM), "line 3: model is empty"),
    "a newer schema": ("visbench", visbench(record(schema_version=10)), "line 1: schema_version is 10"),
    "a schema of True": ("visbench", visbench(record(schema_version=True)), "line 1: schema_version is True"),
    "no JSON": ("visbench", visbench(record()) + "{", "line 2: is not JSON"),
    "a list": ("visbench", "[1]\n", "line 1: should hold an object"),
    "deep": ("visbench", "[" * 100_000 + "\n", "line 1: is not JSON"),
    "a percentage": ("visbench", visbench(record(metrics={"miou": 61.8})), "line 1: miou is 61.8, expected 0 to 1"),
    "an unknown metric": ("visbench", visbench(record(metrics={"zeal": 1.0})), "'zeal' is no metric that is known"),
    "a metric of True": ("visbench", visbench(record(metrics={"miou": True})), "miou is True, expected a number"),
    "NaN": ("visbench", visbench(record(metrics={"rmse": float("nan")})), "rmse is nan, expected a number"),
    "a giant": ("visbench", visbench(record(metrics={"rmse": 10**400})), "rmse is 1000"),
    "text": ("visbench", visbench(record(metrics="no")), "metrics is 'no', expected an object"),
    "no metrics": ("visbench", visbench(record(metrics=None)), "metrics is None, expected an object"),
    "a number's name": ("visbench", visbench(record(backbone=7)), "backbone is 7, expected a short text"),
    "seed": ("visbench", visbench(record(seed=-1)), "seed is -1, expected a whole number"),
    "NaN in a recipe": ("visbench", visbench(record(task_params={"lr": float("inf")})), "line 1: holds numbers"),
    "the same run twice": ("visbench", visbench(record(), record()), "line 2: the same run stands in line 1"),
}  # fmt: skip
NAMES = {"ep": "results.csv", "timm": "results-imagenet.csv", "visbench": "visbench.jsonl"}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_a_sentence_with_its_line(name: str, tmp_path: Path) -> None:
    kind, text, expected = FAULTS[name]
    with pytest.raises(UserError, match=expected):
        rows_of(tmp_path / NAMES[kind], kind, text)


def test_a_file_of_another_name_is_not_guessed_at(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not say which images were scored"):
        timm(tmp_path, name="mine.csv")


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_no_text_too_much(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / NAMES[kind]
    with pytest.raises(UserError, match="no such file"):
        parse_file(path, kind, SOURCE)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not text in UTF-8"):
        parse_file(path, kind, SOURCE)
    path.write_text("x" * 200)
    monkeypatch.setattr(reading, "FILE_BYTES", 100)
    with pytest.raises(UserError, match="has more than 100 bytes"):
        parse_file(path, kind, SOURCE)
    with pytest.raises(UserError, match="--source is empty"):
        parse_file(path, kind, " ")


def test_our_own_file_is_read_as_strictly(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.csv", timm(tmp_path))
    text = (tmp_path / "a.csv").read_text()
    for old, new, expected in (
        ("model,family", "family,model", "line 1: the header should be model,family,setting"),
        (",no,", ",false,", "line 2: lower_is_better is 'false', expected yes or no"),
        ("89.786", "inf", "line 2: value is 'inf', expected a number"),
    ):
        (tmp_path / "b.csv").write_text(text.replace(old, new, 1))
        with pytest.raises(UserError, match=expected):
            read_rows(tmp_path / "b.csv")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds no imported rows"):
        read_rows(empty)


HOSTILE = '=x()\x1b[31m\u202e<script>"\x07'


def test_hostile_names_become_plain_characters(tmp_path: Path) -> None:
    shown = "=x()\\x1b[31m\\u202e<script>"
    found = records(tmp_path, record(backbone=HOSTILE, backbone_key=HOSTILE, dataset=HOSTILE))
    table = timm(tmp_path, TIMM_HEADER + '\n"' + HOSTILE.replace('"', '""') + '",50,50,70,30,9,224,1,bicubic\n')  # fmt: skip
    for row in (*found, *table):
        assert all(str(getattr(row, name)).isprintable() for name in COLUMNS)
        assert row.model.startswith(shown)
    write_rows(tmp_path / "a.csv", found)
    assert read_rows(tmp_path / "a.csv") == found
    assert records(tmp_path, record(backbone="\ud800"))[0].model == "\\ud800"
