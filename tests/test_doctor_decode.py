"""All broken images of a data set are found in one pass, which goes on where it was interrupted."""

import json
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mimbench.doctor import decode
from mimbench.doctor.check import Check
from mimbench.doctor.decode import Broken, ImageEntry, check_images, pictures
from mimbench.system.errors import UserError


@pytest.fixture
def images(
    painted_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(decode, "GROUP", 10)
    return painted_images(tmp_path / "data")


def break_some(root: Path) -> dict[str, str]:
    """Break images in every way that a copy breaks them; return name -> what is said."""
    val, train = root / "val" / "class_0", root / "train" / "class_3"
    (val / "val_0_000.png").write_bytes(b"")
    (val / "val_0_003.png").write_bytes(b"<html>not found</html>")
    path = val / "val_0_005.png"
    path.write_bytes(path.read_bytes()[:400])
    path = train / "train_3_001.png"
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)
    (train / "train_3_007.png").unlink()
    (train / "train_3_007.png").symlink_to("nowhere.png")
    return {"val_0_000": "cannot identify", "val_0_003": "cannot identify", "val_0_005": "truncated",
            "train_3_001": "", "train_3_007": "No such file"}  # fmt: skip


def test_one_pass_finds_every_broken_image(images: Path, tmp_path: Path) -> None:
    wanted = break_some(images)
    found = check_images(images, 2)
    assert found.status == "fault"
    assert found.detail.startswith("5 of 72 cannot be decoded")
    assert all(name in found.fix and reason in found.fix for name, reason in wanted.items())
    [listed] = (tmp_path / "cache" / "decoded").glob("*.broken.txt")
    names = [line.split("\t")[0] for line in listed.read_text().splitlines()]
    assert {Path(name).stem for name in names} == set(wanted)
    for name in names:
        Path(name).unlink()
    assert check_images(images, 2) == Check(
        name="images", status="ok", detail=f"all 67 below {images} can be decoded"
    )
    assert not listed.exists()


def test_an_interrupted_pass_goes_on_and_only_what_changed_is_decoded_again(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_some(images)
    asked: list[int] = []

    def here(
        groups: Sequence[list[ImageEntry]], jobs: int
    ) -> "list[tuple[list[ImageEntry], list[Broken]]]":
        del jobs
        asked.append(sum(map(len, groups)))
        return [(group, decode.decode(group)) for group in groups]

    def interrupted(groups: Sequence[list[ImageEntry]], jobs: int) -> "object":
        yield from here(groups[:3], jobs)
        raise KeyboardInterrupt

    monkeypatch.setattr(decode, "_in_processes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check_images(images, 1)
    monkeypatch.setattr(decode, "_in_processes", here)
    assert check_images(images, 1).detail.startswith("5 of 72")
    assert asked == [30, 42], "the rest, not all again"
    assert check_images(images, 1).detail.startswith("5 of 72")
    assert asked.pop() == 0
    good = images / "train" / "class_0" / "train_0_000.png"
    os.utime(good, ns=(1, 1))
    assert check_images(images, 1).detail.startswith("5 of 72")
    assert asked.pop() == 10, "the group of what changed"
    assert check_images(images, 1, fresh=True).detail.startswith("5 of 72")
    assert asked.pop() == 72


def test_a_record_that_was_cut_is_no_obstacle(images: Path, tmp_path: Path) -> None:
    check_images(images, 1)
    [record] = (tmp_path / "cache" / "decoded").glob("*.jsonl")
    record.write_text(record.read_text()[:-20])
    assert check_images(images, 1).status == "ok"


def test_images_in_tar_files_are_decoded_too(images: Path) -> None:
    wanted = break_some(images)
    (images / "train" / "class_3" / "train_3_007.png").unlink()
    with tarfile.open(images / "train.tar", "w") as archive:
        archive.add(images / "train", arcname=".")
    for path in sorted((images / "train").rglob("*.png")):
        path.unlink()
    found = check_images(images, 1)
    assert found.detail.startswith("4 of 71")
    assert f"{images}/train.tar:./class_3/train_3_001.png" in found.fix
    assert len(wanted) == 5
    (images / "train.tar").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match=r"train\.tar: not a whole tar file"):
        check_images(images, 1)


def test_links_are_followed_once(images: Path) -> None:
    (images / "loop").symlink_to(images)
    (images / "val" / "class_0" / "linked").symlink_to(images / "train" / "class_1")
    assert len(list(pictures(images))) == 72
    assert len({p.name for p in pictures(images)}) == 72


def _crash(group: Sequence[ImageEntry]) -> list[Broken]:
    if any(p.path.endswith("val_1_002.png") for p in group):
        os._exit(11)
    return decode.decode(group)


def test_a_decoder_that_crashes_costs_its_own_image_only(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [list(pictures(images / "val"))[i : i + 12] for i in range(0, 24, 12)]
    monkeypatch.setattr(decode, "decode", _crash)
    found = [b for _, broken in decode._in_processes(groups, 2) for b in broken]
    assert [(Path(name).name, reason) for name, reason in found] == [
        ("val_1_002.png", "the decoder crashed")
    ]


def test_the_command_decodes(
    images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mimbench.__main__ import main
    from mimbench.commands import doctor as command

    monkeypatch.setattr(command, "check_frameworks", list)
    break_some(images)
    assert main(["doctor", "--data", str(images), "--decode", "--jobs", "1", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["checks"]
    [check] = [c for c in found if c["name"] == "images"]
    assert check["detail"].startswith("5 of 72")
    assert main(["doctor", "--decode"]) == 2
    assert "--decode needs the images' folder: say --data DIR" in capsys.readouterr().err
