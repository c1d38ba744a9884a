"""Published sets: every layout in miniature, read as it comes; hostile files are refused; counts are known."""

import io
import json
import pickle
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from mimbench.data.contents import Splits
from mimbench.data.digest import data_digest
from mimbench.data.sets import find_set, published, read_set
from mimbench.doctor.data import check_data
from mimbench.doctor.published import SetLayout
from mimbench.system.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))


def picture(path: Path, value: int = 0) -> None:
    """Write a picture whose red is `value`, by which a test knows it again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((12, 10, 3), (value, 90, 200), dtype=np.uint8)
    # whatever the name says: readers look at the content
    Image.fromarray(pixels).save(path, format="PNG")


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def red(splits: Splits, part: str, index: int) -> int:
    """Return the first channel of an image of a part."""
    images = splits.train if part == "train" else splits.test
    return int(np.asarray(images.open(index))[0, 0, 0])


def dumped(content: Any) -> bytes:
    """Return a pickle as Python 2 wrote it: protocol 2."""
    return pickle.dumps(content, protocol=2)


def cifar(root: Path, *, hundred: bool) -> None:
    folder = root / ("cifar-100-python" if hundred else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    names = ["apple", "bee", "cat"]
    labels = b"fine_labels" if hundred else b"labels"

    def batch(start: int) -> bytes:
        data = np.repeat(np.arange(start, start + 3, dtype=np.uint8)[:, None], 3072, axis=1)
        return dumped({b"data": data, labels: [2, 0, 1], b"filenames": [b"x.png"] * 3})

    parts = (
        ["train", "test"] if hundred else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    )
    for number, part in enumerate(parts):
        (folder / part).write_bytes(batch(10 * number))
    key = "fine_label_names" if hundred else "label_names"
    (folder / ("meta" if hundred else "batches.meta")).write_bytes(dumped({key: names}))


def flowers(root: Path) -> None:
    for i in range(1, 7):
        picture(root / "jpg" / f"image_{i:05d}.jpg", i)
    savemat(root / "imagelabels.mat", {"labels": np.array([[5, 1, 102, 5, 1, 102]])})
    parts = {"trnid": np.array([[2, 1]]), "valid": np.array([[3]]), "tstid": np.array([[6, 5, 4]])}
    savemat(root / "setid.mat", parts)


def cars(root: Path) -> None:
    (root / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer", "Acura RL", "Ram C/V"], dtype=object)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    kinds = [(n, "i4") for n in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class")]
    for part, path in (
        ("cars_train", root / "devkit" / "cars_train_annos.mat"),
        ("cars_test", root / "cars_test_annos_withlabels.mat"),
    ):
        rows = np.zeros(4, dtype=[*kinds, ("fname", "O")])
        rows["class"], rows["fname"] = [3, 1, 2, 3], [f"{i:05d}.jpg" for i in range(1, 5)]
        savemat(path, {"annotations": rows})
        for i in range(1, 5):
            picture(root / part / f"{i:05d}.jpg", i)


def pets(root: Path) -> None:
    rows = {
        "trainval": [("Abyssinian_1", 1), ("basset_hound_7", 2)],
        "test": [("basset_hound_9", 2)],
    }
    for part, images in rows.items():
        write(root / "annotations" / f"{part}.txt", *(f"{n} {c} 1 1" for n, c in images))
        for name, label in images:
            picture(root / "images" / f"{name}.jpg", label)


def aircraft(root: Path) -> None:
    write(root / "data" / "variants.txt", "707-320", "Cessna 172", "F-16A/B")
    for part, rows in {
        "train": ["1 Cessna 172", "2 F-16A/B"],
        "val": ["3 707-320"],
        "test": ["4 F-16A/B"],
    }.items():
        write(root / "data" / f"images_variant_{part}.txt", *(f"000000{r}" for r in rows))
        for row in rows:
            picture(root / "data" / "images" / f"000000{row[0]}.jpg", int(row[0]))


def food(root: Path) -> None:
    write(root / "meta" / "classes.txt", "apple_pie", "waffles")
    for part, names in {"train": ["waffles/1", "apple_pie/2"], "test": ["waffles/3"]}.items():
        write(root / "meta" / f"{part}.txt", *names)
        for name in names:
            picture(root / "images" / f"{name}.jpg", int(name[-1]))


def cub(root: Path) -> None:
    write(root / "classes.txt", "1 001.Albatross", "2 002.Auklet")
    write(root / "images.txt", "1 001.Albatross/a.jpg", "2 002.Auklet/b.jpg", "3 002.Auklet/c.jpg")
    write(root / "image_class_labels.txt", "1 1", "2 2", "3 2")
    write(root / "train_test_split.txt", "1 1", "2 1", "3 0")
    for i, name in enumerate(["001.Albatross/a", "002.Auklet/b", "002.Auklet/c"], start=1):
        picture(root / "images" / f"{name}.jpg", i)


def inat(root: Path, year: int) -> None:
    categories = [{"id": i, "name": f"species {i}"} for i in (0, 7, 30)]
    for part, labels in {"train": [30, 0, 7], "val": [7]}.items():
        images = [
            {"id": 100 + i, "file_name": f"train_val{year}/Birds/{c}/{part}{i}.jpg"}
            for i, c in enumerate(labels)
        ]
        annotations = [{"image_id": 100 + i, "category_id": c} for i, c in enumerate(labels)]
        content = {"images": images, "annotations": annotations[::-1], "categories": categories}
        write(root / f"{part}{year}.json", json.dumps(content))
        for image, label in zip(images, labels, strict=True):
            picture(root / image["file_name"], label)


def places(root: Path) -> None:
    images = root / "data" / "vision" / "torralba" / "deeplearning" / "images256"
    lists = root / "trainvalsplit_places205"
    rows = {
        "train": ["a/abbey/1.jpg 0", "a/apartment_building/outdoor/2.jpg 1"],
        "val": ["a/abbey/3.jpg 0"],
    }
    for part, lines in rows.items():
        write(lists / f"{part}_places205.csv", *lines)
        for line in lines:
            name = line.split()[0]
            picture(images / name, int(name[-5]))


def sun(root: Path) -> None:
    write(root / "SUN397" / "ClassName.txt", "/a/abbey", "/a/apartment_building/outdoor")
    for part, names in {
        "Training": ["/a/abbey/1.jpg", "/a/apartment_building/outdoor/2.jpg"],
        "Testing": ["/a/apartment_building/outdoor/3.jpg"],
    }.items():
        write(root / "Partitions" / f"{part}_01.txt", *names)
        for name in names:
            picture(root / "SUN397" / name.lstrip("/"), int(name[-5]))


def dtd(root: Path) -> None:
    for part, names in {
        "train": ["woven/1.jpg", "banded/2.jpg"], "val": ["woven/3.jpg"], "test": ["banded/4.jpg"]
    }.items():  # fmt: skip
        write(root / "labels" / f"{part}1.txt", *names)
        for name in names:
            picture(root / "images" / name, int(name[-5]))


def caltech(root: Path) -> None:
    for name, count in {"BACKGROUND_Google": 3, "Faces": 33, "ant": 31}.items():
        for i in range(count):
            picture(root / "101_ObjectCategories" / name / f"image_{i:04d}.jpg", i)


def voc2007(root: Path) -> None:
    from mimbench.data.sets.voc import CLASSES

    base = root / "VOCdevkit" / "VOC2007"
    for part, names in {
        "trainval": ["000005", "000007"],
        "val": ["000007"],
        "test": ["000001"],
    }.items():
        for name in CLASSES:
            marks = {"car": " 1", "dog": " 0"}.get(name, "-1")
            write(
                base / "ImageSets" / "Main" / f"{name}_{part}.txt", *(f"{n} {marks}" for n in names)
            )
        for name in names:
            picture(base / "JPEGImages" / f"{name}.jpg", int(name))


WRITERS: dict[str, tuple[Callable[[Path], None], tuple[int, int, int], list[int]]] = {
    # set: writer, (train, test, classes), labels of train
    "cifar10": (lambda r: cifar(r, hundred=False), (15, 3, 3), [2, 0, 1] * 5),
    "cifar100": (lambda r: cifar(r, hundred=True), (3, 3, 3), [2, 0, 1]),
    "flowers": (flowers, (3, 3, 102), [0, 4, 101]),
    "cars": (cars, (4, 4, 3), [2, 0, 1, 2]),
    "pets": (pets, (2, 1, 2), [0, 1]),
    "aircraft": (aircraft, (3, 1, 3), [1, 2, 0]),
    "food": (food, (2, 1, 2), [1, 0]),
    "cub": (cub, (2, 1, 2), [0, 1]),
    "inat18": (lambda r: inat(r, 2018), (3, 1, 3), [2, 0, 1]),
    "inat19": (lambda r: inat(r, 2019), (3, 1, 3), [2, 0, 1]),
    "places205": (places, (2, 1, 2), [0, 1]),
    "sun397": (sun, (2, 1, 2), [0, 1]),
    "dtd": (dtd, (3, 1, 2), [1, 0, 1]),
    "caltech101": (caltech, (60, 4, 2), [0] * 30 + [1] * 30),
    "voc2007": (voc2007, (2, 1, 20), [6, 6]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_published_layout_is_read(name: str, tmp_path: Path) -> None:
    make, (train, test, classes), labels = WRITERS[name]
    known = published()[name]
    # the archive's own folder is found as well as the benchmark's name
    for place in (name, known.folders[0]):
        root = tmp_path / place
        if not root.exists():
            root.mkdir(parents=True)
            make(root)
        assert find_set(name, tmp_path) is not None
    splits = read_set(name, root, Splits)
    assert splits.counts() == {"train": train, "test": test, "classes": classes}
    assert splits.train.labels.tolist() == labels
    assert splits.train.classes == splits.test.classes
    for images in (splits.train, splits.test):
        assert len({images.open(i).tobytes() for i in range(len(images))}) > 0
    [check] = SetLayout(known).check(root)
    assert check.status == "fault"
    assert f"train: {train:,}, expected {known.counts['train']:,}" in check.detail
    assert data_digest(root, {}, whole=True).files > 0


def test_images_are_the_ones_that_the_lists_mean(tmp_path: Path) -> None:
    for name, train, test in [
        ("flowers", [2, 1, 3], [6, 5, 4]), ("cars", [1, 2, 3, 4], [1, 2, 3, 4]),
        ("aircraft", [1, 2, 3], [4]), ("food", [1, 2], [3]), ("cub", [1, 2], [3]),
        ("inat18", [30, 0, 7], [7]), ("places205", [1, 2], [3]), ("sun397", [1, 2], [3]),
        ("dtd", [1, 2, 3], [4]), ("voc2007", [5, 7], [1]),
    ]:  # fmt: skip
        root = tmp_path / name
        root.mkdir()
        WRITERS[name][0](root)
        splits = read_set(name, root, Splits)
        assert [red(splits, "train", i) for i in range(len(splits.train))] == train, name
        assert [red(splits, "test", i) for i in range(len(splits.test))] == test, name


def test_official_validation_parts_are_known(tmp_path: Path) -> None:
    for name, held in [("flowers", [2]), ("aircraft", [2]), ("dtd", [2]), ("voc2007", [1])]:
        root = tmp_path / name
        root.mkdir()
        WRITERS[name][0](root)
        validation = read_set(name, root, Splits).validation
        assert validation is not None
        assert validation.tolist() == held


def test_cifars_pixels_and_its_archive(tmp_path: Path) -> None:
    cifar(tmp_path / "a", hundred=False)
    plain = read_set("cifar10", tmp_path / "a", Splits)
    assert [red(plain, "train", i) for i in (0, 2, 3, 14)] == [0, 2, 10, 42]
    assert plain.train.open(0).size == (32, 32)
    (tmp_path / "b").mkdir()
    with tarfile.open(tmp_path / "b" / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a" / "cifar-10-batches-py", "cifar-10-batches-py")
    packed = read_set("cifar10", tmp_path / "b", Splits)
    assert packed.train.names == plain.train.names
    assert packed.train.stamps == plain.train.stamps
    assert packed.test.open(1).tobytes() == plain.test.open(1).tobytes()


class Hostile:
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


@pytest.mark.parametrize("part", ["data_batch_3", "batches.meta"])
def test_a_hostile_cifar_pickle_is_refused_and_nothing_runs(part: str, tmp_path: Path) -> None:
    cifar(tmp_path, hundred=False)
    path = tmp_path / "cifar-10-batches-py" / part
    for evil in (Hostile(), {b"data": Hostile(), b"labels": [1]}):
        path.write_bytes(dumped(evil))
        with pytest.raises(UserError, match=rf"{part}: reading it would need 'sys.exit'"):
            read_set("cifar10", tmp_path, Splits)
    path.write_bytes(dumped({b"data": np.zeros((3, 3072), np.float32), b"labels": [0, 0, 0]}))
    with pytest.raises(UserError):
        read_set("cifar10", tmp_path, Splits)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("flowers", lambda r: savemat(r / "setid.mat", {"trnid": [[9]], "valid": [[1]], "tstid": [[1]]}), "beyond the 6"),
        ("flowers", lambda r: (r / "setid.mat").write_bytes(b"MATLAB 5.0" + b"\xff" * 300), "not a readable MATLAB file|holds nothing"),
        ("flowers", lambda r: savemat(r / "setid.mat", {"x": [[1]]}), "holds x, expected trnid"),
        ("cars", lambda r: (r / "cars_test_annos_withlabels.mat").unlink(), "has no cars_test_annos_withlabels.mat"),
        ("food", lambda r: write(r / "meta" / "train.txt", "../../etc/passwd"), "does not name the class"),
        ("cub", lambda r: write(r / "images.txt", "1 ../../x.jpg", "2 b", "3 c"), "lies outside of it"),
        ("cub", lambda r: write(r / "image_class_labels.txt", "1 1", "2 9", "3 2"), "label 8 of 2 classes"),
        ("pets", lambda r: (r / "images" / "Abyssinian_1.jpg").unlink(), "1 of which are not in"),
        ("inat18", lambda r: write(r / "val2018.json", "{}"), "expected images, annotations"),
        ("sun397", lambda r: (r / "Partitions" / "Testing_01.txt").unlink(), "Partitions.zip"),
        ("voc2007", lambda r: write(r / "VOCdevkit/VOC2007/ImageSets/Main/cat_test.txt", "1 1"), "lists other images"),
    ],
)  # fmt: skip
def test_damage_is_an_error_that_says_what(
    name: str, damage: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    WRITERS[name][0](tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        read_set(name, tmp_path, Splits)


def test_plain_folders_and_tars_serve_any_set(tmp_path: Path) -> None:
    folders = tmp_path / "pets"
    for part, count in {"train": 3, "val": 1, "test": 2}.items():
        for label in ("cat", "dog"):
            for i in range(count):
                picture(folders / part / label / f"{i}.png", i)
    splits = read_set("pets", folders, Splits)
    assert splits.counts() == {"train": 8, "test": 4, "classes": 2}
    assert splits.validation is not None
    assert splits.validation.tolist() == [6, 7]
    archives = tmp_path / "tars"
    archives.mkdir()
    for part in ("train", "test"):
        with tarfile.open(archives / f"{part}.tar", "w") as archive:
            archive.add(folders / part, part)
    packed = read_set("pets", archives, Splits)
    assert packed.counts() == {"train": 6, "test": 4, "classes": 2}
    assert packed.test.labels.tolist() == [0, 0, 1, 1]
    (tmp_path / "no" / "other").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"holds other; expected annotations/trainval.txt, or train and"
    ):
        read_set("pets", tmp_path / "no", Splits)


def test_parquet_as_datasets_writes_it(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="the package pyarrow is not installed")
    pq = pytest.importorskip("pyarrow.parquet")
    names = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    for part, count in {"train": 5, "test": 2}.items():
        rows = []
        for i in range(count):
            buffer = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(buffer, format="PNG")
            rows.append({"bytes": buffer.getvalue(), "path": f"{i}.png"})
        table = pa.table({"image": rows, "label": [i % 2 for i in range(count)]})
        table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "data" / f"{part}-00000-of-00001.parquet")
    splits = read_set("pets", tmp_path, Splits)
    assert splits.train.classes == ("cat", "dog")
    assert splits.train.labels.tolist() == [0, 1, 0, 1, 0]
    assert [red(splits, "train", i) for i in range(5)] == [0, 10, 20, 30, 40]
    assert [red(splits, "test", i) for i in range(2)] == [0, 10]
    assert len(list((tmp_path / "cache" / "unpacked").glob("*/images.bin"))) == 2


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("train", "test"):
        (tmp_path / f"{part}-00000-of-00001.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        read_set("food", tmp_path, Splits)


def test_the_doctor_knows_the_published_counts() -> None:
    counts = {name: dict(known.counts) for name, known in published().items() if name in WRITERS}
    assert counts == {
        "cifar10": {"train": 50_000, "test": 10_000, "classes": 10},
        "cifar100": {"train": 50_000, "test": 10_000, "classes": 100},
        "flowers": {"train": 2_040, "test": 6_149, "classes": 102},
        "cars": {"train": 8_144, "test": 8_041, "classes": 196},
        "pets": {"train": 3_680, "test": 3_669, "classes": 37},
        "aircraft": {"train": 6_667, "test": 3_333, "classes": 100},
        "food": {"train": 75_750, "test": 25_250, "classes": 101},
        "cub": {"train": 5_994, "test": 5_794, "classes": 200},
        "inat18": {"train": 437_513, "test": 24_426, "classes": 8_142},
        "inat19": {"train": 265_213, "test": 3_030, "classes": 1_010},
        "places205": {"train": 2_448_873, "test": 20_500, "classes": 205},
        "sun397": {"train": 19_850, "test": 19_850, "classes": 397},
        "dtd": {"train": 3_760, "test": 1_880, "classes": 47},
        "caltech101": {"train": 3_030, "test": 5_647, "classes": 101},
        "voc2007": {"train": 5_011, "test": 4_952, "classes": 20},
    }
    per_class = {name for name, known in published().items() if known.score == "per class"}
    assert per_class == {"aircraft", "pets", "caltech101", "flowers"}


def test_the_doctor_names_sets_that_are_there_and_is_silent_about_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    food(tmp_path / "food-101")
    dtd(tmp_path / "dtd" / "dtd")
    found = {check.name: check for check in check_data(tmp_path)}
    assert {n for n in found if found[n].status == "fault"} == {"Food-101", "DTD"}
    assert "CIFAR-10" not in found
    assert "https://" in found["Food-101"].fix
    monkeypatch.setitem(
        published()["food"].__dict__, "counts", {"train": 2, "test": 1, "classes": 2}
    )
    found = {check.name: check for check in check_data(tmp_path)}
    assert (found["Food-101"].status, found["Food-101"].detail) == (
        "ok",
        "2 train, 1 test, 2 classes",
    )


def test_a_set_is_known_by_its_own_files_or_by_plain_splits_in_its_folder(tmp_path: Path) -> None:
    picture(tmp_path / "pets" / "train" / "cat" / "1.png")
    assert find_set("pets", tmp_path) == tmp_path / "pets"
    assert find_set("food", tmp_path) is None
    with pytest.raises(UserError, match="did you mean 'food'"):
        read_set("foods", tmp_path, Splits)
