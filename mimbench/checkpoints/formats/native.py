"""Our own files: canonical names in safetensors, the specification in the header."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mimbench.checkpoints.reading.layout import Converted, Options, Raw
from mimbench.networks.kinds import spec_from_json
from mimbench.system.errors import UserError, printable
from mimbench.vit.weights import VitSpec

NAME = "mimbench"

KEY = "mimbench"
"""The header's one string: a JSON object. One key, because the order of several is not stable."""


def claims(raw: Raw) -> bool:
    """Return whether the header says so."""
    return KEY in raw.metadata


def convert(raw: Raw, options: Options) -> Converted:
    """Return the tensors as they are, under the header's specification."""
    header = _header(raw)
    spec = spec_from_json(header["spec"])
    heads = spec.num_heads if isinstance(spec, VitSpec) else None
    if options.num_heads not in (None, heads):
        raise UserError(f"the file says {heads} heads, --num-heads {options.num_heads} differs")
    if options.which not in (None, "", header["which"]):
        raise UserError(f"the file holds one network ('{header['which']}'), not '{options.which}'")
    tensors = raw.networks.get("", {})
    if (
        checksum({k: v for k, v in header.items() if k != "checksum"}, tensors)
        != header["checksum"]
    ):
        raise UserError(
            "damaged: header and tensors do not have the checksum they were written with"
        )
    source = f"written from {header['source_format']} {header['source_digest'][:12]}"
    return Converted(
        spec=spec,
        tensors=tensors,
        extras={},
        notes=(source, *map(str, header["notes"])),
        which=header["which"],
        networks=(header["which"],) if header["which"] else (),
    )


def checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    """Return a CRC-32 over everything that the file means: safetensors itself has none."""
    total = zlib.crc32(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        total = zlib.crc32(
            f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode(), total
        )
        values = tensors[name].contiguous().reshape(-1).view(torch.uint8)
        total = zlib.crc32(values.numpy().data, total)
    return total


def _plain(value: Any) -> bool:
    """Return whether a value is small enough to be compared and shown."""
    if isinstance(value, str):
        return len(value) < 100
    return value is None or (isinstance(value, (int, float)) and abs(value) < 1 << 60)


def _header(raw: Raw) -> dict[str, Any]:
    wanted = {"version": int, "spec": dict, "source_format": str, "source_digest": str}
    wanted |= {"which": str, "notes": list, "checksum": int}
    try:
        header = json.loads(raw.metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise UserError(f"the header's '{KEY}' entry is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise UserError(f"the header's '{KEY}' entry is not an object")
    for key, kind in wanted.items():
        if type(header.get(key)) is not kind:
            raise UserError(f"the header's '{KEY}' entry lacks '{key}' ({kind.__name__})")
    options = header["spec"].get("options")
    fields = header["spec"] | (options if isinstance(options, dict) else {})
    for key, value in fields.items():
        if value is options:
            continue
        if not all(map(_plain, value if isinstance(value, list) and len(value) < 9 else [value])):
            raise UserError(f"the header's '{printable(key, 60)}' is no number, text or short list")
    if header["version"] != 1:
        raise UserError(f"written by a newer mimbench (version {header['version']}); update")
    return header
