"""The sample data on disk: made once, whole or not at all, verified, and replaced on request."""

import json
import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from mimbench.commands import sample as command
from mimbench.sample import Sizes, check, default_root, generate, sample_root, store, verify
from mimbench.system.errors import UserError
from mimbench.system.options import Parser

SMALLEST = Sizes(train_per_class=1, val_per_class=1, train_scenes=1, val_scenes=1)


def make_smallest(root: Path, *, replace: bool = False) -> Path:
    return generate(
        root, train_per_class=1, val_per_class=1, train_scenes=1, val_scenes=1, replace=replace
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return make_smallest(tmp_path / "sample")


def test_sample_root_makes_once_and_then_reuses(monkeypatch: pytest.MonkeyPatch, copy: Path):
    monkeypatch.setenv("MIMBENCH_CACHE", str(copy.parent))
    before = (copy / "manifest.json").stat().st_mtime_ns
    assert sample_root() == copy == default_root()
    assert (copy / "manifest.json").stat().st_mtime_ns == before


def test_default_root_follows_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("MIMBENCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root().parent == tmp_path / "mimbench"


def test_a_missing_file_is_noticed_on_use_with_the_remedy(copy: Path):
    (copy / "classification/val/3/000003.png").unlink()
    with pytest.raises(UserError, match=r"classification/val/3 has 0 files, expected 1.*--fresh"):
        sample_root(copy)


def test_check_names_changed_missing_and_foreign_files(copy: Path):
    assert check(copy) == []
    changed = copy / "ade/annotations/training/ADE_train_00000001.png"
    changed.write_bytes(changed.read_bytes()[:-1])
    (copy / "ade/objectInfo150.txt").unlink()
    (copy / "coco/train2017/other.jpg").write_bytes(b"")
    assert check(copy) == [
        "missing: ade/objectInfo150.txt",
        "not ours: coco/train2017/other.jpg",
        "changed: ade/annotations/training/ADE_train_00000001.png",
    ]


def test_another_version_is_refused(copy: Path):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"version": 0}))
    with pytest.raises(UserError, match="has version 0, expected"):
        verify(copy)


def test_a_folder_that_is_not_ours_is_never_touched(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is not sample data"):
        sample_root(tmp_path)
    with pytest.raises(UserError, match="not empty"):
        make_smallest(tmp_path)
    with pytest.raises(UserError, match="is not sample data"):
        make_smallest(tmp_path, replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failure_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def fail(*args: object):
        raise OSError("disk full")

    monkeypatch.setattr("mimbench.sample.store.write_scenes", fail)
    with pytest.raises(OSError, match="disk full"):
        make_smallest(tmp_path / "sample")
    assert list(tmp_path.iterdir()) == []


def test_sizes_must_be_positive(tmp_path: Path):
    with pytest.raises(UserError, match="val_scenes is 0; expected at least 1"):
        generate(tmp_path / "sample", val_scenes=0)


def use_sample_data(root: Path, start: Barrier) -> None:
    start.wait()
    sample_root(root)


def test_two_processes_at_once_leave_one_whole_copy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(store, "Sizes", lambda: SMALLEST)
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    root = tmp_path / "sample"
    workers = [context.Process(target=use_sample_data, args=(root, start)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert check(root) == []
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]


def test_the_second_to_finish_uses_what_the_first_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    root, fill = tmp_path / "sample", store._fill

    def be_overtaken(part: Path, sizes: Sizes) -> None:
        monkeypatch.setattr(store, "_fill", fill)
        make_smallest(root)
        first.append((root / "manifest.json").stat().st_mtime_ns)
        fill(part, sizes)

    first: list[int] = []
    monkeypatch.setattr(store, "_fill", be_overtaken)
    assert make_smallest(root) == root
    assert first == [(root / "manifest.json").stat().st_mtime_ns]
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]


def test_other_content_than_the_published_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(store, "Sizes", lambda: SMALLEST)
    sample_root(tmp_path / "sample")
    assert "differs from the published one" in caplog.text


# The command


def run_command(*words: str) -> int:
    parser = Parser()
    command.add_arguments(parser)
    return command.main(parser.parse_args(words))


def test_the_command_checks_and_names_the_remedy(copy: Path, caplog: pytest.LogCaptureFixture):
    assert run_command("--out", str(copy), "--check") == 0
    (copy / "ade/objectInfo150.txt").write_text("")
    assert run_command("--out", str(copy), "--check") == 1
    assert "changed: ade/objectInfo150.txt" in caplog.text
    assert f"python -m mimbench sample --out {copy} --fresh" in caplog.text


def test_damaged_data_is_replaced_on_request(copy: Path):
    (copy / "ade/objectInfo150.txt").unlink()
    make_smallest(copy, replace=True)
    assert check(copy) == []
