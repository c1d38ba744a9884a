"""Every kind of source gives the same images by index, and says what it misses."""

import importlib.util
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mimbench.data.images import CorruptImageError
from mimbench.system.errors import UserError
from pretrain.sources import archives
from pretrain.sources.archives import expand
from pretrain.sources.crops import Crops, DataConfig
from pretrain.sources.images import ImageSource, open_source
from tests.support.tiny_pretrain import noisy_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_images(tmp_path_factory.mktemp("data"), 10)


def pictures(folder: Path) -> list[Path]:
    return sorted((folder / "train").rglob("*.jpg"))


def pack(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    """Write a tar file."""
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sharded(folder: Path, out: Path) -> None:
    """Write WebDataset shards: image and label of each sample side by side."""
    files = pictures(folder)
    for number, part in enumerate((files[:6], files[6:])):
        pairs = [((f.name, f.read_bytes()), (f"{f.stem}.cls", b"1")) for f in part]
        pack(out / f"part-{number:03d}.tar", [item for pair in pairs for item in pair])


def opened(kind: str, folder: Path, out: Path) -> ImageSource:
    """Return the folder's images as a source of another kind."""
    files = pictures(folder)
    names = [str(f.relative_to(folder / "train")) for f in files]
    if kind == "list":
        (out / "train").symlink_to(folder / "train")
        (out / "train.txt").write_text("".join(f"{n} {i % 2}\n" for i, n in enumerate(names)))
        return open_source("list", out, "train")
    if kind == "tar":
        with tarfile.open(out / "all.tar", "w") as archive:
            archive.add(folder / "train", arcname="train")
        return open_source("", out / "all.tar", "train")
    if kind == "tars in a tar":
        inner = [
            pack(out / f"{c}.tar", [(f.name, f.read_bytes()) for f in files if f.parent.name == c])
            for c in "ab"
        ]
        outer = pack(out / "all.tar", [(f"train/{p.name}", p.read_bytes()) for p in inner])
        return open_source("", outer, "train")
    if kind == "shards":
        sharded(folder, out)
        return open_source("wds/part-{000..001}.tar", out, "train")
    return open_source("", folder, "train")


@pytest.mark.parametrize("kind", ["folder", "list", "tar", "tars in a tar", "shards"])
def test_the_same_files(kind: str, folder: Path, tmp_path: Path) -> None:
    source = opened(kind, folder, tmp_path)
    wanted = {file.name: file.read_bytes() for file in pictures(folder)}
    assert len(source) == 10
    found = {Path(source.name(i).split(":")[-1]).name: source.load(i) for i in range(10)}
    assert found == wanted
    # any order, any number of times
    assert source.load(3) == source.load(3)


def test_what_torchvision_decodes_itself(folder: Path) -> None:
    source = open_source("torch/image_folder", folder, "train")
    assert len(source) == 10
    image = source.load(3)
    assert isinstance(image, Tensor)
    assert image.shape == (3, 40, 48)


def test_more_shards_than_a_process_may_open(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "OPEN_FILES", 1)
    sharded(folder, tmp_path)
    source = open_source("wds/*.tar", tmp_path, "train")
    assert isinstance(source, archives.ArchiveSource)
    wanted = {file.name: file.read_bytes() for file in pictures(folder)}
    for i in (0, 9, 1, 8, 0):
        assert source.load(i) == wanted[source.name(i).split(":")[-1]]
        assert len(source.files) == 1


def test_a_list_with_blanks_and_without_labels(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for name in ("a b.jpg", "c.jpg"):
        (tmp_path / "train" / name).write_bytes(pictures(folder)[0].read_bytes())
    (tmp_path / "train.txt").write_text("a b.jpg 7\nc.jpg\ngone.jpg 1\n")
    source = open_source("list", tmp_path, "train")
    assert len(source) == 3
    assert source.load(0) == source.load(1) == pictures(folder)[0].read_bytes()
    with pytest.raises(CorruptImageError, match=r"gone\.jpg: No such file"):
        source.load(2)


@pytest.mark.parametrize(
    ("name", "root", "message"),
    [
        ("", "absent", "absent does not exist"),
        ("", "text.tar", "cannot index the tar file .*text.tar"),
        ("", "empty.tar", "no image in .*empty.tar"),
        ("list", ".", "wants .*train.txt with lines"),
        ("wds/{0..3}.tar", ".", r"shard .*0.tar does not exist"),
        ("wds/x*.tar", ".", "no shard matches"),
        ("torch/nonsense", ".", "Unknown torchvision dataset nonsense"),
    ],
)
def test_sources_say_what_they_miss(tmp_path: Path, name: str, root: str, message: str) -> None:
    (tmp_path / "text.tar").write_text("no archive")
    pack(tmp_path / "empty.tar", [("notes.txt", b"x")])
    with pytest.raises(UserError, match=message):
        open_source(name, tmp_path / root, "train")
    with pytest.raises(UserError, match=r"data.root is not set"):
        open_source(name, None, "train")


def test_shard_patterns(tmp_path: Path) -> None:
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b-08.tar"):
        (tmp_path / name).touch()
    found = [p.name for p in expand(tmp_path, "a-{08..10}.tar")]
    assert found == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert [p.name for p in expand(tmp_path, "{a,b}-08.tar")] == ["a-08.tar", "b-08.tar"]
    assert len(expand(tmp_path, "a-*.tar")) == 3


# Hugging Face data sets ---------------------------------------------------------------------------


def test_without_the_package_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for root in (tmp_path, None):
        with pytest.raises(UserError, match=r"hfds/any' needs .*: pip install datasets"):
            open_source("hfds/any", root, "train")
    assert capsys.readouterr().out == ""


@pytest.fixture
def arrow(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, with a data set of the folder's images in each form that it may lie in."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    content = [{"bytes": f.read_bytes(), "path": f.name} for f in pictures(folder)]
    features = datasets.Features(
        {"label": datasets.Value("int64"), "img": datasets.Image(), "mask": datasets.Image()}
    )
    rows = {"label": list(range(10)), "img": content, "mask": content[::-1]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    whole.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": whole, "test": whole.select([0])}).save_to_disk(
        str(tmp_path / "splits")
    )
    (tmp_path / "parquet").mkdir()
    whole.to_parquet(str(tmp_path / "parquet" / "train-00000.parquet"))
    (tmp_path / "files").symlink_to(folder)
    return datasets


@pytest.mark.parametrize("form", ["one", "splits", "parquet", "files"])
def test_every_form_of_a_hugging_face_data_set(
    form: str, arrow: Any, folder: Path, tmp_path: Path
) -> None:
    source = open_source(f"hfds/{form}", tmp_path, "train")
    wanted = sorted(file.read_bytes() for file in pictures(folder))
    assert sorted(source.load(i) for i in range(len(source))) == wanted
    assert source.name(2).startswith(f"hfds/{form}#2 (")
    assert ".jpg)" in source.name(2)
    absolute = open_source(f"hfds/{tmp_path / form}", None, "train")
    assert absolute.load(4) == source.load(4)
    crop = Crops(source, DataConfig(image_size=32))[0]
    assert crop.shape == (3, 32, 32)
    assert crop.dtype == torch.uint8


def test_hugging_face_data_sets_say_what_they_miss(arrow: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"split nonsense.*splits train, test"):
        open_source("hfds/splits", tmp_path, "nonsense")
    with pytest.raises(UserError, match="cannot open data.name 'hfds/nobody/nothing'"):
        open_source("hfds/nobody/nothing", tmp_path, "train")
    bare = arrow.Dataset.from_dict({"text": ["a"], "image": [None]})
    bare.save_to_disk(str(tmp_path / "bare"))
    with pytest.raises(UserError, match="no column of images; it has text"):
        open_source("hfds/bare", tmp_path, "train")
    hole = bare.select_columns(["image"]).cast_column("image", arrow.Image())
    hole.save_to_disk(str(tmp_path / "hole"))
    source = open_source("hfds/hole", tmp_path, "train")
    with pytest.raises(CorruptImageError, match="holds no image"):
        source.load(0)
