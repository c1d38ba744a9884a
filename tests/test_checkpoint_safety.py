"""Untrusted files: nothing in them runs, and each fault has its own clear error."""

import argparse
import gzip
import io
import json
import os
import pathlib
import pickle
import re
import struct
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mimbench.checkpoints.files import read_checkpoint, read_vit
from mimbench.checkpoints.reading.plausibility import doubts
from mimbench.networks.levels import LevelSpec, random_levels
from mimbench.system.errors import UserError
from mimbench.vit.weights import VitWeights
from tests.support.checkpoint_layouts import LAYOUTS, TINY, canonical, prefixed


def read(path: Path, **options: Any) -> VitWeights:
    return read_vit(path, num_heads=3, **options)


class Runs:
    """Creates a file when it is unpickled the unsafe way."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.flag}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["top", "args", "tensor"])
def test_code_in_a_pickle_never_runs(zipped: bool, where: str, tmp_path: Path) -> None:
    flag = tmp_path / "ran"
    state: dict[str, Any] = {"model": canonical(TINY), "args": argparse.Namespace(lr=1)}
    if where == "top":
        state["hook"] = Runs(flag)
    elif where == "args":
        state["args"].hook = Runs(flag)
    else:
        state["model"]["norm.weight"] = Runs(flag)
    path = tmp_path / "evil.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"evil\.pth: refused: .*(posix|os|nt)\.system") as error:
        read(path)
    assert "weights_only=False" in str(error.value)
    assert not flag.exists()


def test_raw_opcodes_that_call_are_refused(tmp_path: Path) -> None:
    flag = tmp_path / "ran"
    path = tmp_path / "evil.pth"
    code = b"\x80\x02cos\nsystem\nU" + bytes([len(f"touch {flag}")]) + f"touch {flag}".encode()
    path.write_bytes(code + b"\x85R.")
    with pytest.raises(UserError, match=r"evil\.pth"):
        read(path)
    assert not flag.exists()


def test_a_whole_module_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "module.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(
        UserError, match=r"would need 'torch\.nn\.modules\.linear\.Linear'.*import torch"
    ):
        read(path)


def test_torchscript_is_refused_with_its_own_advice(tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)
    with pytest.raises(UserError, match=r"(?s)clip\.pt: refused\. It is a TorchScript.*jit\.load"):
        read(path)


def fake_module(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    for i in range(1, name.count(".") + 2):
        part = ".".join(name.split(".")[:i])
        if part not in sys.modules:
            monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    for key, value in content.items():
        value.__module__, value.__qualname__ = name, key
        monkeypatch.setattr(sys.modules[name], key, value, raising=False)


def test_yacs_settings_and_mmengine_histories_are_inert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = type("CfgNode", (dict,), {})
    history = type("HistoryBuffer", (), {})
    fake_module(monkeypatch, "yacs.config", CfgNode=settings)
    fake_module(monkeypatch, "mmengine.logging.history_buffer", HistoryBuffer=history)
    config = settings(A=settings(B=1))
    vars(config)["frozen"] = True
    buffer = history()
    vars(buffer)["values"] = np.arange(3.0)
    top = {"model": canonical(TINY), "config": config, "message_hub": {"loss": buffer}}
    path = tmp_path / "simmim.pth"
    torch.save(top, path)
    reading = read_checkpoint(path, num_heads=3)
    assert reading.faults == ()
    assert dict(reading.raw.top["config"]["A"]) == {"B": 1}


def test_plain_numpy_values_paths_and_namespaces_are_data(tmp_path: Path) -> None:
    args = argparse.Namespace(out=pathlib.PosixPath("/a/b"), lr=np.float64(0.5))
    top = {"model": canonical(TINY), "args": args, "best": np.float32(1.5), "n": np.int64(3)}
    path = tmp_path / "own.pth"
    torch.save(top, path)
    raw = read_checkpoint(path, num_heads=3).raw
    assert raw.top["args"] == {"out": "//a/b", "lr": 0.5}
    assert (raw.top["best"], raw.top["n"]) == (1.5, 3)


def test_numpy_arrays_stand_for_tensors(tmp_path: Path) -> None:
    arrays = {n: t.numpy() for n, t in canonical(TINY).items()}
    path = tmp_path / "zoo.pth"
    torch.save({"model": arrays, "__author__": "x"}, path)
    weights = read(path)
    assert all(torch.equal(t, canonical(TINY)[n]) for n, t in weights.tensors.items())


def test_numpy_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "objects.pth"
    torch.save({"model": canonical(TINY), "x": np.array([{}, None], dtype=object)}, path)
    with pytest.raises(UserError, match=r"objects\.pth: .*kind 'O8'"):
        read(path)


def test_old_torch_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"model": canonical(TINY)}, path, _use_new_zipfile_serialization=False)
    assert all(torch.equal(t, canonical(TINY)[n]) for n, t in read(path).tensors.items())


def bytes_of(suffix: str, tmp_path: Path) -> bytes:
    path = tmp_path / f"whole{suffix}"
    if suffix == ".safetensors":
        save_file(canonical(TINY), path)
    else:
        torch.save(
            {"model": canonical(TINY)}, path, _use_new_zipfile_serialization=suffix == ".pth"
        )
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".pth", ".old", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99, 0.9999])
def test_truncated_files(suffix: str, share: float, tmp_path: Path) -> None:
    whole = bytes_of(suffix, tmp_path)
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=rf"cut\{suffix}: .*(empty|truncated|damaged|too short)"):
        read(path)


def tar_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


def npz_bytes() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(2))
    return buffer.getvalue()


MISTAKES = {
    "a web page": (b"<!DOCTYPE html><html>Sign in</html>", "a web page.*login"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "gzip": (gzip.compress(b"x" * 99), "gzip: unpack"),
    "tar": (tar_bytes(), "tar archive: unpack"),
    "npz": (npz_bytes(), r"a zip archive, but not torch's"),
    "text": (b"hello world, no checkpoint", "neither a torch file nor safetensors"),
    "a plain pickle": (
        pickle.dumps({"model": [1, 2]}, protocol=2),
        ".*plain pickle.*torch.save",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_other_kinds_of_file(kind: str, tmp_path: Path) -> None:
    content, reason = MISTAKES[kind]
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"(?s)file\.pth: .*{reason}"):
        read(path)


def test_a_compressed_archive_is_taken_for_a_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data/0", b"\0" * 50_000_000)
        archive.writestr("bomb/data.pkl", b"\x80\x02}.")
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"bomb\.pth: .*promise 50,000,000.*zip bomb"):
        read(path)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "views.pth"
    torch.save({"model": {**canonical(TINY), "x": torch.zeros(1).expand(10**12)}}, path)
    with pytest.raises(UserError, match=r"views\.pth: .*promises 4,000,000,000,000 bytes"):
        read(path)


def test_a_flipped_bit_in_the_weights_is_found(tmp_path: Path) -> None:
    content = bytearray(bytes_of(".pth", tmp_path))
    content[len(content) // 2] ^= 1
    path = tmp_path / "flipped.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"flipped\.pth: damaged: .*checksum"):
        read(path)


def test_archives_without_checksums_are_read(tmp_path: Path) -> None:
    path = tmp_path / "nosums.pth"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": canonical(TINY)}, path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert read(path).format == "mae"


HEADERS = {
    "overlap": ([[0, 8], [4, 12]], "overlaps another"),
    "gap": ([[0, 8], [12, 20]], "leaves a gap"),
    "outside": ([[0, 8], [8, 1_000_008]], "needs 8 bytes, the header gives it 1,000,000"),
    "negative": ([[0, 8], [8, -16]], "is damaged: sizes"),
    "short": ([[0, 8], [8, 16]], "truncated: tensors need 16 bytes, 12 are there"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_safetensors_headers_that_lie(kind: str, tmp_path: Path) -> None:
    spans, reason = HEADERS[kind]
    entries = {
        f"t{i}": {"dtype": "F32", "shape": [2], "data_offsets": span}
        for i, span in enumerate(spans)
    }
    text = json.dumps(entries).encode()
    path = tmp_path / "lies.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 12)
    with pytest.raises(UserError, match=rf"lies\.safetensors: .*{reason}"):
        read(path)


def test_a_header_as_large_as_the_sky(tmp_path: Path) -> None:
    path = tmp_path / "sky.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(UserError, match=r"sky\.safetensors: the header claims"):
        read(path)


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    state: dict[str, Any] = canonical(TINY)
    change(state)
    path = tmp_path / "changed.pth"
    torch.save({"model": state}, path)
    return path


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "nan": (lambda s: s["blocks.1.mlp.fc1.weight"][0].fill_(float("nan")),
            r"blocks\.1\.mlp\.fc1\.weight holds NaN or infinite"),
    "infinite": (lambda s: s["norm.bias"].__setitem__(3, float("inf")), "norm.bias holds NaN or inf"),
    "integers": (lambda s: s.update({"norm.bias": torch.ones(48, dtype=torch.int64)}),
                 "norm.bias is int64, expected floating point"),
    "no tensor": (lambda s: s.update({"norm.bias": [1.0] * 48}), "'norm.bias' is a list, expected"),
    "missing": (lambda s: s.pop("blocks.2.norm1.weight"), r"missing blocks\.2\.norm1\.weight"),
    "missing end": (lambda s: [s.pop(n) for n in list(s) if n.startswith("blocks.1.")],
                    r"missing blocks\.1\.norm1\.weight"),
    "extra": (lambda s: s.update({"adapter.weight": torch.ones(2)}), "unexpected adapter.weight"),
    "shape": (lambda s: s.update({"norm.bias": torch.ones(47)}), r"norm\.bias has shape \(47,\)"),
    "table": (lambda s: s.update({"pos_embed": torch.ones(1, 19, 48)}), "pos_embed has 19 rows"),
    "kernel": (lambda s: s.update({"patch_embed.proj.weight": torch.ones(48, 1, 16, 16)}),
               "only square patches of three-channel"),
    "half-renamed": (lambda s: s.update({n.replace("blocks.2.", "encoder.layer.2."): s.pop(n)
                                         for n in list(s) if n.startswith("blocks.2.")}),
                     r"unexpected encoder\.layer\.2\.norm1"),
    "mixed": (lambda s: s.update({"scorer_pred.main.0.weight": torch.ones(2),
                                  "decoder_pred_losspred.weight": torch.ones(2)}),
              "formats automae and hpm both claim"),
    "renamed": (lambda s: s.update({f"x.{n}": s.pop(n) for n in list(s)}),
                r"no known format; looked for .*first tensors are x\.blocks"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_in_the_tensors(kind: str, tmp_path: Path) -> None:
    change, reason = FAULTS[kind]
    with pytest.raises(UserError, match=rf"(?s)changed\.pth.*{reason}"):
        read(changed(tmp_path, change))


DOUBTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "norms exchanged": (lambda s: s.update({"norm.weight": s["norm.bias"], "norm.bias": s["norm.weight"]}),
                        "norm.weight lies around zero as a bias does"),
    "rows shuffled": (lambda s: s.update({"pos_embed": s["pos_embed"].flip(1)}),
                      "not the fixed sine-cosine table"),
    "block copied": (lambda s: s.update({n.replace("blocks.0.", "blocks.2."): s[n] for n in list(s)
                                         if n.startswith("blocks.0.")}), "blocks 0 and 2 hold the same"),
    "constant": (lambda s: s["blocks.0.attn.proj.weight"].fill_(0.5), "every value of .* is 0.5"),
    "enormous": (lambda s: s["blocks.0.attn.proj.weight"].mul_(1e6), "proj.weight reaches"),
    "untrained": (lambda s: [s[n].zero_() for n in s if n.endswith("bias")], "weights look untrained"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DOUBTS)
def test_doubts_about_values(kind: str) -> None:
    tensors = canonical(TINY)
    assert doubts(TINY, tensors, "mae") == []
    change, reason = DOUBTS[kind]
    change(tensors)
    found = doubts(TINY, tensors, "mae")
    assert any(re.search(reason, doubt) for doubt in found), found


def test_shuffled_learned_positions_are_doubted() -> None:
    tensors = canonical(TINY)
    assert doubts(TINY, tensors, "dino") == []
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.randn(1, 48, 2, 2, generator=generator), (4, 4), mode="bilinear"
    )
    rows = smooth.flatten(2).transpose(1, 2)
    tensors["pos_embed"] = torch.cat([rows[:, :1], rows], 1)
    assert doubts(TINY, tensors, "dino") == []
    order = torch.randperm(16, generator=generator)
    tensors["pos_embed"] = torch.cat([rows[:, :1], rows[:, order]], 1)
    assert "shuffled or untrained" in doubts(TINY, tensors, "dino")[0]


def test_which_and_heads_that_contradict_our_own_file(tmp_path: Path) -> None:
    from mimbench.checkpoints.files import write_weights

    path = tmp_path / "ours.safetensors"
    write_weights(path, read(LAYOUTS["hpm"].save(TINY, tmp_path), which="ema"))
    with pytest.raises(UserError, match="the file says 3 heads, --num-heads 6 differs"):
        read_vit(path, num_heads=6)
    with pytest.raises(UserError, match=r"holds one network \('ema'\), not 'student'"):
        read_vit(path, which="student")


def test_a_swin_and_a_convolutional_stem_are_no_plain_vits(tmp_path: Path) -> None:
    swin = {"encoder.mask_token": torch.ones(1), "encoder.layers.0.w": torch.ones(1)}
    torch.save({"model": swin}, tmp_path / "swin.pth")
    with pytest.raises(UserError, match=r"swin\.pth: no known format"):
        read(tmp_path / "swin.pth")
    whole = random_levels(LevelSpec(architecture="resnet18", options={"channels": [8] * 4}), 0)
    torch.save(dict(whole.tensors), tmp_path / "resnet.pth")
    with pytest.raises(UserError, match="resnet: this works on plain ViTs, and this is ResNet-18"):
        read(tmp_path / "resnet.pth")
    stem = prefixed({"patch_embed.proj.0.weight": torch.ones(1)}, "module.base_encoder.")
    torch.save({"state_dict": stem}, tmp_path / "conv.pth")
    with pytest.raises(UserError, match="stack of convolutions"):
        read(tmp_path / "conv.pth")


def test_trained_relative_positions_of_a_detector_are_refused(tmp_path: Path) -> None:
    top = LAYOUTS["vitdet"].write(canonical(LAYOUTS["vitdet"].spec(TINY)))
    top["model"]["backbone.net.blocks.0.attn.rel_pos_h"] = torch.zeros(7, 16)
    torch.save(top, tmp_path / "det.pth")
    assert read(tmp_path / "det.pth").extras["relative positions (all zero)"] == 1
    top["model"]["backbone.net.blocks.0.attn.rel_pos_h"][0, 0] = 1.0
    torch.save(top, tmp_path / "det.pth")
    with pytest.raises(UserError, match="trained relative position tables"):
        read(tmp_path / "det.pth")


def test_other_rotary_periods_are_refused(tmp_path: Path) -> None:
    top = LAYOUTS["dinov3"].write(canonical(LAYOUTS["dinov3"].spec(TINY)))
    top["rope_embed.periods"] = top["rope_embed.periods"] * 2
    torch.save(top, tmp_path / "rope.pth")
    with pytest.raises(UserError, match=r"rope_embed\.periods are not those of base 100"):
        read(tmp_path / "rope.pth")
