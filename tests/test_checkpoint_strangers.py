"""Files from strangers: an answer in one line, in time and in memory, and never another value."""

import json
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from mimbench.checkpoints.files import read_checkpoint, read_vit
from mimbench.checkpoints.inspection import describe, text
from mimbench.commands.inspect import main as inspect
from mimbench.system.errors import UserError
from mimbench.system.pickles import limits
from tests.support import hostile_pickles as raw
from tests.support.checkpoint_layouts import LAYOUTS, TINY, canonical
from tests.support.hostile_case import SPACES, Case
from tests.support.hostile_checkpoints import cases
from tests.support.hostile_headers import own_headers
from tests.support.hostile_judge import Judge, fault

REASONS = {
    "nested-path": "a path of", "nested-dtype": "kind 'tuple'|kind 'DType'|that do not fit",
    "nested-tuple-key": "key of type tuple", "nested-tuple-value": "no known format",
    "nested-kind": "kind 'tuple'", "nested-list": "no known format", "nested-dict": "no known format",
    "set-of-tuples": "key of type tuple", "colliding-keys": "neither text nor counts",
    "colliding-tuples": "neither text nor counts", "wide-dict": "entries or more",
    "same-dict-often": "entries or more", "empties": "60,001 names of tensors",
    "views": "25,001 names of tensors", "megabyte-name": r"1,048,585 characters",
    "megabyte-prefixes": r"1,050,001 characters", "depth": "classifier's head alone",
    "depth-999": "classifier's head alone", "long-integer": "opcode 0x8b", "integer-255": "a number of 255 bytes",
    "uninitialised": r"need 'torch\.Tensor'", "uninitialised-gigabyte": r"need 'torch\.FloatTensor'",
    "storage-called": r"need 'torch\.FloatStorage'", "zeros-called": r"need 'torch\.zeros'",
    "missing-storage": "a storage needs 8,000,000,000 bytes", "expanded": "expanded view or bomb",
    "endless-memo": "no known format|holds no network", "unset-memo": "truncated or damaged",
    "no-values": "truncated or damaged", "only-marks": "truncated or damaged",
    "self-mapping": "no known format|holds no network", "empty-array": "array without values",
    "array-huge": "for another shape|impossible", "array-wide-text": "that do not fit|damaged",
    "encode-bomb": "bytes in an unusual encoding",
}  # fmt: skip


def test_every_bomb_has_a_reason() -> None:
    assert REASONS.keys() == raw.bombs().keys()


@pytest.mark.parametrize("kind", REASONS)
def test_bombs_in_pickles_are_refused(kind: str, tmp_path: Path) -> None:
    path = raw.torch_file(tmp_path / "bomb.pth", raw.bombs()[kind], raw.FOUR)
    with pytest.raises(UserError, match=rf"bomb\.pth.*({REASONS[kind]})") as error:
        read_vit(path, num_heads=3)
    assert str(error.value).isprintable()


def test_the_tensor_that_bombs_are_made_of_is_read(tmp_path: Path) -> None:
    path = raw.torch_file(tmp_path / "whole.pth", raw.state(raw.text("x") + raw.tensor()), raw.FOUR)
    with pytest.raises(UserError, match="no known format; .* first tensors are x"):
        read_vit(path)


def test_shadowed_methods_of_a_tensor_do_not_change_it(tmp_path: Path) -> None:
    tensors = canonical(TINY)
    tensors["norm.weight"].dim = 3  # type: ignore[method-assign, assignment]
    torch.save({"model": tensors}, tmp_path / "shadow.pth")
    weights = read_vit(tmp_path / "shadow.pth", num_heads=3)
    assert torch.equal(weights.tensors["norm.weight"], canonical(TINY)["norm.weight"])
    assert weights.tensors["norm.weight"].dim() == 1


@pytest.mark.parametrize("flag", ["negated", "conjugated"])
def test_bits_that_change_values_are_refused(flag: str, tmp_path: Path) -> None:
    value = raw.odd_tensors(canonical(TINY)["norm.weight"])[flag]
    torch.save({"model": {**canonical(TINY), "norm.weight": value}}, tmp_path / "bits.pth")
    with pytest.raises(UserError, match=r"bits\.pth: .*negated or conjugated"):
        read_vit(tmp_path / "bits.pth", num_heads=3)


@pytest.mark.parametrize("kind", ["meta", "sparse", "nested", "quantised"])
def test_tensors_without_plain_values_are_refused(kind: str, tmp_path: Path) -> None:
    value = raw.odd_tensors(canonical(TINY)["norm.weight"])[kind]
    torch.save({"model": {**canonical(TINY), "norm.weight": value}}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"odd\.pth: holds a (sparse|storage of an unknown)"):
        read_vit(tmp_path / "odd.pth", num_heads=3)


def test_a_value_beyond_float32_is_no_infinity(tmp_path: Path) -> None:
    large = canonical(TINY)["norm.weight"].double() * 1e300
    torch.save({"model": {**canonical(TINY), "norm.weight": large}}, tmp_path / "large.pth")
    with pytest.raises(UserError, match=r"norm\.weight holds NaN or infinite .*beyond float32"):
        read_vit(tmp_path / "large.pth", num_heads=3)


def test_no_byte_of_the_tail_changes_what_is_read(tmp_path: Path) -> None:
    """Every second byte of the directory is changed once; sums and names are stored twice."""
    whole = raw.saved({"model": dict(list(canonical(TINY).items())[:4])}) or b""
    (tmp_path / "tail.pth").write_bytes(whole)
    wanted = read_names(tmp_path / "tail.pth")
    refused = 0
    for at in range(whole.index(b"PK\x01\x02"), len(whole)):
        content = bytearray(whole)
        content[at] ^= 1 << (at % 8)
        (tmp_path / "tail.pth").write_bytes(content)
        try:
            assert read_names(tmp_path / "tail.pth") == wanted
        except UserError:
            refused += 1
    assert refused > 200


def read_names(path: Path) -> dict[str, list[float]]:
    from mimbench.checkpoints.reading.archive import read_torch

    top, _ = read_torch(path)
    return {name: tensor.flatten().tolist() for name, tensor in top["model"].items()}


def test_a_changed_stride_is_found_without_checksums(tmp_path: Path) -> None:
    """One byte of an old file gave the same shape with other values; order of dimensions is free."""
    state = canonical(TINY)
    wide = state["pos_embed"].repeat(1, 1, 2)[:, :, :48]
    for value, fine in ((wide, False), (state["pos_embed"].mT.contiguous().mT, True)):
        path = tmp_path / "old.pth"
        torch.save({**state, "pos_embed": value}, path, _use_new_zipfile_serialization=False)
        if fine:
            assert torch.equal(read_vit(path, num_heads=3).tensors["pos_embed"], value)
            continue
        with pytest.raises(UserError, match=r"old\.pth: a tensor with gaps or overlaps"):
            read_vit(path, num_heads=3)


def test_a_file_without_checksums_says_so(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"model": canonical(TINY)}, path, _use_new_zipfile_serialization=False)
    notes = read_vit(path, num_heads=3).notes
    assert any("no checksums" in note for note in notes)
    torch.save({"model": canonical(TINY)}, path)
    assert not any("no checksums" in note for note in read_vit(path, num_heads=3).notes)


def test_a_plain_pickle_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a file was given to an unpickler")

    torch.save({"model": canonical(TINY)}, tmp_path / "whole.pth")
    for module, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "load"),
    ):
        monkeypatch.setattr(module, name, fail)
    assert read_vit(tmp_path / "whole.pth", num_heads=3).format == "mae"


@pytest.mark.parametrize("name", [b"\xff\xfe.pth", b"new\nline.pth", SPACES.encode() + b".pth"])
def test_a_files_own_name_reaches_no_terminal_unescaped(
    name: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import argparse

    path = tmp_path / os.fsdecode(name)
    torch.save({"model": canonical(TINY)}, tmp_path / "whole")
    (tmp_path / "whole").rename(path)
    options = {"which": None, "num_heads": 3, "all": False, "json": False, "registration": None}
    assert inspect(argparse.Namespace(checkpoint=path, **options)) == 0
    path.write_bytes(b"neither")
    assert inspect(argparse.Namespace(checkpoint=path, **options)) == 1
    shown = capsys.readouterr().out
    assert all(line.isprintable() for line in shown.split("\n"))
    with pytest.raises(UserError) as error:
        read_vit(path)
    assert str(error.value).isprintable()


def test_control_characters_of_names_and_notes_are_shown(tmp_path: Path) -> None:
    torch.save({"model": canonical(TINY), SPACES: {"a": torch.ones(2)}}, tmp_path / "name.pth")
    with pytest.raises(UserError, match=r"name\.pth: holds an entry named '\\x1b\[2J") as error:
        read_vit(tmp_path / "name.pth", num_heads=3)
    assert str(error.value).isprintable()
    case = next(c for c in own_headers() if c.kind == "own header control characters")
    path = case.write(tmp_path)
    shown = text(describe(read_checkpoint(path)), limit=20)
    assert all(line.isprintable() for line in shown.split("\n"))


def test_a_shape_that_lost_a_row_is_no_position_table(tmp_path: Path) -> None:
    """One changed byte of an old file without sums: 17 rows read as 16, patches without class token."""
    state = canonical(TINY)
    state["pos_embed"] = state["pos_embed"][:, :16]
    torch.save({"model": state, "mask_token": torch.ones(1)}, tmp_path / "rows.pth")
    with pytest.raises(UserError, match=r"rows\.pth.*pos_embed has 16 rows: not a square grid"):
        read_vit(tmp_path / "rows.pth", num_heads=3)


def test_a_pipe_and_a_hole_are_answered_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(UserError, match=r"pipe\.pth: a device or a pipe"):
        read_vit(tmp_path / "pipe.pth")
    torch.save({"model": canonical(TINY)}, tmp_path / "hole.pth")
    with (tmp_path / "hole.pth").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"hole\.pth: 1,099\.5 GB of it were never written"):
        read_vit(tmp_path / "hole.pth")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("hidden_size", 10**9, "hidden_size is 1000000000, expected a positive whole number"),
        ("num_attention_heads", "3", "num_attention_heads is '3'"),
        ("layer_norm_eps", [1e-6], "layer_norm_eps is a list of 1, expected a number"),
        ("hidden_act", ["gelu"], "activation a list of 1 is not one of"),
        ("image_size", None, ""),
        ("image_size", [10**9, 1], "image_size is a list of 2"),
        ("patch_size", 8, "config.json says patches of 8, the kernel has 16"),
        ("patch_size", 10**400, "patch_size is an enormous number"),
    ],
)
def test_odd_values_in_a_configuration(
    key: str, value: object, reason: str, tmp_path: Path
) -> None:
    LAYOUTS["hf-vit"].save(TINY, tmp_path)
    config = {"hidden_size": 48, "num_attention_heads": 3, "image_size": 64, "patch_size": 16}
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    if not reason:
        assert read_vit(tmp_path).spec.num_heads == 3
        return
    with pytest.raises(UserError, match=f"{tmp_path.name}.*{reason}".replace("[", r"\[")):
        read_vit(tmp_path)


def test_limits_leave_room_for_the_largest_published_networks() -> None:
    """A DINOv3-7B with optimizer and averages: 40 blocks of 18 tensors, five times over."""
    tensors = 40 * 18 * 5
    assert tensors * 10 < limits.TENSORS
    assert tensors * 5 < limits.NAMES
    assert tensors * 60 < limits.OPERATIONS
    assert tensors * 150 < limits.HEADER_BYTES


def judged(chosen: Iterable[Case], folder: Path) -> Counter[str]:
    """Read every file; nothing may be wrong with any answer."""
    outcomes: Counter[str] = Counter()
    wrong = []
    with Judge() as judge:
        for number, case in enumerate(chosen):
            place = folder / str(number)
            place.mkdir()
            path = case.write(place)
            verdict = judge.verdict(path, case.layout)
            if reason := fault(case, path, verdict):
                wrong.append((reason, case.kind, verdict["message"][:200]))
            outcomes[verdict["outcome"]] += 1
            shutil.rmtree(place)
    assert not wrong, f"{len(wrong)} of {sum(outcomes.values())}: {wrong[:10]}"
    return outcomes


def test_a_sample_of_hostile_files(tmp_path: Path) -> None:
    """Every 24th of about 3,500 files, of all kinds but the pickle bombs, which are named above."""
    every = [case for case in cases(1, soups=200, flips=200) if "bomb" not in case.kind]
    outcomes = judged(every[::24], tmp_path)
    assert outcomes["refused"] > 80
    assert outcomes["read"] > 8


@pytest.mark.slow
def test_every_hostile_file(tmp_path: Path) -> None:
    """About 11,000 files; `read` are those whose damage lies outside what the weights mean."""
    outcomes = judged(cases(2, soups=5000, flips=2000), tmp_path)
    assert sum(outcomes.values()) > 10_000
    assert set(outcomes) == {"refused", "read"}
