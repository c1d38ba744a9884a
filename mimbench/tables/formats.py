"""One table in five languages: terminal, Markdown, CSV, LaTeX (booktabs), JSON."""

import csv
import io
import json
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from mimbench.system.errors import printable
from mimbench.tables.rows import Column, Row, Table, Value
from mimbench.tables.tex import tex

PROFILES = {
    "quick": "[quick] cheaper recipes of our own: no published row stands beside them",
    "demo": "[demo] sample data: shows that everything runs, says nothing about ImageNet, COCO, ADE20K",
}


BEST_LEGEND = (
    "* best measured value of the column, and all that nothing tells from it (at 5 % over all comparisons, "
    "by Holm)"
)
GAP_LEGEND = (
    "gap: recipe gap, the range under neighbouring settings of the recipe (resolution, pooling, rate, "
    "interpolation)"
)


def heading(column: Column, table: Table) -> str:
    """Return a column's heading; recipes that differ from the published one say so."""
    text = column.title
    if column.profile != "paper":
        text += "" if corner(table) else f" [{column.profile}]"
    elif not column.official and column.protocol:
        text += "" if column.ran else " [changed]"
    if column.ran:
        text += f" [{column.ran}]"
    twins = [
        c for c in table.columns if (c.benchmark, c.profile) == (column.benchmark, column.profile)
    ]
    return text if len(twins) == 1 else f"{text} {column.protocol[:4]}"


def corner(table: Table) -> str:
    """Return the profile that all columns share, if it is not the published one: said once."""
    profiles = {c.profile for c in table.columns}
    return f"[{profiles.pop()}]" if len(profiles) == 1 and profiles != {"paper"} else ""


def text_of(value: Value | None) -> str:
    """Return a value as `84.20 ±0.31 (+0.10)`; `failed` or `-` where there is none."""
    if value is None:
        return "-"
    if value.value is None:
        return "failed"
    text = " ".join(filter(None, [f"{value.value:.2f}", uncertainty(value)]))
    if value.difference is not None:
        text += f" ({value.difference:+.2f})"
    return text


def uncertainty(value: Value) -> str:
    """Return what is known of a value's doubt, as `±0.31 sd 0.20 n=3`; nothing where nothing is."""
    parts = []
    if value.interval is not None:
        parts.append(f"±{value.interval:.2f}")
    if value.spread is not None:
        parts.append(f"sd {value.spread:.2f} n={value.seeds}")
    if value.draw_sd is not None:
        parts.append(f"sd {value.draw_sd:.2f} d={value.draws}")
    if ends := value.gap_ends:
        parts.append(f"gap {ends[0]:.2f} to {ends[1]:.2f}")
    return " ".join(parts)


def label_of(row: Row) -> str:
    """Return a row's label with its source."""
    return row.label if row.kind == "measured" else f"{row.label} [{row.source}]"


def terminal(table: Table, width: int | None = None) -> str:
    """Return the table as aligned plain text.

    Args:
        table: What to write.
        width: Columns of the screen: a wider table goes on below, under its rows' names.
    """
    head = [corner(table), *(heading(c, table) for c in table.columns)]
    body = [
        [
            row.label,
            *(text_of(row.values.get(c)) + ("*" if _best(row, c) else "") for c in table.columns),
        ]
        for row in table.rows
    ]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    kinds, lines = [row.kind for row in table.rows], []
    for part in _folded(widths, width):
        rule = "─" * (sum(widths[i] for i in part) + 2 * (len(part) - 1))
        shown = [[line[i] for i in part] for line in [head, *body]]
        aligned = [_aligned(cells, [widths[i] for i in part]) for cells in shown]
        lines += ["", aligned[0], rule]
        for i, line in enumerate(aligned[1:]):
            lines += [rule, line] if i and kinds[i] != kinds[i - 1] else [line]
    notes = legend(table)
    if width is not None:
        folded = [textwrap.wrap(n, width, subsequent_indent="  ") for n in ["", *notes]]
        notes = [line for lines in folded for line in lines or [""]]
    return "\n".join([*lines[1:], *notes]) + "\n"


def on_screen(table: Table) -> str:
    """Return the table as text for stdout: no wider than the terminal, if it is one."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return terminal(table, width)


def _folded(widths: list[int], width: int | None) -> list[list[int]]:
    """Return the columns that stand side by side, the first one in front of each part."""
    parts = [[0]]
    for i in range(1, len(widths)):
        used = sum(widths[j] + 2 for j in parts[-1])
        if width is not None and used + widths[i] > width and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(i)
    return parts


def _aligned(cells: list[str], widths: list[int]) -> str:
    first, *rest = [
        cell.ljust(w) if i == 0 else cell.rjust(w)
        for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join([first, *rest]).rstrip()


def _best(row: Row, column: Column) -> bool:
    value = row.values.get(column)
    return value is not None and value.best


def legend(table: Table) -> list[str]:
    """Return what the signs mean, for those that occur, and the table's notes."""
    values = [v for row in table.rows for v in row.values.values()]
    lines = []
    if any(v.interval is not None for v in values):
        errors = [v.interval_error for v in values if v.interval_error is not None]
        good = f" (resampled: its ends are good to {max(errors):.2f})" if errors else ""
        lines.append(f"± 95 % interval over test images{good}")
    if any(v.spread is not None for v in values):
        lines.append("sd: standard deviation over n seeds")
    if any(v.draw_sd is not None for v in values):
        lines.append("sd with d: standard deviation over d draws of the training images")
    if any(v.gap for v in values):
        lines.append(GAP_LEGEND)
    if any(v.difference is not None for v in values):
        lines.append("(+/-) measured - published, for the matching published row")
    if any(v.best for v in values):
        lines.append(BEST_LEGEND)
    lines += [PROFILES[p] for p in dict.fromkeys(c.profile for c in table.columns) if p in PROFILES]
    published = [row for row in table.rows if row.kind == "published"]
    for source in dict.fromkeys(row.source for row in published):
        lines.append(
            f"{source}: " + "; ".join(row.label for row in published if row.source == source)
        )
    return [*lines, *table.notes]


def bold_legend(table: Table) -> list[str]:
    """Return the legend for formats that mark the best value by weight."""
    return [note.replace("* best", "bold: best", 1) for note in legend(table)]


def markdown(table: Table) -> str:
    """Return the table in GitHub's Markdown."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [line([corner(table), *(heading(c, table) for c in table.columns)])]
    lines.append("|" + "---|" * (len(table.columns) + 1))
    for row in table.rows:
        cells = [text_of(row.values.get(c)) for c in table.columns]
        marked = [
            f"**{cell}**" if _best(row, c) else cell
            for cell, c in zip(cells, table.columns, strict=True)
        ]
        label = row.label if row.kind == "measured" else f"*{row.label}*"
        lines.append(line([label, *marked]))
    return "\n".join([*lines, "", *(f"- {note}" for note in bold_legend(table))]).rstrip() + "\n"


def comma(table: Table) -> str:
    """Return one CSV line for each value: tidy, for other programs."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        [
            "row",
            "kind",
            "benchmark",
            "profile",
            "protocol",
            "metric",
            "value",
            "interval95",
            "seed_sd",
            "seeds",
            "draw_sd",
            "draws",
            "difference",
            "source",
            "error",
            "ran",
            "gap_low",
            "gap_high",
        ]
    )
    for row in table.rows:
        for c, v in row.values.items():
            numbers = [v.value, v.interval, v.spread, v.seeds, v.draw_sd, v.draws, v.difference]
            shown = ["" if n is None else n if isinstance(n, int) else f"{n:.4f}" for n in numbers]
            ends = [f"{end:.4f}" for end in v.gap_ends] if v.gap_ends else ["", ""]
            writer.writerow(
                [
                    row.label,
                    row.kind,
                    c.benchmark,
                    c.profile,
                    c.protocol,
                    c.metric,
                    *shown,
                    row.source,
                    v.error,
                    c.ran,
                    *ends,
                ]
            )
    return file.getvalue()


def latex(table: Table) -> str:
    """Return the table for booktabs."""

    def first(text: str) -> str:
        # after a line's end or a rule, a bracket or a star would be an argument of it
        return "{}" + tex(text) if text.startswith(("[", "*")) else tex(text)

    def number(value: Value | None, *, best: bool) -> str:
        text = tex(text_of(value))
        return rf"\textbf{{{text}}}" if best else text

    lines = [rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule"]
    lines += [
        " & ".join([first(corner(table)), *(tex(heading(c, table)) for c in table.columns)])
        + r" \\",
        r"\midrule",
    ]
    for i, row in enumerate(table.rows):
        if i and row.kind != table.rows[i - 1].kind:
            lines.append(r"\midrule")
        cells = [number(row.values.get(c), best=_best(row, c)) for c in table.columns]
        lines.append(" & ".join([first(row.label), *cells]) + r" \\")
    lines += [
        r"\bottomrule",
        r"\end{tabular}",
        *(f"% {printable(note)}" for note in bold_legend(table)),
    ]
    return "\n".join(lines) + "\n"


def _plain(value: Value) -> dict[str, Any]:
    """Return a value's fields; the gap is there where one was measured, as the table was before there were any."""
    found = asdict(value)
    if not value.gap:
        del found["gap"]
    return found


def as_json(table: Table) -> str:
    """Return the table as JSON."""
    rows = [
        {
            "label": row.label,
            "kind": row.kind,
            "source": row.source,
            "values": [{**asdict(c), **_plain(v)} for c, v in row.values.items()],
        }
        for row in table.rows
    ]
    value = {
        "columns": [asdict(c) for c in table.columns],
        "rows": rows,
        "notes": list(table.notes),
    }
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {
    "terminal": terminal,
    "markdown": markdown,
    "csv": comma,
    "latex": latex,
    "json": as_json,
}
SUFFIXES = {"terminal": "txt", "markdown": "md", "csv": "csv", "latex": "tex", "json": "json"}
