"""Checkpoint formats: every module in this folder is one, and exactly one claims a file."""

import importlib
import pkgutil
from typing import Protocol, cast

from mimbench.checkpoints.formats import architecture, native
from mimbench.checkpoints.reading.layout import Converted, Options, Raw
from mimbench.checkpoints.reading.unread import unread
from mimbench.system.errors import UserError


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


def claimants(raw: Raw) -> list[Format]:
    """Return the formats that claim the file: one, if all is well."""
    found = [module for module in available().values() if module.claims(raw)]
    names = {module.NAME for module in found}
    if native.NAME in names:  # a header that says so outranks what names resemble
        return [native]
    # what a configuration names is the last resort: formats know their files' conventions
    return [m for m in found if m.NAME != architecture.NAME or len(found) == 1]


def recognise(raw: Raw) -> Format:
    """Return the one format that claims the file, or say what the file is."""
    found = claimants(raw)
    if len(found) > 1:
        names = " and ".join(module.NAME for module in found)
        raise UserError(
            f"{raw.path}: the formats {names} both claim this file; its names mix families"
        )
    if not found:
        raise UserError(f"{raw.path}: {unread(raw, available())}")
    return found[0]
