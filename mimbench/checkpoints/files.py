"""Checkpoints: any published file in, canonical weights out, strictly; and our own files written."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mimbench.checkpoints.formats import claimants, native, recognise
from mimbench.checkpoints.names.located import Located, locate
from mimbench.checkpoints.reading.content import read_raw, source_digest
from mimbench.checkpoints.reading.layout import Converted, NoNetworkError, Options, Raw
from mimbench.checkpoints.reading.settings import said_statistics
from mimbench.checkpoints.reading.wrapped import Inner, beside, inner_networks
from mimbench.model import Spec, Weights, mismatches
from mimbench.networks.kinds import check_spec, make_weights, plain
from mimbench.networks.levels import LevelSpec
from mimbench.system.errors import UserError, printable
from mimbench.system.files import atomic_path, value_digest
from mimbench.system.listing import first_few
from mimbench.vit.weights import VitSpec, VitWeights


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A file read and mapped, with every fault found; `inspect` shows it, `read_weights` judges it."""

    raw: Raw
    format: str
    converted: Converted
    digest: str
    faults: tuple[str, ...]
    dtypes: Mapping[str, str]
    """Canonical name -> how the file stores it; `converted` holds float32."""
    located: Located


def read_weights(
    path: Path | str,
    *,
    which: str | None = None,
    num_heads: int | None = None,
    activation: str | None = None,
) -> Weights:
    """Return the canonical weights in a file of any known format.

    Args:
        path: The checkpoint: a file, a folder as Hugging Face writes them, or `timm:NAME` or
            `hf:ORG/NAME`, which local caches hold.
        which: The network where a file holds several: student, teacher or ema.
        num_heads: The number of attention heads, for widths that no published model has.
        activation: gelu or quick_gelu, for CLIP's files that do not say it.
    """
    reading = read_checkpoint(path, which=which, num_heads=num_heads, activation=activation)
    if reading.faults:
        raise UserError(
            f"{path}: read as {reading.format}, but not exactly its tensors: "
            f"{first_few(reading.faults)}; `python -m mimbench inspect {path}` shows all"
        )
    converted = reading.converted
    return make_weights(
        converted.spec,
        converted.tensors,
        format=reading.format,
        digest=reading.digest,
        name=printable(reading.located.label or Path(path).stem, 120),
        origin=reading.located.origin,
        which=converted.which,
        extras=converted.extras,
        notes=converted.notes,
    )


def read_vit(
    path: Path | str,
    *,
    who: str = "this",
    which: str | None = None,
    num_heads: int | None = None,
) -> VitWeights:
    """Return a plain ViT's weights, or say who works on nothing else."""
    return plain(read_weights(path, which=which, num_heads=num_heads), who)


def read_checkpoint(
    path: Path | str,
    *,
    which: str | None = None,
    num_heads: int | None = None,
    activation: str | None = None,
) -> Reading:
    """Return what a file holds and every way in which it is not what its format promises."""
    located = locate(path)
    try:
        options = Options(which=which, num_heads=num_heads, activation=activation)
        return _read(located, options)
    except UserError as error:
        # a file's own name must not break the message into lines that look like ours
        shown = str(UserError(str(path)))
        text = str(error).replace(shown, printable(shown))
        raise UserError(located.spoken(text)) from error


def _read(located: Located, options: Options) -> Reading:
    path = located.path
    raw = read_raw(path)
    if located.config:
        raw = replace(raw, config=located.config)
    name, converted = convert_raw(raw, options)
    converted = replace(converted, spec=_as_said(converted.spec, raw))
    try:
        check_spec(converted.spec)
    except UserError as error:
        raise UserError(f"{path} ({name}): {error}") from error
    faults = mismatches(converted.spec, converted.tensors)
    wanted = converted.spec.shapes()
    tensors: dict[str, Tensor] = {}
    for key, tensor in converted.tensors.items():
        # what is not wanted is never looked at: a file may promise any amount of it
        if not tensor.is_floating_point():
            faults.append(f"{key} is {tensor.dtype}, expected floating point".replace("torch.", ""))
        elif key in wanted:
            tensors[key] = tensor.detach().float()
            faults += _value_faults(key, tensors[key])
    return Reading(
        raw=raw,
        format=name,
        converted=replace(
            converted,
            tensors={n: tensors.get(n, t) for n, t in converted.tensors.items()},
            notes=(*located.notes, *converted.notes, *raw.notes),
        ),
        digest=_identity(located, converted),
        faults=tuple(faults),
        dtypes={n: str(t.dtype).removeprefix("torch.") for n, t in converted.tensors.items()},
        located=located,
    )


UNFIT = (LookupError, TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError)
"""What names and shapes that no network has can raise in a format's code."""


def convert_raw(raw: Raw, options: Options) -> tuple[str, Converted]:
    """Return the name of the one format that claims the content, and what it makes of it.

    Where none does, it looks below the prefixes that training code puts before a network's names.
    """
    if claimants(raw):
        try:
            return _convert(raw, options)
        except NoNetworkError:
            if not (found := known_inside(raw)):
                raise
    elif not (found := known_inside(raw)):
        return _convert(raw, options)
    inner, which = one_of(found, raw, options)
    alone = len(found) == 1
    name, converted = _convert(inner.raw, options if alone else replace(options, which=None))
    chosen = {} if alone else {"which": which, "networks": tuple(labels(found))}
    return name, replace(
        converted,
        extras={**beside(inner, raw), **converted.extras},
        notes=(*converted.notes, f"the network stands under '{inner.place}'"),
        **chosen,
    )


def known_inside(raw: Raw) -> list[Inner]:
    """Return the networks inside a file that a format knows, without those inside others."""
    found: list[Inner] = []
    for inner in inner_networks(raw):
        pair = inner.prefix and inner.raw.networks.keys() & {"student", "teacher"}
        if pair or any(inner.within(other) for other in found):
            continue  # each of a pair is offered by itself
        if claimants(inner.raw):
            found.append(inner)
    return found


def labels(found: Sequence[Inner]) -> dict[str, Inner]:
    """Return what --which can be: the parts in the training where they tell, else the places."""
    roles = {inner.role: inner for inner in found}
    return roles if len(roles) == len(found) else {inner.place: inner for inner in found}


def one_of(found: Sequence[Inner], raw: Raw, options: Options) -> tuple[Inner, str]:
    """Return the network that is meant; where several could be, the user says."""
    if len(found) == 1:
        return found[0], ""
    offered = labels(found)
    places = first_few([inner.place for inner in found], 8)
    if options.which not in offered:
        raise UserError(
            f"{raw.path}: holds {len(found)} networks ({places}), and their names do not say which is "
            f"evaluated; say --which {' or --which '.join(offered)}"
        )
    return offered[options.which], options.which


def _convert(raw: Raw, options: Options) -> tuple[str, Converted]:
    path, name = str(raw.path), "no format yet"
    try:
        module = recognise(raw)
        name = module.NAME
        return name, module.convert(raw, options)
    except NoNetworkError:
        raise
    except UserError as error:
        text = str(error)
        named = str(UserError(path)) in text
        raise UserError(text if named else f"{path} ({name}): {text}") from error
    except UNFIT as error:
        # formats are written for the shapes that networks have; a file may hold any other
        first = printable(str(error).partition("\n")[0], 120)
        raise UserError(
            f"{path} ({name}): names as in this format, shapes or settings as in no network "
            f"({type(error).__name__}: {first}); download or copy the file again"
        ) from error


def _value_faults(name: str, tensor: Tensor) -> list[str]:
    if tensor.numel() and not tensor.is_meta:
        low, high = torch.aminmax(tensor)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            return [f"{name} holds NaN or infinite values, or some beyond float32"]
    return []


def _as_said(spec: Spec, raw: Raw) -> Spec:
    """Return the specification with the image statistics that timm's configuration states."""
    said = said_statistics(raw)
    if said is None or not isinstance(spec, (VitSpec, LevelSpec)):
        return spec
    return replace(spec, mean=said[0], std=said[1])


def _identity(located: Located, converted: Converted) -> str:
    """Return the digest of the function that was read: file, settings, network, heads said by hand."""
    digest = source_digest(located.path)
    choice: dict[str, Any] = {"settings": dict(located.config)} if located.config else {}
    if len(converted.networks) > 1:
        choice["which"] = converted.which
    if converted.heads_asked:
        choice["heads"] = getattr(converted.spec, "num_heads", None) or _first_heads(converted)
    return value_digest({"file": digest, **choice}) if choice else digest


def _first_heads(converted: Converted) -> int:
    """Return the heads of the first stage, where they were given for a network with levels."""
    return int(converted.spec.to_json()["options"]["num_heads"])


def write_weights(path: Path, weights: Weights) -> None:
    """Write weights as our own safetensors file: the same weights give the same bytes."""
    faults = mismatches(weights.spec, weights.tensors)
    if faults:
        raise UserError(f"{path}: refusing to write weights that do not fit: {first_few(faults)}")
    header = {
        "version": 1,
        "spec": weights.spec.to_json(),
        "source_format": weights.format,
        "source_digest": weights.digest,
        "which": weights.which,
        "notes": list(weights.notes),
    }
    tensors = {name: t.detach().float().cpu().contiguous() for name, t in weights.tensors.items()}
    header["checksum"] = native.checksum(header, tensors)
    with atomic_path(path) as part:
        save_file(tensors, part, metadata={native.KEY: json.dumps(header, sort_keys=True)})
