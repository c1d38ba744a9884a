"""Hostile torch files and file names: changed bytes, odd tensors, zip archives, pipes and holes."""

import io
import os
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.support import hostile_pickles as raw
from tests.support.checkpoint_layouts import LAYOUTS, TINY, canonical
from tests.support.hostile_case import SPACES, Case, of_bytes

ENDS = ("norm.weight", "ln1.weight", "ln_post.weight", "cls_token", "class_embedding", "pos_embed",
        "patch_embed.proj.weight", "periods", "bias_table", "0.gamma_1", "q_bias", "bias_mask")  # fmt: skip


def odd_tensors() -> Iterator[Case]:
    for layout in (
        "mae-training",
        "dinov2",
        "beit-finetuned",
        "openai-clip",
        "mmpretrain",
        "dinov3",
        "vitdet",
    ):
        whole = LAYOUTS[layout].write(canonical(LAYOUTS[layout].spec(TINY)))
        body = next((whole[k] for k in ("state_dict", "model", "teacher") if k in whole), whole)
        for name in [n for n in body if n.endswith(ENDS)][:6]:
            for kind, value in raw.odd_tensors(body[name]).items():
                changed = {**body, name: value}
                top = {k: changed if v is body else v for k, v in whole.items()}
                content = raw.saved(changed if whole is body else top)
                if content is not None:
                    yield of_bytes(f"{layout} {name} {kind}", content, harmless=True, layout=layout)


def flipped(rng: random.Random, count: int) -> Iterator[Case]:
    tensors = canonical(TINY)
    whole = raw.saved({"model": tensors})
    assert whole is not None
    directory = whole.rindex(b"PK\x01\x02", 0, whole.index(b"PK\x01\x02") + 4)
    for number in range(count):
        tail = number % 2 == 0
        at = rng.randrange(directory if tail else 0, len(whole))
        content = bytearray(whole)
        content[at] ^= 1 << rng.randrange(8)
        yield of_bytes("tail" if tail else "flip", bytes(content), harmless=True)
    for _ in range(count // 4):
        content = bytearray(raw.saved({"model": tensors}, zipped=False) or b"")
        content[rng.randrange(600)] ^= 1 << rng.randrange(8)
        yield of_bytes("flip, old", bytes(content), harmless=True)


def zips() -> Iterator[Case]:
    def rezipped(change: Callable[[dict[str, bytes]], dict[str, bytes]], how: int) -> bytes:
        buffer = io.BytesIO(raw.saved({"model": canonical(TINY)}) or b"")
        with zipfile.ZipFile(buffer) as archive:
            entries = {n: archive.read(n) for n in archive.namelist()}
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", how) as archive:
            for name, content in change(entries).items():
                archive.writestr(name, content)
        return out.getvalue()

    stored, packed = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
    yield of_bytes("zip compressed", rezipped(dict, packed))
    yield of_bytes("zip repacked", rezipped(dict, stored), harmless=True)
    drop = ("data/3", "data.pkl", "byteorder", "version")
    for name in drop:
        yield of_bytes(
            f"zip without {name}",
            rezipped(lambda e, n=name: {k: v for k, v in e.items() if not k.endswith(n)}, stored),
            harmless=name in ("byteorder", "version"),
        )
    big = {f"e{i}": b"" for i in range(120_000)}
    yield of_bytes("zip of many entries", rezipped(lambda e: {**e, **big}, stored))
    swap = {"archive/data/1": "archive/data/2", "archive/data/2": "archive/data/1"}
    yield of_bytes(
        "zip sizes exchanged", rezipped(lambda e: {swap.get(k, k): v for k, v in e.items()}, stored)
    )
    yield of_bytes("zip two pickles", rezipped(lambda e: {**e, "b/data.pkl": b"N."}, stored))
    yield of_bytes("zip big-endian", rezipped(lambda e: {**e, "archive/byteorder": b"big"}, stored))
    whole = rezipped(dict, stored)
    yield of_bytes("zip with a comment", whole[:-2] + b"\x05\0abcde", harmless=True)
    yield of_bytes("zip after bytes", b"x" * 100 + whole)
    yield of_bytes("zip before bytes", whole + b"x" * 100)
    yield of_bytes("zip of nothing", b"PK\x05\x06" + bytes(18))
    end = whole.rindex(b"PK\x05\x06")
    for at in range(4, 20, 2):
        for value in (b"\xff\xff", b"\0\0"):
            yield of_bytes(
                "zip end", whole[: end + at] + value + whole[end + at + 2 :], harmless=True
            )


def names() -> Iterator[Case]:
    def named(name: bytes) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            path = folder / os.fsdecode(name)
            if path.suffix == ".pth":
                return LAYOUTS["mae-encoder"].save(TINY, folder).rename(path)
            save_file(canonical(TINY), folder / "f")
            return (folder / "f").rename(path)

        return write

    for name in (
        b"\xff\xfe.pth",
        b"caf\xe9.pth",
        b"caf\xe9.safetensors",
        SPACES.encode(),
        b"new\nline.pth",
        b"$(touch x).pth",
        b"';x.pth",
    ):
        yield Case("file name", named(name), harmless=True)
    for key in (SPACES, "a\nb", "\ud800", "\x00", "blocks.0.\x1b[31m"):
        for state in (
            {key: torch.ones(2)},
            {**canonical(TINY), key: torch.ones(2)},
            {key: {"a": torch.ones(2)}},
        ):
            yield of_bytes("tensor name", raw.saved({"model": state}) or b"")
            yield of_bytes("entry name", raw.saved({**state, "model": canonical(TINY)}) or b"")


def files() -> Iterator[Case]:
    def pipe(folder: Path) -> Path:
        os.mkfifo(folder / "f.pth")
        return folder / "f.pth"

    def loop(folder: Path) -> Path:
        (folder / "f.pth").symlink_to("f.pth")
        return folder / "f.pth"

    def sparse(folder: Path) -> Path:
        path = folder / "f.pth"
        path.write_bytes(raw.saved({"model": canonical(TINY)}) or b"")
        with path.open("r+b") as file:
            file.truncate(1 << 40)
        return path

    def sparse_entry(folder: Path) -> Path:
        path = folder / "f.pth"
        name, size = b"archive/data.pkl", 1 << 40
        wide = struct.pack("<2H2Q", 1, 16, size, size)
        head = struct.pack(
            "<4s5H3I2H",
            b"PK\x03\x04",
            45,
            0,
            0,
            0,
            0,
            0,
            2**32 - 1,
            2**32 - 1,
            len(name),
            len(wide),
        )
        start = head + name + wide
        entry = struct.pack(
            "<4s6H3I5H2I",
            b"PK\x01\x02",
            45,
            45,
            0,
            0,
            0,
            0,
            0,
            2**32 - 1,
            2**32 - 1,
            len(name),
            len(wide),
            0,
            0,
            0,
            0,
            0,
        )
        entry += name + wide
        at = len(start) + size
        last = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(entry), at)
        last += struct.pack("<4sIQI", b"PK\x06\x07", 0, at + len(entry), 1)
        last += struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), 2**32 - 1, 0)
        with path.open("wb") as file:
            file.write(start)
            file.seek(at)
            file.write(entry + last)
        return path

    for kind, write in (
        ("pipe", pipe),
        ("loop", loop),
        ("sparse", sparse),
        ("sparse entry", sparse_entry),
    ):
        yield Case(f"file {kind}", write)
    yield Case("file device", lambda _: Path("/dev/zero"))
    yield Case("file absent", lambda d: d / "nothing.pth")
    yield Case("file long name", lambda d: d / ("x" * 5000))
