"""What a table holds, before it is written in any format: columns, rows, cells and remarks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Column:
    """One benchmark under one protocol: values in a column may be compared."""

    benchmark: str
    profile: str
    protocol: str
    title: str
    metric: str
    official: bool
    """The recipe is the published one, so published rows may stand in this column."""
    ran: str = ""
    """In what the runs were not the protocol, in words; published rows never stand beside them."""
    lower: bool = False
    """The smaller value is the better one."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """What stands in one cell."""

    value: float | None
    """None: failed."""
    interval: float | None = None
    """Half width of the 95 % interval over test images."""
    interval_error: float | None = None
    """How far other resamples would move its ends."""
    spread: float | None = None
    """Standard deviation over seeds."""
    seeds: int = 1
    each: tuple[float, ...] = ()
    """The value of every seed."""
    draw_sd: float | None = None
    """Standard deviation over draws of the training images, where the task takes several."""
    draws: int = 1
    difference: float | None = None
    """Measured minus the matching published value."""
    against: str = ""
    """Label of the published row that was subtracted."""
    gap: Mapping[str, float] = field(default_factory=dict)
    """Neighbouring setting of the recipe -> value, where they were measured."""
    best: bool = False
    error: str = ""

    @property
    def gap_ends(self) -> tuple[float, float] | None:
        """Return the smallest and largest value over the recipe and its neighbours."""
        if self.value is None or not self.gap:
            return None
        return min([self.value, *self.gap.values()]), max([self.value, *self.gap.values()])


@dataclass(frozen=True, kw_only=True)
class Row:
    """One checkpoint, one published model, or one of a file that was imported."""

    label: str
    kind: Literal["measured", "published", "imported"]
    values: Mapping[Column, Value]
    source: str = ""
    model: str = ""
    """Architecture of a measured row: its random twin has the same."""
    weights: tuple[str, str] = ("", "")
    """Name and digest of a measured row's weights."""
    twin: bool = False
    """Random weights, a measure for the other rows."""


@dataclass(frozen=True)
class Table:
    """Columns, rows and remarks, ready for any format."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = field(default_factory=list)
