"""Pascal VOC: the doctor knows its layout, and its benchmarks run from the suite on it."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mimbench.benchmarks import cells as planning
from mimbench.benchmarks.cells import Cell, Request, make_cells, read_candidate
from mimbench.benchmarks.evaluation import evaluate
from mimbench.benchmarks.locations import locate
from mimbench.benchmarks.manifest import load_manifest
from mimbench.benchmarks.preflight import RecipeReport, inspect_recipe
from mimbench.checkpoints.files import write_weights
from mimbench.data.label_colours import label_colour
from mimbench.doctor import voc
from mimbench.doctor.check import Check
from mimbench.doctor.data import check_data
from mimbench.scores.outcomes import faithful
from mimbench.task import Machine
from mimbench.vit.weights import VitSpec, random_weights
from tests.support.tiny_voc import TRAIN, VAL, make_voc, save_labels

BENCHMARKS = ("voc-patch-knn", "voc-patch-logreg", "voc-dense-knn")
SMALL: dict[str, Any] = {
    "voc-patch-knn": {"image_size": 64, "k": [1, 3]},
    "voc-patch-logreg": {"image_size": 64, "grid": {"lowest": 0.01, "highest": 0.1, "steps": 2}},
    "voc-dense-knn": {"image_size": 64, "memory": 256, "k": 5},
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny VOC2012, and counts to match."""
    monkeypatch.setattr(voc, "PICTURES", {"trainaug": TRAIN, "val": VAL})
    return make_voc(tmp_path / "my data")


def run_fix(check: Check) -> None:
    subprocess.run(["bash", "-ec", check.fix], check=True, capture_output=True)


def faults(home: Path) -> list[Check]:
    return [check for check in voc.check(home) if check.status == "fault"]


def test_published_counts_and_colours() -> None:
    assert voc.PICTURES == {"trainaug": 10_582, "val": 1_449}
    assert [label_colour(i) for i in (0, 1, 2, 15, 20)] == [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (192, 128, 128),
        (0, 64, 128),
    ]
    assert len({label_colour(i) for i in range(256)}) == 256


def test_a_whole_voc_passes(home: Path) -> None:
    train, val = voc.check(home)
    assert (train.status, val.status) == ("ok", "ok")
    assert train.detail == f"{TRAIN} pairs; {TRAIN} label maps read: classes 0 to 20, void 255"
    assert locate("voc", home.parents[1]) == home


def test_it_is_found_under_its_own_name_and_linked(home: Path) -> None:
    named = next(c for c in check_data(home.parents[1]) if c.name == "Pascal VOC")
    assert "found" in named.detail
    run_fix(named)
    checks = check_data(home.parents[1])
    assert [c.status for c in checks if c.name.startswith("Pascal VOC")] == ["ok", "ok"]


def test_too_deep_is_fixed(home: Path) -> None:
    above = home.parents[1]
    [check] = voc.check(above)
    assert "too deep" in check.detail
    run_fix(check)
    assert not faults(above)


def test_a_missing_list_of_the_augmented_split_is_made(home: Path) -> None:
    path = home / "ImageSets/Segmentation/trainaug.txt"
    whole = path.read_text()
    path.unlink()
    [check] = faults(home)
    assert "trainaug.txt is missing" in check.detail
    run_fix(check)
    assert path.read_text() == whole
    assert not faults(home)


def test_val_label_maps_that_sbd_lacks_are_copied(home: Path) -> None:
    (home / "SegmentationClassAug/2007_000009.png").unlink()
    [check] = faults(home)
    assert "1 of 4 are not in" in check.detail
    assert "2007_000009" in check.detail
    run_fix(check)
    assert not faults(home)


def test_a_picture_that_is_not_there_is_named(home: Path) -> None:
    (home / "JPEGImages/2007_000001.jpg").unlink()
    [check] = faults(home)
    assert "JPEGImages: 2007_000001" in check.detail
    assert "VOCtrainval_11-May-2012.tar" in check.fix


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2007_000000\n", "names 1 different pictures on 1 lines, expected 8"),
        ("2007_000000\n" * TRAIN, "names 1 different pictures on 8 lines"),
        ("\n".join(f"2007_{i:06d}" for i in range(1, TRAIN + 1)), "1 pictures are in val too"),
    ],
)
def test_a_wrong_training_list_is_a_fault(home: Path, text: str, said: str) -> None:
    (home / "ImageSets/Segmentation/trainaug.txt").write_text(text)
    [check] = faults(home)
    assert said in check.detail


def spoil(home: Path, how: str) -> None:
    """Write a val label map wrong; `void` all of them."""
    paths = sorted((home / "SegmentationClassAug").glob("*.png"))[-VAL:]
    for path in paths if how == "void" else paths[:1]:
        labels = np.asarray(Image.open(path))
        if how == "colours":
            Image.open(path).convert("RGB").save(path)
        elif how == "renumbered":
            Image.open(path).convert("RGB").quantize(8).save(path)
        elif how == "stray":
            save_labels(path, np.where(labels == 255, 21, labels).astype(np.uint8))
        elif how == "void":
            save_labels(path, np.where(labels == 255, 0, labels).astype(np.uint8))
        else:
            path.write_bytes(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("colours", "has pixel mode RGB: colours, not classes"),
        ("renumbered", "VOC's colours in another order"),
        ("stray", "holds label 21; expected 0 to 20, and 255 for void"),
        ("void", "none of 4 label maps holds 255, the rim around every object"),
        ("damaged", "a label map cannot be read"),
    ],
)
def test_wrong_label_maps_are_named_and_replaced(home: Path, how: str, said: str) -> None:
    spoil(home, how)
    [check] = faults(home)
    assert check.name == "Pascal VOC val"
    assert said in check.detail
    run_fix(check)
    assert not faults(home)


def test_a_palette_of_greys_says_nothing() -> None:
    greys = [channel for i in range(21) for channel in (7 * i, 7 * i, 7 * i)]
    assert not voc.wrong_labels([("a.png", "P", [0, 5, 255], greys)])


def test_the_commands_that_fetch_it_are_shell(tmp_path: Path) -> None:
    for line in voc.obtain(tmp_path / "a b" / "voc").splitlines():
        subprocess.run(["bash", "-nc", line], check=True)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    spec = VitSpec(embed_dim=24, depth=2, num_heads=3, mlp_dim=48, patch_size=8, grid=(4, 4))
    path = tmp_path / "tiny.safetensors"
    write_weights(path, random_weights(spec, 0))
    return path


def cells_of(request: Request, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Plan as the suite does, without a child process."""

    def here(questions: Sequence[Any], data: Path | None, **how: Any) -> list[RecipeReport]:
        return [inspect_recipe(question, data, **how) for question in questions]

    monkeypatch.setattr(planning, "preflight", here)
    return make_cells(load_manifest(), [read_candidate(checkpoint)], request)


def test_voc_benchmarks_run_as_the_suite_runs_them(
    home: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    request = Request(
        benchmarks=BENCHMARKS,
        overrides=SMALL,
        data=home.parents[1],
        out=tmp_path / "runs",
        machine=Machine(device="cpu", workers=0),
    )
    cells = cells_of(request, checkpoint, monkeypatch)
    assert [cell.problem for cell in cells] == ["", "", ""]
    for cell in cells:
        result = evaluate(cell.run, cell.folder)
        assert 0 < result.metrics["miou"] <= 100
        assert "miou" in result.intervals
        assert result.figures[0].values.keys() == {"background", "aeroplane", "person", "tvmonitor"}
        assert len(result.pictures) == VAL
        assert "% of labelled pixels right" in result.pictures[0].caption
        with Image.open(cell.folder / result.pictures[0].file) as drawn:
            # two panels of a legible size side by side, and a legend
            assert drawn.width >= 2 * 256
            assert drawn.height > 256


def test_another_count_is_refused_unless_it_is_ones_own(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(voc, "PICTURES", {"trainaug": 10_582, "val": 1_449})
    request = Request(benchmarks=("voc-patch-knn",), data=home, out=tmp_path)
    [cell] = cells_of(request, checkpoint, monkeypatch)
    assert "expected 10,582" in cell.problem
    assert "say --own-data" in cell.problem
    [own] = cells_of(replace(request, own_data=True), checkpoint, monkeypatch)
    assert own.problem == ""


@pytest.mark.slow
def test_the_command_makes_a_table_of_voc(tmp_path: Path, checkpoint: Path) -> None:
    """`./run_all.sh` past its set-up: real child processes, a table, a report with the pictures."""
    home = make_voc(tmp_path)
    sets = [
        f"{name}.{field}={value}".replace("'", "")
        for name, fields in SMALL.items()
        for field, value in fields.items()
    ]
    command = [sys.executable, "-m", "mimbench", "run", str(checkpoint), "--data", str(home)]
    command += ["--own-data", "--only", ",".join(BENCHMARKS), "--out", str(tmp_path / "out")]
    command += ["--no-canary", "--device", "cpu", "--workers", "0"]
    command += [word for change in sets for word in ("--set", change)]
    environment = {"MIMBENCH_CACHE": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(title in done.stdout for title in ("VOC patch k-NN", "VOC dense k-NN"))
    assert "labelled pixels right" in (tmp_path / "out/report.html").read_text()


def test_outcomes_reproduce_the_metric_of_a_drawn_run() -> None:
    from transfer.dense.confusion import Tallier

    tallier = Tallier(3, keep={1})
    truth = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    for name in "ab":
        tallier.add(name, truth, np.array([[0, 1], [1, 0]], dtype=np.uint8))
    tally = tallier.close()
    assert list(tally.kept) == [1]
    assert tally.accuracy(1) == pytest.approx(200 / 3)
    called = tally.renamed(np.array([1, 0, 2]))
    assert called.kept[1].predicted.tolist() == [[1, 0], [0, 1]]
    assert faithful([tally.outcomes(every=False)], {"miou": 100 * (1 + 0.5 + 0) / 3})
