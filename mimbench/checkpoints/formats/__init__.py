"""Checkpoint formats: every module in this folder is one, and exactly one claims a file."""

import importlib
import pkgutil
from typing import Protocol, cast

from mimbench.checkpoints.formats import native
from mimbench.checkpoints.reading.layout import Converted, Options, Raw
from mimbench.system.errors import UserError
from mimbench.system.listing import first_few


class Format(Protocol):
    """A module of this folder; see docs/howto/adding.md for a template."""

    @property
    def NAME(self) -> str:  # noqa: N802
        """What `inspect` and result files call the format."""
        ...

    def claims(self, raw: Raw) -> bool:
        """Return whether the file is of this format, by its names alone."""
        ...

    def convert(self, raw: Raw, options: Options) -> Converted:
        """Return the encoder under canonical names, with everything else listed."""
        ...


def available() -> dict[str, Format]:
    """Return name -> format of every module in the folder."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [cast(Format, importlib.import_module(f"{__name__}.{name}")) for name in modules]
    return {module.NAME: module for module in found}


def recognise(raw: Raw) -> Format:
    """Return the one format that claims the file."""
    formats = available()
    claimants = [name for name, module in formats.items() if module.claims(raw)]
    if native.NAME in claimants:  # a header that says so outranks what names resemble
        return formats[native.NAME]
    if len(claimants) > 1:
        raise UserError(
            f"{raw.path}: the formats {' and '.join(claimants)} both claim this file; "
            "its names mix families"
        )
    if not claimants:
        raise UserError(
            f"{raw.path}: no known format; looked for {', '.join(formats)}; "
            f"the file's first tensors are {first_few(sorted(raw.names))}"
        )
    return formats[claimants[0]]
