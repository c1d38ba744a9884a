"""The recipe gap of a result: what the same weights score under neighbouring settings of its recipe.

It lies in a file of its own beside the result, which it never changes: the number, its protocol and its
checksum stay what they were.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimbench.system.config import from_mapping, to_mapping
from mimbench.system.errors import UserError
from mimbench.system.files import write_json

GAP_FILE = "gap.json"
FORMAT = 1
FILE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Nearby:
    """One neighbouring setting and its number."""

    setting: str
    """In words that are the same for every checkpoint: `smaller images`, `avg features`."""
    value: float
    changed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the recipe that differ from the result's; or the metric of the result that it is."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The main metric under neighbouring settings, the recipe's own first in mind."""

    metric: str
    value: float
    """Under the recipe itself: the table's number."""
    settings: tuple[Nearby, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Settings that this checkpoint or this data does not allow, and why."""
    built_on: str = ""
    """Checksum of the result that it belongs to."""
    complete: bool = False
    """Every declared setting was measured or skipped."""
    format: int = FORMAT

    @property
    def values(self) -> dict[str, float]:
        """Return setting -> number."""
        return {found.setting: found.value for found in self.settings}

    @property
    def low(self) -> float:
        """Return the smallest number, the recipe's own included."""
        return min([self.value, *self.values.values()])

    @property
    def high(self) -> float:
        """Return the largest number, the recipe's own included."""
        return max([self.value, *self.values.values()])

    @property
    def spread(self) -> float:
        """Return how far apart the ends are."""
        return self.high - self.low


def write_gap(folder: Path, gap: Gap) -> None:
    """Write a gap beside its result, atomically."""
    ends = {"low": gap.low, "high": gap.high, "spread": gap.spread}
    write_json(folder / GAP_FILE, {**to_mapping(gap), **ends})


def read_gap(folder: Path, checksum: str) -> Gap | None:
    """Return the gap beside a result; None where there is none, or where it is another result's.

    Args:
        folder: The run's folder.
        checksum: Of the result as it is now.
    """
    path = folder / GAP_FILE
    if not path.is_file():
        return None
    fix = "delete it and run again with --gap"
    try:
        if path.stat().st_size > FILE_BYTES:
            raise UserError(f"{path} is larger than any recipe gap; {fix}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable recipe gap: {error}; {fix}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not a recipe gap of format {FORMAT}; {fix}")
    ends = {key: content.pop(key, None) for key in ("low", "high", "spread")}
    gap = from_mapping(Gap, content, str(path))
    if not all(map(math.isfinite, [gap.value, *gap.values.values()])):
        raise UserError(f"{path} holds values that are not finite; {fix}")
    if ends != {"low": gap.low, "high": gap.high, "spread": gap.spread}:
        raise UserError(f"{path}: its ends are not those of its values; {fix}")
    return gap if gap.built_on == checksum else None
