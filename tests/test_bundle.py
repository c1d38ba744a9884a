"""A bundle verifies as it was packed, and no longer after any change."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mimbench.sharing.bundle import verify_bundle, write_bundle
from mimbench.system.errors import UserError
from tests.support.results_folder import write_manifest, write_run

Edit = Callable[[dict[str, bytes]], None]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_manifest(tmp_path)
    write_run(tmp_path / "runs", "good", share=0.8)
    write_run(tmp_path / "runs", "bad", share=0.6)
    write_bundle(tmp_path / "runs", tmp_path / "b.tar.gz", tmp_path / "benchmarks.yaml")
    return tmp_path / "b.tar.gz"


def rewrite(path: Path, edit: Edit) -> None:
    with tarfile.open(path) as archive:
        files = {m.name: b"".join(iter(archive.extractfile(m) or [])) for m in archive.getmembers()}
    edit(files)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def result_name(files: dict[str, bytes]) -> str:
    return next(name for name in sorted(files) if name.endswith("result.json"))


def forge(change: Callable[[dict], None]) -> Edit:
    """Change a result and its digest in the list: only recomputation can tell."""
    import hashlib

    def edit(files: dict[str, bytes]) -> None:
        name = result_name(files)
        value = json.loads(files[name])
        change(value)
        files[name] = json.dumps(value).encode()
        head = json.loads(files["bundle.json"])
        head["files"][name] = hashlib.sha256(files[name]).hexdigest()
        files["bundle.json"] = json.dumps(head).encode()

    return edit


def test_it_verifies_as_packed(bundle: Path) -> None:
    assert verify_bundle(bundle) == ([], [])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda files: files.update({result_name(files): files[result_name(files)] + b" "}),
            "result.json was changed",
        ),
        (lambda files: files.pop(result_name(files)), "result.json is missing"),
        (lambda files: files.update({"runs/more.txt": b"x"}), "more.txt was added"),
        (forge(lambda r: r["metrics"].update(top1=99.0)), "stored as 99.0000, the outcomes give"),
        (forge(lambda r: r["config"].update(k=10)), "protocol digest does not belong"),
        (forge(lambda r: r["weights"].update(digest="f" * 64)), "the order names other weights"),
        (forge(lambda r: r["weights"].update(name="renamed")), "the table does not follow"),
    ],
)
def test_any_change_is_found(bundle: Path, edit: Edit, message: str) -> None:
    rewrite(bundle, edit)
    faults, _ = verify_bundle(bundle)
    assert any(message in fault for fault in faults), faults


def test_a_path_outside_is_refused(bundle: Path) -> None:
    rewrite(bundle, lambda files: files.update({"../evil": b"x"}))
    with pytest.raises(UserError, match=r"holds '\.\./evil'"):
        verify_bundle(bundle)


def test_other_files_are_no_bundles(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="not a readable bundle"):
        verify_bundle(tmp_path / "x.tar.gz")
