"""Zip archives as torch writes them: stored entries in their place, listed twice and checked by sums."""

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mimbench.system.errors import UserError, printable
from mimbench.system.pickles import limits

LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
END64, LOCATOR64, DESCRIPTOR = b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08"
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF
COMMENT = 1 << 16
BLOCK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class ZipEntry:
    """A file in the archive."""

    name: str
    start: int
    """First byte of its content in the archive."""
    size: int
    """Bytes that it takes in the archive."""
    promised: int
    """Bytes that it would have unpacked."""
    stored: bool
    sum: int
    """CRC-32 of the content; 0 where torch wrote none."""


def entries(data: memoryview) -> dict[str, ZipEntry]:
    """Return name -> entry of an archive, once its two descriptions of every entry agree.

    No entry lies over another, and no name occurs twice.
    """
    try:
        found = list(_directory(data))
    except struct.error as error:
        raise UserError("truncated or damaged zip archive: its directory breaks off") from error
    out: dict[str, ZipEntry] = {}
    end = 0
    for entry in sorted(found, key=lambda e: e.start):
        where = f"entry '{printable(entry.name[-60:])}'"
        if entry.start < end:
            raise UserError(f"{where} overlaps another; this may be a zip bomb")
        end = entry.start + entry.size
        if end > len(data):
            raise UserError(f"{where} ends beyond the file's {len(data):,} bytes: truncated")
        if entry.name in out:
            raise UserError(f"{where} is there twice: damaged")
        out[entry.name] = entry
    return out


def check_stored(found: Iterable[ZipEntry]) -> None:
    """Refuse compressed or encrypted entries, which torch does not write."""
    for entry in found:
        if not entry.stored:
            raise UserError(
                f"entry '{printable(entry.name[-60:])}' is compressed ({entry.size:,} bytes promise "
                f"{entry.promised:,}); torch never compresses: this may be a zip bomb"
            )


def check_sums(data: memoryview, found: dict[str, ZipEntry]) -> bool:
    """Refuse content without the sum it was written with; return whether there are sums at all."""
    if all(entry.sum == 0 for entry in found.values() if entry.size):
        return False
    for entry in found.values():
        total = 0
        for start in range(entry.start, entry.start + entry.size, BLOCK):
            total = zlib.crc32(data[start : min(start + BLOCK, entry.start + entry.size)], total)
        if total != entry.sum:
            raise UserError(
                f"damaged: entry '{printable(entry.name[-60:])}' does not have the checksum it was "
                "written with; download or copy the file again"
            )
    return True


def _directory(data: memoryview) -> Iterator[ZipEntry]:
    """Yield the entries that the directory at the archive's end lists."""
    at, count, stop = _find(data)
    if count > limits.ENTRIES:
        raise UserError(f"{count:,} entries in a zip archive: no checkpoint")
    for _ in range(count):
        if at + _CENTRAL.size > stop:
            raise UserError("truncated or damaged zip archive: its directory breaks off")
        head = _CENTRAL.unpack_from(data, at)
        signature, _, _, flags, method, _, _, total, packed, size, name_len, extra_len = head[:12]
        if signature != CENTRAL:
            raise UserError("damaged zip archive: its directory has a gap")
        name_at = at + _CENTRAL.size
        name = bytes(data[name_at : name_at + name_len])
        extra = bytes(data[name_at + name_len : name_at + name_len + extra_len])
        size, packed, offset = _large(extra, (size, packed, head[16]))
        at = name_at + name_len + extra_len + head[12]
        if len(name) > limits.NAME_LENGTH or not name.isascii():
            raise UserError("an entry of the zip archive has a name that torch does not write")
        yield ZipEntry(
            name=name.decode("ascii"),
            start=_content(data, offset, name, total, packed),
            size=packed,
            promised=size,
            stored=not method and not flags & 1 and packed == size,
            sum=total,
        )
    if at != stop:
        raise UserError("damaged zip archive: its directory holds more than it counts")


def _find(data: memoryview) -> tuple[int, int, int]:
    """Return the directory's first byte, its number of entries, and its end."""
    tail_at = max(0, len(data) - COMMENT - _END.size)
    tail = bytes(data[tail_at:])
    found = tail.rfind(END)
    if found < 0:
        raise UserError("truncated or damaged zip archive: it has no directory at its end")
    _, disk, disk_of, here, count, size, at, comment = _END.unpack_from(tail, found)
    end_at = tail_at + found
    if end_at + _END.size + comment != len(data) or disk or disk_of or here != count:
        raise UserError("truncated or damaged zip archive: bytes after its directory")
    stop = end_at
    locator = end_at - _LOCATOR64.size
    if locator >= 0 and bytes(data[locator : locator + 4]) == LOCATOR64:
        _, _, stop, _ = _LOCATOR64.unpack_from(data, locator)
        signature, *_, here64, count64, size64, at64 = _END64.unpack_from(data, stop)
        small = ((count, count64, FULL16), (size, size64, FULL32), (at, at64, FULL32))
        if signature != END64 or any(a not in (b, full) for a, b, full in small):
            raise UserError("damaged zip archive: its two directories differ")
        if here64 != count64 or stop + _END64.size != locator:
            raise UserError("damaged zip archive: its directory's end is odd")
        count, size, at = count64, size64, at64
    if at + size != stop:
        raise UserError("truncated or damaged zip archive: its directory is not where it says")
    return at, count, stop


def _large(extra: bytes, values: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return size, packed size and offset, with those that need 64 bits from the extra field."""
    at, wide = 0, b""
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wide = extra[at + 4 : at + 4 + length]
        at += 4 + length
    numbers = iter(struct.unpack(f"<{len(wide) // 8}Q", wide[: len(wide) // 8 * 8]))
    out = [next(numbers, value) if value == FULL32 else value for value in values]
    return out[0], out[1], out[2]


def _content(data: memoryview, offset: int, name: bytes, total: int, size: int) -> int:
    """Return where an entry's content begins, if its own header says what the directory says."""
    if offset + _LOCAL.size > len(data):
        raise UserError("truncated or damaged zip archive: an entry lies beyond its end")
    head = _LOCAL.unpack_from(data, offset)
    signature, _, flags, _, _, _, own_total, own_packed, _, name_len, extra_len = head
    name_at = offset + _LOCAL.size
    start = name_at + name_len + extra_len
    if flags & 8:  # the sum follows the content
        at = start + size
        at += 4 * (bytes(data[at : at + 4]) == DESCRIPTOR)
        own_total = int.from_bytes(data[at : at + 4], "little")
    elif own_packed not in (size, FULL32):
        own_total = None
    own_name = bytes(data[name_at : name_at + name_len])
    if signature != LOCAL or own_name != name or own_total != total:
        shown = printable(name[-60:].decode("utf-8", "replace"))
        raise UserError(f"damaged: entry '{shown}' is described in two ways that differ")
    return start
