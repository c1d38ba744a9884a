"""The doctor: each fault is found, named, and comes with a command that fixes it."""

import csv
import io
import json
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from mimbench.commands import doctor as command
from mimbench.doctor import ade, coco, environment, frameworks, imagenet, sort_validation
from mimbench.doctor.check import Check, as_json, as_table, fault, ok, warn
from mimbench.doctor.child import ChildError, try_script
from mimbench.doctor.data import check_data
from mimbench.sample import generate
from mimbench.system.errors import UserError
from mimbench.system.options import Parser

WNIDS = ["n01440764", "n01443537", "n01484850"]


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def statuses(checks: list[Check]) -> list[str]:
    return [check.status for check in checks]


def run_fix(check: Check, cwd: Path) -> None:
    """Run the command that the doctor advises."""
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run(["bash", "-ec", check.fix], cwd=cwd, env=env, check=True, capture_output=True)


# ImageNet


@pytest.fixture
def tiny_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three classes, two training and one validation image each; the counts to match."""
    monkeypatch.setattr(imagenet, "CLASSES", 3)
    monkeypatch.setattr(imagenet, "IMAGES", {"train": 6, "val": 3})
    root = tmp_path / "my data" / "imagenet"
    for i, wnid in enumerate(WNIDS, start=1):
        touch(root / "train" / wnid / f"{wnid}_1.JPEG")
        touch(root / "train" / wnid / f"{wnid}_2.JPEG")
        touch(root / "val" / wnid / f"ILSVRC2012_val_{i:08d}.JPEG")
    return root


def flatten(split: Path) -> None:
    for path in list(split.glob("*/*")):
        path.rename(split / path.name)
    for folder in [p for p in split.iterdir() if p.is_dir()]:
        folder.rmdir()


def write_solution(path: Path) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ImageId", "PredictionString"])
        for i, wnid in enumerate(WNIDS, start=1):
            rows.writerow([f"ILSVRC2012_val_{i:08d}", f"{wnid} 1 2 3 4 {wnid} 5 6 7 8"])


def test_published_counts() -> None:
    assert imagenet.IMAGES == {"train": 1_281_167, "val": 50_000}
    assert imagenet.CLASSES == 1_000
    assert coco.IMAGES == {"train": 118_287, "val": 5_000}
    assert coco.CATEGORIES == 80
    assert ade.IMAGES == {"training": 20_210, "validation": 2_000}
    assert ade.CLASSES == 150


def test_imagenet_complete(tiny_imagenet: Path) -> None:
    checks = imagenet.check(tiny_imagenet)
    assert statuses(checks) == ["ok", "ok"]
    assert checks[0].detail == "6 images in 3 classes"


def test_imagenet_with_missing_images(tiny_imagenet: Path) -> None:
    (tiny_imagenet / "train" / WNIDS[1] / f"{WNIDS[1]}_1.JPEG").unlink()
    (tiny_imagenet / "val" / WNIDS[2] / "ILSVRC2012_val_00000003.JPEG").unlink()
    train, val = imagenet.check(tiny_imagenet)
    assert "5 images in 3 classes, expected 6 in 3" in train.detail
    assert f"without images: {WNIDS[2]}" in val.detail
    assert "tar -xf" in train.fix


def test_imagenet_flat_validation_is_fixed(tiny_imagenet: Path) -> None:
    flatten(tiny_imagenet / "val")
    write_solution(tiny_imagenet.parent / sort_validation.SOLUTION)
    train, val = imagenet.check(tiny_imagenet)
    assert (train.status, val.status) == ("ok", "fault")
    assert "flat: 3 images lie in" in val.detail
    run_fix(val, tiny_imagenet)
    assert statuses(imagenet.check(tiny_imagenet)) == ["ok", "ok"]
    assert (tiny_imagenet / "val" / WNIDS[1] / "ILSVRC2012_val_00000002.JPEG").exists()


def test_imagenet_flat_training_is_fixed(tiny_imagenet: Path) -> None:
    flatten(tiny_imagenet / "train")
    run_fix(imagenet.check(tiny_imagenet)[0], tiny_imagenet)
    assert statuses(imagenet.check(tiny_imagenet)) == ["ok", "ok"]


def test_imagenet_archives_are_fixed(tiny_imagenet: Path) -> None:
    train = tiny_imagenet / "train"
    for wnid in WNIDS:
        with tarfile.open(train / f"{wnid}.tar", "w") as archive:
            for path in sorted((train / wnid).iterdir()):
                archive.add(path, arcname=path.name)
                path.unlink()
        (train / wnid).rmdir()
    check = imagenet.check(tiny_imagenet)[0]
    assert "3 archives" in check.detail
    run_fix(check, tiny_imagenet)
    assert statuses(imagenet.check(tiny_imagenet)) == ["ok", "ok"]


def test_imagenet_with_other_classes_in_val(tiny_imagenet: Path) -> None:
    (tiny_imagenet / "val" / WNIDS[0]).rename(tiny_imagenet / "val" / "n09999999")
    last = imagenet.check(tiny_imagenet)[-1]
    assert last.status == "fault"
    assert "labels would be shifted" in last.detail
    assert "n09999999" in last.detail


def test_sorting_by_the_development_kit(tiny_imagenet: Path) -> None:
    flatten(tiny_imagenet / "val")
    synsets = np.array(
        [(i, wnid, "words") for i, wnid in enumerate(WNIDS, start=1)],
        dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")],
    )
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    with tarfile.open(tiny_imagenet / sort_validation.DEVKIT, "w:gz") as archive:
        for name, content in (
            ("meta.mat", meta.getvalue()),
            ("ILSVRC2012_validation_ground_truth.txt", b"3\n1\n2\n"),
        ):
            info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert sort_validation.sort_validation(tiny_imagenet) == 3
    assert (tiny_imagenet / "val" / WNIDS[2] / "ILSVRC2012_val_00000001.JPEG").exists()
    assert sort_validation.sort_validation(tiny_imagenet) == 0


def test_sorting_moves_nothing_unless_every_image_is_known(tiny_imagenet: Path) -> None:
    flatten(tiny_imagenet / "val")
    with pytest.raises(UserError, match=r"neither ILSVRC2012_devkit_t12\.tar\.gz"):
        sort_validation.sort_validation(tiny_imagenet)
    write_solution(tiny_imagenet / sort_validation.SOLUTION)
    touch(tiny_imagenet / "val" / "ILSVRC2012_val_00000009.JPEG")
    with pytest.raises(UserError, match=r"1 of 4 images .* have no known class .*nothing moved"):
        sort_validation.sort_validation(tiny_imagenet)
    assert len(list((tiny_imagenet / "val").glob("*.JPEG"))) == 4


def test_sorting_refuses_class_names_that_are_paths(tiny_imagenet: Path) -> None:
    flatten(tiny_imagenet / "val")
    path = tiny_imagenet / sort_validation.SOLUTION
    path.write_text("ImageId,PredictionString\nILSVRC2012_val_00000001,../../etc 1 2 3 4\n")
    with pytest.raises(UserError, match="expected names like n01440764"):
        sort_validation.sort_validation(tiny_imagenet)


# COCO


@pytest.fixture
def tiny_coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(coco, "CATEGORIES", 2)
    monkeypatch.setattr(coco, "IMAGES", {"train": 3, "val": 2})
    root = tmp_path / "coco"
    for split, count in coco.IMAGES.items():
        names = [f"{i:012d}.jpg" for i in range(count)]
        for name in names:
            touch(root / f"{split}2017" / name)
        content = {
            "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
            "annotations": [{"id": 1}],
            "categories": [{"id": 1}, {"id": 3}],
        }
        touch(root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
    return root


def test_coco_complete(tiny_coco: Path) -> None:
    checks = coco.check(tiny_coco)
    assert statuses(checks) == ["ok", "ok"]
    assert checks[0].detail == "3 images, 2 categories, 1 objects"


def test_coco_with_missing_pictures(tiny_coco: Path) -> None:
    (tiny_coco / "val2017" / "000000000001.jpg").unlink()
    check = coco.check(tiny_coco)[1]
    assert "1 of 2 images are not in" in check.detail
    assert "val2017.zip" in check.fix


def test_coco_with_a_truncated_file(tiny_coco: Path) -> None:
    path = tiny_coco / "annotations/instances_train2017.json"
    path.write_text(path.read_text()[:-20])
    check = coco.check(tiny_coco)[0]
    assert "is not a whole instances file" in check.detail
    assert "annotations_trainval2017.zip" in check.fix
    path.write_text("{}")
    assert "no 'images' in it" in coco.check(tiny_coco)[0].detail
    path.unlink()
    assert "is missing" in coco.check(tiny_coco)[0].detail


def test_coco_with_other_counts(tiny_coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "CATEGORIES", 80)
    assert "3 images and 2 categories, expected 3 and 80" in coco.check(tiny_coco)[0].detail


# ADE20K


def write_label(path: Path, values: list[int], mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array([values], dtype=np.uint8)).convert(mode).save(path)


@pytest.fixture
def tiny_ade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ade, "IMAGES", {"training": 2, "validation": 1})
    root = tmp_path / "ade"
    for split, count in ade.IMAGES.items():
        for i in range(count):
            touch(root / "images" / split / f"ADE_{i}.jpg")
            write_label(root / "annotations" / split / f"ADE_{i}.png", [0, 1, 150])
    return root


def test_ade_complete(tiny_ade: Path) -> None:
    checks = ade.check(tiny_ade)
    assert statuses(checks) == ["ok", "ok"]
    assert "2 pairs; 2 label maps read" in checks[0].detail


@pytest.mark.parametrize(
    ("values", "mode", "expected"),
    [
        ([0, 1, 151], "L", "holds label 151; expected 0 to 150"),
        ([0, 149, 255], "L", "its labels are shifted already"),
        ([0, 1, 2], "RGB", "has pixel mode RGB; expected one 8-bit channel"),
        ([0, 1, 2], "P", "has pixel mode P"),
        ([0, 1, 2], "I;16", "has pixel mode I;16"),
        ([0, 0, 0], "L", "hold nothing but 0"),
    ],
)
def test_ade_with_wrong_labels(tiny_ade: Path, values: list[int], mode: str, expected: str) -> None:
    write_label(tiny_ade / "annotations/validation/ADE_0.png", values, mode)
    check = ade.check(tiny_ade)[1]
    assert check.status == "fault"
    assert expected in check.detail
    assert "ADEChallengeData2016.zip" in check.fix


def test_ade_with_a_truncated_label(tiny_ade: Path) -> None:
    (tiny_ade / "annotations/validation/ADE_0.png").write_bytes(b"\x89PNG\r\n")
    assert "a label map cannot be read" in ade.check(tiny_ade)[1].detail


def test_ade_with_missing_files(tiny_ade: Path) -> None:
    (tiny_ade / "images/training/ADE_1.jpg").rename(tiny_ade / "images/training/ADE_9.jpg")
    assert "without their other half: ADE_1, ADE_9" in ade.check(tiny_ade)[0].detail
    (tiny_ade / "images/training/ADE_9.jpg").unlink()
    assert "1 images and 2 label maps, expected 2 of each" in ade.check(tiny_ade)[0].detail


@pytest.mark.parametrize(
    "name",
    [
        "ADE20K_2016_07_26/index_ade20k.mat",
        "index_ade20k.pkl",
        "images/ADE/training/a.jpg",
        "images/validation/a/abbey/ADE_val_1_seg.png",
    ],
)
def test_ade_of_the_other_release(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "ade" / name)
    (check,) = check_data(tmp_path / "ade")
    assert "is the full ADE20K release" in check.detail
    assert f"mv {tmp_path}/ade {tmp_path}/ade.old" in check.fix


def test_ade_one_folder_too_deep_is_fixed(tiny_ade: Path) -> None:
    inner = tiny_ade / "ADEChallengeData2016"
    inner.mkdir()
    for kind in ("images", "annotations"):
        (tiny_ade / kind).rename(inner / kind)
    (check,) = ade.check(tiny_ade)
    assert "one folder too deep" in check.detail
    run_fix(check, tiny_ade)
    assert statuses(ade.check(tiny_ade)) == ["ok", "ok"]


# Which data set lies where


def test_folder_of_data_sets_and_each_data_set_itself(
    tmp_path: Path, tiny_coco: Path, tiny_ade: Path
) -> None:
    below = check_data(tmp_path)
    assert [(c.name, c.status) for c in below] == [
        ("ImageNet", "warn"),
        ("COCO train", "ok"),
        ("COCO val", "ok"),
        ("ADE20K training", "ok"),
        ("ADE20K validation", "ok"),
        ("Pascal VOC", "warn"),
    ]
    assert "image-net.org" in below[0].fix
    assert check_data(tiny_coco) == below[1:3]
    assert check_data(tiny_ade) == below[3:5]


def test_other_name_is_found_and_linked(tmp_path: Path, tiny_ade: Path) -> None:
    tiny_ade.rename(tmp_path / "ADEChallengeData2016")
    named = next(check for check in check_data(tmp_path) if check.name == "ADE20K")
    assert named.status == "fault"
    run_fix(named, tmp_path)
    assert "ADE20K" not in [check.name for check in check_data(tmp_path)]


def test_no_data_set_at_all(tmp_path: Path) -> None:
    (check,) = check_data(tmp_path)
    assert check.status == "fault"
    assert "holds no data set" in check.detail
    with pytest.raises(UserError, match="no such folder"):
        check_data(tmp_path / "nowhere")


def test_generated_sample_data_is_recognised(tmp_path: Path) -> None:
    root = generate(
        tmp_path / "my sample", train_per_class=1, val_per_class=1, train_scenes=2, val_scenes=2
    )
    (check,) = check_data(root)
    assert (check.name, check.status) == ("sample data", "ok")
    next((root / "ade" / "images").rglob("*.*g")).unlink()
    (damaged,) = check_data(root)
    assert "is damaged" in damaged.detail
    assert damaged.fix == f"{shlex.quote(sys.executable)} -m mimbench sample --fresh --out '{root}'"


def test_sample_data_is_not_measured_by_the_published_counts(tmp_path: Path) -> None:
    for name in ("classification/train/0/a.png", "coco/val2017/1.jpg", "ade/images/training/1.jpg"):
        touch(tmp_path / name)
    manifest = {
        "generator": "mimbench-sample",
        "version": 1,
        "counts": {"classification/train/0": 1, "coco/val2017": 1},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert statuses(check_data(tmp_path)) == ["ok"]
    (tmp_path / "coco/val2017/1.jpg").unlink()
    (check,) = check_data(tmp_path)
    assert "coco/val2017 has 0 files, expected 1" in check.detail
    assert "-m mimbench sample --fresh --out" in check.fix


# The environment


@pytest.mark.parametrize("name", ["detectron2", "mmseg", "faiss", "COCO scoring"])
def test_framework_works(name: str) -> None:
    check = frameworks.check_framework(name)
    assert check.status == "ok", check.detail


def test_broken_framework_is_a_fault_with_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frameworks, "PROBES", {"absent": "import no_such_framework"})
    (check,) = frameworks.check_frameworks()
    assert check.status == "fault"
    assert check.detail == "ModuleNotFoundError: No module named 'no_such_framework'"
    assert "setup.sh" in check.fix


def test_child_that_crashes_hangs_or_talks() -> None:
    with pytest.raises(ChildError, match="crashed with SIGABRT"):
        try_script("import os; os.abort()")
    with pytest.raises(ChildError, match="no answer within"):
        try_script("import time; time.sleep(60)", seconds=0.2)
    with pytest.raises(ChildError, match="exit code 3"):
        try_script("raise SystemExit(3)")
    assert try_script("print('noise'); print('1.0')") == "1.0"


def test_python_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.check_python().status == "ok"
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    assert environment.check_python().status == "fault"


@pytest.mark.parametrize(("driver", "status"), [(True, "fault"), (False, "warn")])
def test_no_gpu(monkeypatch: pytest.MonkeyPatch, *, driver: bool, status: str) -> None:
    monkeypatch.setattr(environment, "try_script", lambda script: "none: torch sees no GPU")
    monkeypatch.setattr(environment, "_driver_has_gpu", lambda: driver)
    assert environment.check_cuda().status == status


def test_little_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_SHARED_MEMORY_GIB", 10**9)
    assert "--shm-size" in environment.check_shared_memory(Path("/")).fix


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without faults that answers at once."""
    monkeypatch.setattr(command, "check_frameworks", lambda: [ok("torch", "works")])
    monkeypatch.setattr(command, "check_cuda", lambda: warn("CUDA", "none"))


@pytest.mark.usefixtures("healthy")
def test_command_exit_code_and_json(
    tmp_path: Path, tiny_coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    parser = Parser()
    command.add_arguments(parser)
    assert command.main(parser.parse_args(["--data", str(tiny_coco)])) == 0
    assert "passed, 1 with a remark" in capsys.readouterr().out
    (tiny_coco / "val2017" / "000000000000.jpg").unlink()
    assert command.main(parser.parse_args(["--data", str(tmp_path), "--json"])) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert [c["name"] for c in found["checks"] if c["status"] == "fault"] == ["COCO val"]


def test_table_never_wraps_a_command() -> None:
    fix = "wget " + "x" * 300
    text = as_table([fault("data", "word " * 60, fix), ok("a", "")])
    assert f"fix: {fix}\n" in text
    assert text.endswith("1 to fix, 0 to know about, of 2 checks\n")
    assert json.loads(as_json([ok("a", "")]))["ok"] is True
