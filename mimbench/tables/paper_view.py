"""A paper's table filled with what was measured: measured, published, difference, and why none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mimbench.benchmarks.manifest import Manifest, Reference
from mimbench.results.record import Result
from mimbench.tables.columns import is_own, ran_as
from mimbench.tables.papers import PaperRow, PaperTable, published
from mimbench.tables.published import method_of

EMPTY = "·"
GRADES = {
    "P": "paper",
    "R": "official repository",
    "C": "code",
    "I": "issue thread",
    "S": "second hand",
    "T": "third party",
}


@dataclass(frozen=True, kw_only=True)
class PaperCell:
    """One cell: what was measured, what was published, and what keeps the two apart."""

    measured: float | None = None
    interval: float | None = None
    reference: Reference | None = None
    apart: tuple[str, ...] = ()
    """Why the measured number is not of this table's protocol, published value or not; empty: it is."""

    @property
    def difference(self) -> float | None:
        """Measured minus published, where they are comparable."""
        if self.measured is None or self.reference is None or self.apart:
            return None
        return self.measured - self.reference.value


@dataclass(frozen=True, kw_only=True)
class PaperView:
    """A table with its cells, ready to be written."""

    name: str
    table: PaperTable
    labels: Mapping[str, str]
    """Row id -> its label, with the checkpoint that was measured for it."""
    cells: Mapping[tuple[str, str], PaperCell]


def view_of(
    name: str,
    table: PaperTable,
    results: Sequence[Result],
    manifest: Manifest,
    choice: Mapping[str, str] | None = None,
) -> PaperView:
    """Return the table with every checkpoint in the row that it is.

    Args:
        name: The table's id.
        table: The table.
        results: All results of an output folder.
        manifest: Published rows.
        choice: Checkpoint's name -> row id, or `method epochs`, where the user says.
    """
    rows = {key: row.label for key, row in table.rows.items()}
    cells = {
        (row, column): PaperCell(reference=published(table, row, column, manifest))
        for row, column in table.cells()
    }
    done = [r for r in results if r.status == "done" and r.benchmark in table.benchmarks]
    for who in dict.fromkeys((r.weights["name"], r.weights["digest"]) for r in done):
        mine = [r for r in done if (r.weights["name"], r.weights["digest"]) == who]
        row = row_of(table, mine[0], choice or {})
        place = row or f"{who[0]} ({who[1][:6]})"
        rows[place] = f"{rows[row]}: {who[0]}" if row else f"{who[0]} (no row of this table)"
        for key, column in table.columns.items():
            reference = published(table, row, key, manifest) if row else None
            found = [
                r for r in mine if r.benchmark == column.benchmark and column.metric in r.metrics
            ]
            if found:
                cells[place, key] = _cell(_best_match(found), column.metric, reference, manifest)
    return PaperView(name=name, table=table, labels=rows, cells=cells)


def row_of(table: PaperTable, result: Result, choice: Mapping[str, str]) -> str:
    """Return the row that a checkpoint is: named by the user, or by what its file and its name say."""
    name = result.weights["name"]
    said = choice.get(name, "")
    for key in (said, name):
        if key in table.rows:
            return key
    method, epochs = said, ""
    if said and said.rpartition(" ")[2].isdigit():
        method, _, epochs = said.rpartition(" ")
    if not said:
        method, _ = method_of(result.weights["format"], name)
    model = result.weights.get("model")
    fits = [
        key
        for key, row in table.rows.items()
        if method and (row.method, row.model) == (method, model) and _length(row, name, epochs)
    ]
    return fits[0] if len(fits) == 1 else ""


def _length(row: PaperRow, name: str, said: str) -> bool:
    if said or row.epochs is None:
        return row.epochs in (None, int(said or 0)) or not said
    numbers = {int(n) for n in "".join(c if c.isdigit() else " " for c in name).split()}
    return bool(numbers & {row.epochs, row.epochs - 1})


def _best_match(found: Sequence[Result]) -> Result:
    """Return the run of the published recipe, if there is one among several."""
    plain = [r for r in found if r.profile == "paper" and not r.overrides and not r.ran]
    return (plain or list(found))[0]


def _cell(
    result: Result, metric: str, reference: Reference | None, manifest: Manifest
) -> PaperCell:
    apart = []
    if result.profile != "paper":
        apart.append(f"the {result.profile} recipe, not the published one")
    if result.overrides:
        apart.append("the recipe was changed (--set)")
    if is_own(result):
        apart.append("on data of one's own")
    if ran := ran_as(result):
        apart.append(f"run with {ran}")
    if reference and reference.protocol != result.benchmark:
        apart.append(
            f"published under another protocol: {manifest.protocols[reference.protocol].title}"
        )
    return PaperCell(
        measured=result.metrics[metric],
        interval=result.intervals.get(metric),
        reference=reference,
        apart=tuple(apart),
    )


def rows_of_text(view: PaperView) -> tuple[list[list[str]], list[str]]:
    """Return head and body as text, a line for each row, and the notes below."""
    notes: dict[str, int] = {}
    head = [view.table.title]
    for column in view.table.columns.values():
        head += [column.title, "published", "diff."]
    body = [head]
    for key, label in view.labels.items():
        line = [label]
        for column in view.table.columns:
            cell = view.cells.get((key, column), PaperCell())
            line += _texts(cell, notes)
        body.append(line)
    remarks = [f"[{number}] {text}" for text, number in notes.items()]
    return body, remarks


def _texts(cell: PaperCell, notes: dict[str, int]) -> list[str]:
    measured, value, difference = EMPTY, EMPTY, EMPTY
    if cell.measured is not None:
        measured = f"{cell.measured:.2f}"
        measured += f" ±{cell.interval:.2f}" if cell.interval is not None else ""
    if cell.reference is not None:
        value = f"{cell.reference.value:g} {cell.reference.grade}"
    if cell.difference is not None:
        difference = f"{cell.difference:+.2f}"
    elif cell.apart and cell.measured is not None:
        difference = " ".join(f"[{notes.setdefault(why, len(notes) + 1)}]" for why in cell.apart)
    return [measured, value, difference]


def legend_of(view: PaperView) -> list[str]:
    """Return what the letters mean, where the published values come from, and what is unknown."""
    found = [c.reference for c in view.cells.values() if c.reference is not None]
    grades = [f"{g} {GRADES[g]}" for g in GRADES if any(r.grade == g for r in found)]
    sources = dict.fromkeys(r.source for r in found)
    lines = [f"{view.name}: {view.table.place}"]
    if grades:
        lines.append(f"published: {', '.join(grades)} ({'; '.join(sources)})")
    if view.table.unknown:
        lines.append(f"{EMPTY} not found: {'; '.join(view.table.unknown)}")
    return [*lines, *view.table.notes]


def as_text(view: PaperView) -> str:
    """Return the table as aligned plain text."""
    body, remarks = rows_of_text(view)
    widths = [max(len(line[i]) for line in body) for i in range(len(body[0]))]

    def aligned(line: list[str]) -> str:
        first, *rest = line
        cells = [c.rjust(w) for c, w in zip(rest, widths[1:], strict=True)]
        return "  ".join([first.ljust(widths[0]), *cells]).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [aligned(body[0]), rule, *(aligned(line) for line in body[1:])]
    return "\n".join([*lines, *remarks, *legend_of(view)]) + "\n"


def as_markdown(view: PaperView) -> str:
    """Return the table in GitHub's Markdown."""
    body, remarks = rows_of_text(view)
    lines = ["| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in body]
    lines.insert(1, "|" + "---|" * len(body[0]))
    return "\n".join([*lines, "", *(f"- {note}" for note in [*remarks, *legend_of(view)])]) + "\n"


PAPER_FORMATS = {"terminal": as_text, "markdown": as_markdown}
