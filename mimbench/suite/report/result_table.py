"""The table as HTML."""

from collections.abc import Sequence

from mimbench.suite.report.markup import text
from mimbench.tables.formats import corner, heading, uncertainty
from mimbench.tables.formats import legend as table_legend
from mimbench.tables.rows import Column, Row, Table, Value


def html_table(table: Table) -> str:
    """Return the table as HTML."""
    head = "".join(f'<th scope="col">{text(heading(c, table))}</th>' for c in table.columns)
    rows = "\n".join(_row(row, table.columns) for row in table.rows)
    notes = "".join(
        f"<li>{text(note)}</li>" for note in table_legend(table) if not note.startswith("*")
    )
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="table of results">'
        f'<table><thead><tr><th scope="col">{text(corner(table))}</th>{head}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><ul class="notes">{notes}</ul>'
    )


def _row(row: Row, columns: Sequence[Column]) -> str:
    cells = "".join(f"<td>{_value(row.values.get(c))}</td>" for c in columns)
    return (
        f'<tr class="{row.kind}"><th scope="row" title="{text(row.source)}">{text(row.label)}</th>'
        f"{cells}</tr>"
    )


def _value(value: Value | None) -> str:
    if value is None:
        return '<span class="soft">·</span>'
    if value.value is None:
        return f'<span class="failed" title="{text(value.error)}">failed</span>'
    shown = f"<b>{value.value:.2f}</b>" if value.best else f"{value.value:.2f}"
    small = uncertainty(value)
    if value.difference is not None:
        sign = "up" if value.difference >= 0 else "down"
        small += f' <span class="{sign}">{value.difference:+.2f}</span>'
    return f"{shown}<small>{small}</small>" if small else shown
