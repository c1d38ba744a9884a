"""A bundle verifies as it was packed, and no longer after any change of a number, its meaning or origin."""

import gzip
import io
import json
import subprocess
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimbench.__main__ import main
from mimbench.results.record import EDITED, read_result
from mimbench.scores import outcomes
from mimbench.scores.outcomes import read_arrays
from mimbench.suite.sharing.bundle import write_archive, write_bundle
from mimbench.suite.sharing.unpacking import unpack
from mimbench.suite.sharing.verifying import HEAD, SIGNATURE, Verification, verify_bundle
from mimbench.system.errors import UserError
from mimbench.tables.table import read_results
from tests.support.bundle_edits import Edit, edits, run, seal
from tests.support.results_folder import write_manifest, write_run


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle of three runs and the manifest that made it."""
    folder = tmp_path_factory.mktemp("packed")
    write_manifest(folder)
    for name, share, benchmark in (
        ("good", 0.8, "in-knn"),
        ("bad", 0.6, "in-knn"),
        ("good", 0.7, "in-ft-hpm"),
    ):
        write_run(folder / "runs", name, share=share, benchmark=benchmark)
    write_bundle(folder / "runs", folder / "b.tar.gz", folder / "benchmarks.yaml")
    return folder


def verified(packed: Path, path: Path | None = None, **options: Any) -> Verification:
    return verify_bundle(
        path or packed / "b.tar.gz", benchmarks=packed / "benchmarks.yaml", **options
    )


def changed(packed: Path, folder: Path, edit: Edit, sealed: str) -> Path:
    """Write the bundle with an edit; `sealed` says how far its traces were covered."""
    root = folder / "root"
    root.mkdir()
    unpack(packed / "b.tar.gz", root)
    edit.change(root)
    if sealed != "not":
        seal(root, whole=sealed == "whole")
    files = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    write_archive(folder / "c.tar.gz", files)
    return folder / "c.tar.gz"


def told(packed: Path, path: Path, *, digest: str = "") -> list[str]:
    """Return what verification says against a bundle; it may be an error, never a traceback."""
    try:
        verdict = verified(packed, path, digest=digest)
    except UserError as error:
        return [str(error)]
    return [*verdict.faults, *verdict.unproven]


EDITS = {edit.name: edit for edit in edits()}


def test_it_verifies_as_packed(packed: Path) -> None:
    verdict = verified(packed)
    assert (verdict.faults, verdict.unproven) == ((), ())
    assert verified(packed, digest=verdict.digest).faults == ()


def test_the_same_folder_gives_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    again = write_bundle(packed / "runs", tmp_path / "again.tar.gz", packed / "benchmarks.yaml")
    assert (tmp_path / "again.tar.gz").read_bytes() == (packed / "b.tar.gz").read_bytes()
    assert again.digest == verified(packed).digest


def test_the_table_of_edits_is_a_large_one() -> None:
    assert len(EDITS) == len(list(edits())) >= 150


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_found(name: str, packed: Path, tmp_path: Path) -> None:
    """As it is, with its digest listed anew, and with checksums and table made to fit.

    What fits together entirely is known only by the published digest (or the signature).
    """
    edit, digest = EDITS[name], verified(packed).digest
    # a table that follows anew is the old one again
    for sealed in ("not", "listed") if name.startswith("table") else ("not", "listed", "whole"):
        folder = tmp_path / sealed
        folder.mkdir()
        path = changed(packed, folder, edit, sealed)
        against = told(packed, path)
        assert all(text.isprintable() for text in against), against
        if sealed == "not" and not (edit.beyond and name == "environment"):
            assert against, "an edit that nobody covered"
        if sealed == "listed" and not edit.beyond:
            assert against, "an edit whose digest alone was listed anew"
        if sealed == "whole":
            assert bool(against) != edit.beyond, against
        assert told(packed, path, digest=digest), "the digest is the one that was published"


@pytest.mark.parametrize(
    "kind", ["result.json", "config.yaml", "metrics.jsonl", "outcomes.0.npz", "table.json", "benchmarks.yaml", "reference.yaml"]
)  # fmt: skip
def test_every_kind_of_file_is_hashed(kind: str, packed: Path, tmp_path: Path) -> None:
    """A change that no other rule could mind is found by the hash alone, and so is a file more."""

    def touch(root: Path) -> None:
        [path, *_] = sorted(root.rglob(kind))
        content = path.read_bytes()
        path.write_bytes(content + (b"\n" if kind != "outcomes.0.npz" else b""))
        if kind == "outcomes.0.npz":
            with np.load(io.BytesIO(content)) as file:
                np.savez(path, **dict(file))
        (root / "more" / kind).parent.mkdir()
        (root / "more" / kind).write_text("x")

    faults = verified(packed, changed(packed, tmp_path, Edit(kind, touch), "not")).faults
    assert any(f.endswith(f"{kind} was changed") for f in faults), faults
    assert f"more/{kind} was added" in faults


def test_no_file_of_the_readers_machine_is_opened(packed: Path, tmp_path: Path) -> None:
    """Even one that would do: a whole reference file outside of the bundle."""

    def lead_outside(root: Path) -> None:
        path = root / "benchmarks.yaml"
        named = f"reference_file: {packed / 'reference.yaml'}"
        path.write_text(path.read_text().replace("reference_file: reference.yaml", named))
        assert named in path.read_text()

    path = changed(packed, tmp_path, Edit("outside", lead_outside), "whole")
    assert (
        "benchmarks.yaml names a reference file outside of the bundle"
        in verified(packed, path).faults
    )


def test_a_metric_without_outcomes_is_listed_and_fails_strictly(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(packed, tmp_path, EDITS["metric invented"], "whole")
    asked = ["verify", str(path), "--benchmarks", str(packed / "benchmarks.yaml")]
    assert main(asked) == 0
    assert "no outcomes were kept that determine top3" in capsys.readouterr().err
    assert main([*asked, "--strict"]) == 1
    assert "NOT VERIFIED" in capsys.readouterr().out


def test_a_signature_names_who_published(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("key", "other"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me", "-f", str(tmp_path / name)],
            check=True,
        )
    signed = tmp_path / "s.tar.gz"
    benchmarks = str(packed / "benchmarks.yaml")
    assert (
        main(
            [
                "bundle",
                str(packed / "runs"),
                "-o",
                str(signed),
                "--benchmarks",
                benchmarks,
                "--sign",
                str(tmp_path / "key"),
            ]
        )
        == 0
    )
    assert f"digest {verified(packed).digest}" in capsys.readouterr().out
    asked = ["verify", str(signed), "--benchmarks", benchmarks, "--signer"]
    assert main([*asked, str(tmp_path / "key.pub")]) == 0
    assert "verified, signed by signer" in capsys.readouterr().out
    (tmp_path / "allowed").write_text(f"me@here {(tmp_path / 'key.pub').read_text()}")
    assert main([*asked, str(tmp_path / "allowed")]) == 0
    assert "signed by me@here" in capsys.readouterr().out
    assert main([*asked, str(tmp_path / "other.pub")]) == 1
    assert "of a key that" in capsys.readouterr().err
    assert (
        main(
            [
                "verify",
                str(packed / "b.tar.gz"),
                "--benchmarks",
                benchmarks,
                "--signer",
                str(tmp_path / "key.pub"),
            ]
        )
        == 1
    )
    assert "it is not signed" in capsys.readouterr().err
    # another bundle under the old signature
    with tarfile.open(signed) as archive:
        old = archive.extractfile(SIGNATURE)
        assert old is not None
        signature = old.read()

    def swap(root: Path) -> None:
        (root / HEAD).write_text((root / HEAD).read_text() + " ")
        (root / SIGNATURE).write_bytes(signature)

    path = changed(packed, tmp_path, Edit("swap", swap), "not")
    assert any(
        "does not belong to this bundle" in f
        for f in verified(packed, path, signers=tmp_path / "key.pub").faults
    )
    assert (
        main(
            [
                "bundle",
                str(packed / "runs"),
                "-o",
                str(signed),
                "--benchmarks",
                benchmarks,
                "--sign",
                str(tmp_path / "no"),
            ]
        )
        == 2
    )


def entry(name: str, content: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


ARCHIVES = {
    "../evil": [entry("../evil")],
    "/etc/evil": [entry("/etc/evil")],
    "a/../../evil": [entry("a/../../evil")],
    "link": [entry("link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
    "hard": [entry("hard", b"", type=tarfile.LNKTYPE, linkname="bundle.json")],
    "pipe": [entry("pipe", b"", type=tarfile.FIFOTYPE)],
    "device": [entry("device", b"", type=tarfile.CHRTYPE)],
    "sparse": [entry("sparse", b"", type=tarfile.GNUTYPE_SPARSE)],
    "folder": [entry("folder", b"", type=tarfile.DIRTYPE)],
    "twice": [entry("twice"), entry("twice")],
    "below a file": [entry("below a file"), entry("below a file/x")],
    "deep": [entry("/".join("a" * 20))],
    "control": [entry("control\x1b[2J")],
    "huge": [entry("huge", b"x" * 512, size=1 << 40)],
    "many": [entry(f"many{i}", b"") for i in range(41_000)],
}  # fmt: skip


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_that_lead_elsewhere_are_refused(kind: str, packed: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for info, content in ARCHIVES[kind]:
            archive.addfile(info) if info.size > len(content) else archive.addfile(
                info, io.BytesIO(content)
            )
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(buffer.getvalue()))
    with pytest.raises(UserError, match=r"x\.tar\.gz") as error:
        verified(packed, path)
    assert str(error.value).isprintable()
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar.gz"]


def test_bombs_are_refused_before_they_grow(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(bytes(200 << 20)))
    with pytest.raises(UserError, match="this is a bomb and no bundle"):
        verified(packed, path)
    for content in (b"no archive", b"", gzip.compress(b"no tar"), gzip.compress(b"x" * 3000)[:-20]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"bomb\.tar\.gz"):
            verified(packed, path)


def npy(shape: str, dtype: str = "<f4") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


def test_arrays_that_promise_more_than_they_hold_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.npz"
    for content in (
        npy("(1000000000000,)"),
        npy("(3,)") + bytes(8),
        npy("()", "|O"),
        npy("[]"),
        b"\x93NUMPY\x09\x00",
        b"",
    ):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", content)
        tracemalloc.start()
        with pytest.raises(UserError, match=r"a\.npz is not readable"):
            read_arrays(path)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
        tracemalloc.stop()
    monkeypatch.setattr(outcomes, "ARRAY_BYTES", 1000)
    np.savez_compressed(path, a=np.zeros(2000))
    with pytest.raises(UserError, match="more arrays, or larger ones"):
        read_arrays(path)
    np.savez_compressed(path, a=np.arange(3), b=np.array(["x", "yy"]))
    assert read_arrays(path)["b"].tolist() == ["x", "yy"]


def test_an_edited_result_is_said_and_counts_as_failed(
    packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_run(tmp_path / "runs", "good", share=0.8)
    path = folder / "result.json"
    value = json.loads(path.read_text())
    value["metrics"]["top1"] = 99.0
    path.write_text(json.dumps(value))
    [found] = read_results(tmp_path / "runs")
    assert (found.status, found.error, dict(found.metrics)) == ("failed", EDITED, {})
    assert f"{path} was edited after it was written" in caplog.text
    del value["checksum"]
    path.write_text(json.dumps(value))
    assert read_result(path).metrics["top1"] == 99.0, "written before there were checksums"


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "[]", "{}", '{"format": 2}', "9" * 10_000, '{"format": []}']
)
def test_damaged_results_are_a_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(UserError, match=r"result\.json"):
        read_result(tmp_path / "result.json")


def test_a_result_without_its_metric_is_not_whole(tmp_path: Path) -> None:
    path = write_run(tmp_path / "runs", "good", share=0.8) / "result.json"
    value = json.loads(path.read_text())
    for change in ({"metrics": {}}, {"weights": {}}, {"metrics": {"top1": float("nan")}}):
        path.write_text(json.dumps({**value, **change, "checksum": ""}))
        with pytest.raises(UserError, match="is not a whole result"):
            read_result(path)


def test_every_run_of_a_bundle_is_where_its_content_says(packed: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    unpack(packed / "b.tar.gz", root)
    assert run(root).is_dir()
    assert run(root, "bad").is_dir()
    assert run(root, benchmark="in-ft-hpm").is_dir()
