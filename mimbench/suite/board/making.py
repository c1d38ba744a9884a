"""From bundles to the page."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mimbench.benchmarks.manifest import DEFAULT_FILE, load_manifest
from mimbench.suite.board.entries import Demands, Entry, Refusal, named_apart, open_bundles
from mimbench.suite.board.page import board_page
from mimbench.suite.board.standings import standings
from mimbench.tables.foreign.rows import ForeignRow
from mimbench.tables.foreign.shown import with_imported
from mimbench.tables.table import make_table


@dataclass(frozen=True, kw_only=True)
class Board:
    """A page, if there is one, and what became of each bundle."""

    page: str
    """'' where bundles were refused, or none is left."""
    entries: tuple[Entry, ...]
    refusals: tuple[Refusal, ...]


def make_board(
    paths: Sequence[Path],
    *,
    benchmarks: Path = DEFAULT_FILE,
    demands: Demands | None = None,
    imported: Sequence[ForeignRow] = (),
    against: str = "",
    skip: bool = False,
) -> Board:
    """Return the board of bundles.

    Args:
        paths: The archives.
        benchmarks: The reader's own manifest.
        demands: What they must be beside consistent.
        imported: Rows of others to show.
        against: The row that all others are compared with; by default each column's best.
        skip: Leave out bundles that do not verify; else one is enough for no page.
    """
    manifest = load_manifest(benchmarks)
    with ExitStack() as stack:
        entries, refusals = open_bundles(paths, stack, benchmarks=benchmarks, demands=demands)
        if not entries or (refusals and not skip):
            return Board(page="", entries=tuple(entries), refusals=tuple(refusals))
        runs = named_apart(entries)
        table = make_table([result for _, result in runs], manifest)
        found = standings(table, runs, manifest, against=against)
        shown = with_imported(table, imported, manifest)
        page = board_page(shown, found, entries, refusals, manifest)
    return Board(page=page, entries=tuple(entries), refusals=tuple(refusals))
