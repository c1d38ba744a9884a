"""The board as one page: it loads nothing, and reads as a table where scripts do not run."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files

from mimbench.benchmarks.manifest import Manifest
from mimbench.suite.board.entries import Entry, Refusal, letters_of
from mimbench.suite.board.standings import Standing
from mimbench.suite.report.colours import variables
from mimbench.suite.report.markup import section, text
from mimbench.suite.report.overview import strips_of
from mimbench.suite.report.strips import draw
from mimbench.tables.formats import corner, heading, legend, uncertainty
from mimbench.tables.rows import Column, Row, Table, Value

KINDS = {"measured": "measured", "published": "published", "imported": "imported"}
Standings = Mapping[tuple[int, Column], Standing]


def board_page(
    table: Table,
    found: Standings,
    entries: Sequence[Entry],
    refusals: Sequence[Refusal],
    manifest: Manifest,
) -> str:
    """Return the page.

    Args:
        table: All rows, each protocol a column.
        found: How measured rows stand to their column's best.
        entries: The bundles behind them.
        refusals: Bundles that were left out.
        manifest: What protocols mean.
    """
    script = _file("mimbench.suite.board", "board.js")
    style = _file("mimbench.suite.report", "style.css") + _file("mimbench.suite.board", "board.css")
    seal = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{seal}'"
    parts = {
        "table": ("Table", [_controls(table), _table(table, found, entries), _notes(table, found)]),
        "intervals": ("Intervals", _strips(table)),
        "verdicts": ("Verdicts", _verdicts(table, found)),
        "protocols": ("Protocols", [_protocols(table, manifest)]),
        "bundles": ("Bundles", [*map(_entry, entries), *map(_refused, refusals)]),
    }
    body = {name: section(name, title, content) for name, (title, content) in parts.items()}
    links = "".join(f'<a href="#{name}">{parts[name][0]}</a>' for name in body if body[name])
    measured = sum(row.kind == "measured" for row in table.rows)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{text(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Transfer board · mimbench</title><style>{variables()}{style}</style></head><body>\n"
        f'<header><h1>How well do they transfer?</h1><p class="soft">{measured} checkpoints from '
        f"{len(entries)} verified bundles, {len(table.columns)} protocols {text(corner(table))}</p>"
        f"<nav>{links}</nav></header>\n"
        + "\n".join(body.values())
        + f"\n<script>{script}</script></body></html>\n"
    )


def _file(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")


def _controls(table: Table) -> str:
    used = dict.fromkeys(row.kind for row in table.rows)
    kinds = "".join(_box("kind", kind, KINDS[kind]) for kind in used)
    columns = "".join(_box("column", i, heading(c, table)) for i, c in enumerate(table.columns, 1))
    return (
        '<div id="controls" hidden role="search"><label>Filter rows <input type="search" id="words" '
        f'placeholder="name, model, bundle"></label><fieldset><legend>Rows</legend>{kinds}</fieldset>'
        '<output id="count" class="soft"></output>'
        f"<details><summary>Columns</summary><fieldset>{columns}</fieldset></details></div>"
    )


def _box(name: str, value: object, label: str) -> str:
    return (
        f'<label><input type="checkbox" name="{name}" value="{text(value)}" checked>'
        f"{text(label)}</label>"
    )


def _table(table: Table, found: Standings, entries: Sequence[Entry]) -> str:
    heads = "".join(_head(column, table) for column in table.columns)
    rows = "\n".join(_row(i, row, table, found, entries) for i, row in enumerate(table.rows))
    return (
        '<p class="soft" id="rule">One column for each protocol and digest: numbers of different '
        "protocols never share one.</p>"
        '<div class="wide" tabindex="0" role="region" aria-label="board of results">'
        '<table id="board" aria-describedby="rule"><thead><tr>'
        f'<th scope="col"><span class="sort">Checkpoint</span></th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def title_of(column: Column, table: Table) -> str:
    """Return a column's heading; a profile that all share is said at each, where a table says it once."""
    return f"{heading(column, table)} {corner(table)}".strip()


def _head(column: Column, table: Table) -> str:
    way = "lower is better" if column.lower else "higher is better"
    lower = ' data-lower="1"' if column.lower else ""
    name = column.benchmark if column.protocol else "imported"
    return (
        f'<th scope="col"{lower}><span class="sort">{text(title_of(column, table))}</span>'
        f"<code>{text(name)} {text(column.protocol)}</code>"
        f"<small>{text(column.metric.replace('_', ' '))}, {way}</small></th>"
    )


def _row(number: int, row: Row, table: Table, found: Standings, entries: Sequence[Entry]) -> str:
    name, digest = row.weights
    where = letters_of(entries, name, digest) if digest else row.source
    # the sources of imported rows are addresses, and stand below the table
    origin = f"bundle {where}" if digest else where if row.kind == "published" else row.kind
    small = " · ".join(filter(None, [row.model, digest[:12], origin]))
    cells = "".join(
        _cell(row.values.get(c), found.get((number, c)), row.kind) for c in table.columns
    )
    hay = " ".join([row.label, row.model, digest, where, row.kind]).lower()
    return (
        f'<tr class="{row.kind}" data-kind="{row.kind}" data-text="{text(hay)}">'
        f'<th scope="row" title="{text(row.source)}" data-value="{text(row.label)}">{text(row.label)}'
        f"<small>{text(small)}</small></th>{cells}</tr>"
    )


def _cell(value: Value | None, standing: Standing | None, kind: str) -> str:
    if value is None:
        return '<td><span class="soft">·</span></td>'
    if value.value is None:
        return f'<td><span class="failed" title="{text(value.error)}">failed</span></td>'
    small = uncertainty(value)
    if standing:
        small += (
            f' <span class="stand {standing.kind.replace(" ", "-")}" '
            f'title="{text(standing.sentence or standing.kind)}">{text(standing.short)}</span>'
        )
    shown = f"<b>{value.value:.2f}</b>" if kind == "measured" else f"{value.value:.2f}"
    return f'<td data-value="{value.value!r}">{shown}<small>{small}</small></td>'


def _notes(table: Table, found: Standings) -> str:
    # neither stars, which are of unpaired intervals, nor differences from published rows stand here
    unused = ("*", "(+/-)", "no published row is subtracted")
    lines = [line for line in legend(table) if not line.startswith(unused)]
    if any("†" in standing.short for standing in found.values()):
        lines.append("† on these test images: another training seed was not measured")
    lines.append(
        "best, behind, ≈ (cannot tell): measured rows against the best of their column, paired over the "
        "same test images, p-values of all verdicts on this page corrected together (Holm)"
    )
    return '<ul class="notes">' + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>"


def _strips(table: Table) -> list[str]:
    drawn = [
        f'<div id="strip-{i}">{draw(strip)}</div>' for i, strip in enumerate(strips_of(table), 1)
    ]
    note = (
        "Dot: value. Line: 95 % interval over test images. Right is better on every axis. "
        "▲ ▼ ≈: against random weights of the same shape, where they are on the board."
    )
    return [f'<div class="strips">{"".join(drawn)}</div><p class="soft">{text(note)}</p>']


def _verdicts(table: Table, found: Standings) -> list[str]:
    blocks = []
    for column in table.columns:
        lines = [s.sentence for (_, c), s in found.items() if c == column and s.sentence]
        if lines:
            items = "".join(f"<li>{text(line)}</li>" for line in lines)
            blocks.append(f'<h3>{text(title_of(column, table))}</h3><ul class="plain">{items}</ul>')
    return blocks


def _protocols(table: Table, manifest: Manifest) -> str:
    rows = []
    for column in table.columns:
        known = manifest.protocols.get(column.benchmark)
        # what a name means here is what the published recipe is, and nothing is known of others
        meaning = f"{known.title}: {known.summary}" if known and column.official else ""
        how = "published recipe" if column.official else column.profile if column.protocol else ""
        rows.append(
            f"<dt>{text(title_of(column, table))}</dt><dd><code>{text(column.benchmark)} "
            f"{text(column.protocol)}</code> {text(how)} {text(column.ran)}<br>{text(meaning)}</dd>"
        )
    return f"<dl>{''.join(rows)}</dl>"


def _entry(entry: Entry) -> str:
    found = entry.verification
    signed = (
        f"signed by {found.signer}"
        if found.signer
        else "signed, the signature was not checked"
        if entry.signed
        else "not signed"
    )
    unproven = "".join(f"<li>{text(what)}</li>" for what in found.unproven)
    listed = f'<ul class="plain">{unproven}</ul>' if unproven else ""
    word = f"<details><summary>{len(found.unproven)} not proven</summary>{listed}</details>"
    return (
        f"<h3>Bundle {text(entry.letter)}: {text(entry.file)}</h3><p>verified, {text(signed)}, "
        f'{len(entry.runs)} results</p><pre tabindex="0"><code>mimbench verify {text(entry.file)} '
        f"--digest {text(found.digest)}</code></pre>{word if unproven else ''}"
    )


def _refused(refusal: Refusal) -> str:
    reasons = "".join(f"<li>{text(reason)}</li>" for reason in refusal.reasons)
    return (
        f'<div class="refused"><h3>Refused: {text(refusal.file)}</h3>'
        f'<ul class="plain">{reasons}</ul></div>'
    )
