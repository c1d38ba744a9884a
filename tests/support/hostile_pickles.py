"""Torch files written by hand: any opcodes under any names, with sums that are right."""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def zip_file(path: Path, entries: Mapping[str, bytes]) -> None:
    """Write a stored archive as torch does."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(f"archive/{name}", content)


def torch_file(path: Path, pickled: bytes, data: Mapping[str, bytes] | None = None) -> Path:
    """Write a torch file with this pickle."""
    parts = {f"data/{key}": content for key, content in (data or {}).items()}
    zip_file(path, {"data.pkl": pickled, "byteorder": b"little", **parts, "version": b"3\n"})
    return path


def legacy_file(path: Path, pickled: bytes, keys: bytes = b"\x80\x02].") -> Path:
    """Write a file as torch did before 1.6."""
    start = b"".join(pickle.dumps(v, 2) for v in (MAGIC, PROTOCOL, {"little_endian": True}))
    path.write_bytes(start + pickled + keys)
    return path


def text(value: str | bytes) -> bytes:
    content = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(content)) + content


def name(full: str) -> bytes:
    module, _, last = full.rpartition(".")
    return b"c" + module.encode() + b"\n" + last.encode() + b"\n"


def integer(value: int, size: int) -> bytes:
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def small(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def storage(kind: bytes, count: bytes, key: str = "0") -> bytes:
    return b"(" + text("storage") + kind + text(key) + text("cpu") + count + b"tQ"


def tensor(
    *, kind: str = "torch.FloatStorage", count: bytes = b"K\x04", offset: bytes = b"K\x00",
    size: bytes = b"K\x04\x85", stride: bytes = b"K\x01\x85",
    rest: bytes = b"\x89" + name("collections.OrderedDict") + b")R",
    rebuild: str = "torch._utils._rebuild_tensor_v2", key: str = "0",
) -> bytes:  # fmt: skip
    """Return the opcodes of one tensor of four values."""
    return (
        name(rebuild)
        + b"("
        + storage(name(kind), count, key)
        + offset
        + size
        + stride
        + rest
        + b"tR"
    )


def state(*items: bytes) -> bytes:
    """Return a whole pickle: {"model": {items}}."""
    return b"\x80\x02}" + text("model") + b"}(" + b"".join(items) + b"us."


FOUR = {"0": struct.pack("<4f", 1, 2, 3, 4), "none": b""}


def call(function: str, *arguments: bytes) -> bytes:
    return name(function) + b"(" + b"".join(arguments) + b"tR"


def doubled(seed: bytes, step: Callable[[bytes], bytes], times: int = 60) -> bytes:
    """Return opcodes that join a value with itself again and again, and a tuple of all of them."""
    out = b"(" + seed + b"q\x01"
    for _ in range(times):
        out += step(b"h\x01h\x01") + b"q\x01"
    return out + b"t"


def bombs() -> dict[str, bytes]:
    """Return pickles that cost far more than they weigh."""
    path = name("pathlib.PosixPath")
    dtype = name("numpy.dtype")
    weight = text("blocks.0.norm1.weight")
    return {
        "nested-path": state(text("p") + doubled(text("ab"), lambda two: path + b"(" + two + b"tR")),
        "nested-dtype": state(text("d") + doubled(text("f4"), lambda two: dtype + b"(" + two + b"tR")),
        "nested-tuple-key": state(doubled(b"K\x01", lambda two: two + b"\x86") + b"K\x01"),
        "nested-tuple-value": state(text("t") + doubled(b"K\x01", lambda two: two + b"\x86")),
        "nested-kind": state(text("d") + dtype + b"(" + doubled(text("f4"), lambda two: two + b"\x86") + b"tR"),
        "nested-list": state(text("l") + b"]" * 200_000 + b"a" * 199_999),
        "nested-dict": state(text("l") + (b"}" + text("a")) * 200_000 + b"}" + b"s" * 200_000),
        "set-of-tuples": state(text("s") + b"\x8f(" + doubled(b"K\x01", lambda two: two + b"\x86") + b"\x90"),
        "colliding-keys": b"\x80\x02}(" + b"".join(integer(i * (2**61 - 1), 16) + b"K\x01" for i in range(60_000)) + b"u.",
        "colliding-tuples": b"\x80\x02}(" + b"".join(integer(i * (2**61 - 1), 16) + b"\x85K\x01" for i in range(60_000)) + b"u.",
        "wide-dict": b"\x80\x02}(" + b"".join(text(f"k{i}") + b"}" for i in range(300_000)) + b"u.",
        "same-dict-often": b"\x80\x02}(" + text("k") + b"}q\x05(" + b"".join(text(f"n{i}") + tensor() for i in range(3000)) + b"u" + b"".join(text(f"k{i}") + b"h\x05" for i in range(30_000)) + b"u.",
        "empties": state(*(text(f"n{i}") + tensor(count=b"K\x00", size=b"K\x00\x85", key="none") for i in range(60_000))),
        "views": state(*(text(f"blocks.{i}.norm1.weight") + tensor(offset=b"K" + bytes([i % 4]), size=b"K\x01\x85") for i in range(25_000))),
        "megabyte-name": state(text("blocks.0." + "a" * (1 << 20)) + tensor(), weight + tensor()),
        "megabyte-prefixes": state(text("module." * 150_000 + "x") + tensor()),
        "depth": state(text("blocks.1000000000.norm1.weight") + tensor(), weight + tensor()),
        "depth-999": state(text("blocks.999.norm1.weight") + tensor(), weight + tensor()),
        "long-integer": state(text("n") + b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20)),
        "integer-255": state(text("n") + b"\x8a\xff" + b"\x7f" * 255),
        "uninitialised": state(weight + call("torch.Tensor", b"K\x30")),
        "uninitialised-gigabyte": state(weight + call("torch.FloatTensor", small(10**9))),
        "storage-called": state(weight + call("torch.FloatStorage", small(10**9))),
        "zeros-called": state(weight + call("torch.zeros", small(10**9))),
        "missing-storage": state(weight + tensor(count=small(2_000_000_000))),
        "expanded": state(weight + tensor(size=small(10**9) + b"\x85", stride=b"K\x00\x85")),
        "endless-memo": state(text("m") + b"]q\x00h\x00a"),
        "unset-memo": state(text("m") + b"h\x63"),
        "no-values": b"\x80\x02.",
        "only-marks": b"\x80\x02" + b"(" * 400_000 + b".",
        "self-mapping": b"\x80\x02}q\x00" + text("model") + b"h\x00s.",
        "empty-array": state(weight + call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), b"K\x00\x85", text("b"))),
        "array-huge": state(weight + call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), b"K\x00\x85", text("b")) + b"(K\x01" + integer(10**15, 8) + b"\x85" + call("numpy.dtype", text("f4")) + b"\x89" + b"C\x04abcd" + b"tb"),
        "array-wide-text": state(weight + call("numpy.core.multiarray.scalar", call("numpy.dtype", text("U99999")), b"C\x04abcd")),
        "encode-bomb": state(text("e") + call("_codecs.encode", text("x"), text("zlib"))),
    }  # fmt: skip


SOUP = [
    b"\x80\x02", b"(", b".", b"0", b"1", b"2", b"F1.5\n", b"I7\n", b"J\x01\0\0\0", b"K\x01", b"L9L\n",
    b"M\x01\0", b"N", b"P1\n", b"Q", b"R", b"S'a'\n", b"T\x01\0\0\0a", b"U\x01a", b"Vabc\n",
    text("model"), b"a", b"b", name("os.system"), name("builtins.eval"), name("torch.load"),
    name("collections.OrderedDict"), name("torch._utils._rebuild_tensor_v2"), name("argparse.Namespace"),
    name("torch._utils._rebuild_meta_tensor_no_storage"), name("numpy.dtype"), name("builtins.getattr"),
    name("torch._tensor._rebuild_from_type_v2"), name("torch.nn.parameter.Parameter"), name("torch.Tensor"),
    b"d", b"}", b"e", b"g0\n", b"h\x00", b"i os\nsystem\n", b"j\0\0\0\0", b"l", b"]", b"o", b"p0\n",
    b"q\x00", b"r\0\0\0\0", b"s", b"t", b")", b"u", b"G" + struct.pack(">d", 0.5), b"\x81", b"\x82\x01",
    b"\x83\x01\0", b"\x84\x01\0\0\0", b"\x85", b"\x86", b"\x87", b"\x88", b"\x89", b"\x8a\x01\x05",
    b"\x8b\x01\0\0\0\x05", b"B\x01\0\0\0a", b"C\x01a", b"\x8c\x01a", b"\x8e\x01\0\0\0\0\0\0\0a", b"\x8f",
    b"\x90", b"\x91", b"\x92", b"\x93", b"\x94", b"\x95\x01\0\0\0\0\0\0\0", b"\x96\x01\0\0\0\0\0\0\0a",
    b"\x97", b"\x98", tensor(), storage(name("torch.FloatStorage"), b"K\x04"), b"\xff", b"\0",
]  # fmt: skip
"""Every opcode with an argument, and names that call or rebuild."""


def odd_tensors(weight: torch.Tensor) -> dict[str, Any]:
    """Return what torch may save where a network's weight should be; some have the same values."""
    shadowed = weight.clone()
    shadowed.dim = 3  # type: ignore[method-assign, assignment]
    parameter = torch.nn.Parameter(weight)
    parameter.shape_of = "x"  # type: ignore[attr-defined]
    kinds = ("float16", "float64", "bfloat16", "int64", "int8", "uint8", "bool", "complex64", "uint16",
             "float8_e4m3fn", "float8_e5m2", "complex128", "int32")  # fmt: skip
    quantised = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    flat = torch.stack([weight.flatten(), -weight.flatten()], 1).flatten()
    steps = tuple(2 * step for step in weight.stride())
    return {
        **{f"dtype-{kind}": weight.to(getattr(torch, kind)) for kind in kinds},
        "meta": torch.empty(48, device="meta"),
        "zero-dim": torch.tensor(1.0),
        "empty": torch.empty(0),
        "many-dims": torch.ones((1,) * 12),
        "no-rows": torch.empty(0, 48),
        "sparse": torch.eye(48).to_sparse(),
        "quantised": quantised,
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "conjugated": weight.to(torch.complex64).conj(),
        "negated": torch._neg_view(weight),  # pyright: ignore[reportPrivateImportUsage]
        "expanded": torch.ones(1).expand(weight.shape),
        "every-second": flat.as_strided(weight.shape, steps),
        "turned": weight.mT.contiguous().mT if weight.dim() > 1 else weight,
        "shadowed": shadowed,
        "parameter": parameter,
        "none": None,
        "text": "weights",
        "list": [1.0] * 48,
        "number": 10**9,
        "nan": weight * float("nan"),
        "beyond-float32": weight.double() * 1e300,
        "storage": weight.untyped_storage(),
        "size": weight.shape,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "generator": torch.Generator().get_state(),
        "mapping": {"a": weight},
    }


def saved(value: Any, *, zipped: bool = True) -> bytes | None:
    """Return what torch saves, or None for what it cannot save."""
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    except (RuntimeError, NotImplementedError, TypeError, AttributeError, KeyError):
        return None
    return buffer.getvalue()
