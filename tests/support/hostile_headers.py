"""Hostile headers and configurations: safetensors, our own files, Hugging Face folders."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from mimbench.checkpoints.files import write_weights
from mimbench.checkpoints.formats import native
from mimbench.vit.weights import VitWeights
from tests.support.checkpoint_layouts import LAYOUTS, TINY, canonical
from tests.support.hostile_case import ODD, SPACES, Case, of_bytes


def headers() -> Iterator[Case]:
    def file(text: bytes, data: bytes = bytes(8)) -> bytes:
        return struct.pack("<Q", len(text)) + text + data

    good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for key in good:
        for value in ODD:
            entry = {"t": {**good, key: value}}
            yield of_bytes("header", file(json.dumps(entry).encode()), "f.safetensors")
    for value in ODD:
        for entry in (
            {"t": value},
            {"__metadata__": value},
            {"__metadata__": {"a": value}, "t": good},
        ):
            yield of_bytes("header", file(json.dumps(entry).encode()), "f.safetensors")
    texts = {
        "deep": b'{"a":' * 100_000, "deep list": b'{"a":' + b"[" * 500_000, "open": b"{", "list": b"[]",
        "twice": b'{"a":1,"a":2}', "big number": b'{"a":' + b"9" * 100_000 + b"}", "nan": b'{"a":NaN}',
        "bom": b"\xef\xbb\xbf{}", "latin": b'{"\xe9":1}', "surrogate": b'{"\\ud800":1}', "nothing": b"{}",
        "wide": b"{" + b",".join(b'"%d":0' % i for i in range(400_000)) + b"}",
        "objects": b'{"a":[' + b"{}," * 2_000_000 + b"{}]}",
    }  # fmt: skip
    for kind, content in texts.items():
        yield of_bytes(f"header {kind}", file(content), "f.safetensors")
    empties = {
        f"n{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)
    }
    yield of_bytes("header of empties", file(json.dumps(empties).encode(), b""), "f.safetensors")
    long = {"blocks.0." + "x" * (1 << 20): good}
    yield of_bytes("header megabyte name", file(json.dumps(long).encode()), "f.safetensors")
    for kind in (
        "F8_E4M3",
        "F8_E8M0",
        "F4",
        "C64",
        "BOOL",
        "U8",
        "U16",
        "I64",
        "F16",
        "BF16",
        "F64",
    ):
        size = {"F16": 2, "BF16": 2, "U16": 2, "I64": 8, "C64": 8, "F64": 8}.get(kind, 1)
        entry = {
            "blocks.0.norm1.weight": {"dtype": kind, "shape": [8 // size], "data_offsets": [0, 8]}
        }
        yield of_bytes("header dtype", file(json.dumps(entry).encode()), "f.safetensors")


def own_headers() -> Iterator[Case]:
    tensors = canonical(TINY)
    spec = TINY.to_json()
    base = {"version": 1, "spec": spec, "source_format": "x", "source_digest": "0" * 64,
            "which": "", "notes": []}  # fmt: skip

    def own(header: Any) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            path = folder / "f.safetensors"
            save_file(tensors, path, metadata={native.KEY: json.dumps(header)})
            return path

        return write

    def summed(header: dict[str, Any]) -> dict[str, Any]:
        return {**header, "checksum": native.checksum(header, tensors)}

    for value in ODD:
        yield Case("own header", own(value))
        for key in base:
            yield Case(
                f"own header {key}",
                own(summed({**base, key: value})),
                key in ("source_format", "source_digest", "notes", "which"),
            )
        for key in spec:
            yield Case(
                f"own header spec {key}",
                own(summed({**base, "spec": {**spec, key: value}})),
                spec[key] == value,
            )
        yield Case("own header checksum", own({**base, "checksum": value}))
    yield Case("own header depth", own(summed({**base, "spec": {**spec, "depth": 10**9}})))

    def mapped(folder: Path) -> Path:
        weights = VitWeights(
            spec=TINY, tensors=tensors, format=SPACES, digest="0" * 64, notes=(SPACES,)
        )
        write_weights(folder / "f.safetensors", weights)
        return folder / "f.safetensors"

    yield Case("own header control characters", mapped, harmless=True)


def folder_of(layout: str, files: dict[str, Any]) -> Callable[[Path], Path]:
    """Return what writes a Hugging Face folder with these files beside its weights."""

    def write(folder: Path) -> Path:
        path = folder / "folder"
        path.mkdir()
        if layout:
            LAYOUTS[layout].save(TINY, path)
        for name, value in files.items():
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            (path / name).write_bytes(content)
        return path

    return write


CONFIG = {"hidden_size": 48, "num_attention_heads": 3, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
          "image_size": 64, "patch_size": 16}  # fmt: skip
PROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
BYTES = (b"[" * 500_000, b"9" * 100_000, b"\xff\xfe", b"", b'{"a":' * 100_000, b" " * (20 << 20))


def folders() -> Iterator[Case]:
    """Yield folders whose settings are odd, or lead elsewhere."""
    for layout in ("hf-vit", "hf-dinov2", "hf-dinov3"):
        for files in odd_settings():
            yield Case(f"{layout} settings", folder_of(layout, files), True, layout)
    for value in ODD:
        timm = [{"architecture": "vit", key: value} for key in ("architecture", "pretrained_cfg")]
        for key in ("mean", "std"):
            said = {"mean": [0.5] * 3, "std": [0.5] * 3, key: value}
            timm.append({"architecture": "vit", "pretrained_cfg": said})
        for config in timm:
            write = folder_of("timm-safetensors", {"config.json": config})
            yield Case("timm settings", write, True, "timm-safetensors")
    for content in BYTES:
        yield Case("config bytes", folder_of("hf-vit", {"config.json": content}))
    outside = [{"a": name} for name in ("../../etc/passwd", "/etc/passwd", "x" * 5000, "\0")]
    for value in [*ODD, *outside]:
        yield Case("index", folder_of("", {"model.safetensors.index.json": {"weight_map": value}}))


def odd_settings() -> Iterator[dict[str, Any]]:
    """Yield the settings of a folder with one odd value each."""
    for value in ODD:
        for key in CONFIG:
            yield {"config.json": {**CONFIG, key: value}}
        for key in PROCESSOR:
            yield {"config.json": CONFIG, "preprocessor_config.json": {**PROCESSOR, key: value}}
        yield {"config.json": value}
        yield {"config.json": {"vision_config": value}}
