"""What a reader should know before believing the table: faults first, then what to look at."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mimbench.results.record import NOT_AUDITED, Run
from mimbench.suite.report.markup import text
from mimbench.suite.report.overview import measured_rows, twin_of, verdict
from mimbench.suite.running.canary_check import CANARY_FILE
from mimbench.system.listing import first_few
from mimbench.system.logs import WARNED
from mimbench.tables.formats import PROFILES, heading
from mimbench.tables.rows import Row, Table
from mimbench.tables.table import TWIN, first_line

LOG, LOG_BYTES, MOST = "log.txt", 4 << 20, 6


@dataclass(frozen=True)
class Worry:
    """One thing that is wrong, or that may be."""

    level: Literal["fault", "look at"]
    what: str
    detail: str = ""


def worries_of(table: Table, runs: Sequence[Run]) -> list[Worry]:
    """Return everything that is worrying about an output folder, faults first."""
    found = [
        *_failed(runs),
        *_canary(runs),
        *_missing(table),
        *_no_better(table),
        *_deviations(table, runs),
        *_uncertain(table),
        *_code_and_data(runs),
        *_logs(runs),
    ]
    return sorted(found, key=lambda worry: worry.level != "fault")


def show_worries(worries: Sequence[Worry]) -> list[str]:
    """Return the list as HTML."""
    if not worries:
        return ["<p>Nothing: every cell has a number, and no check complained.</p>"]
    items = "".join(
        f'<li class="{"fault" if w.level == "fault" else "look"}"><b>{w.level}</b> '
        f"<span>{text(w.what)}"
        + (f"<small>{text(w.detail)}</small>" if w.detail else "")
        + "</span></li>"
        for w in worries
    )
    return [f'<ul class="worries">{items}</ul>']


def _failed(runs: Sequence[Run]) -> Iterator[Worry]:
    for _, r in runs:
        if r.status == "failed":
            yield Worry(
                "fault", f"{r.benchmark} of {r.weights['name']} failed", first_line(r.error)
            )


def _canary(runs: Sequence[Run]) -> Iterator[Worry]:
    """Yield what the small check ahead of a run said of each checkpoint."""
    for folder, name in dict.fromkeys((p.parent, r.weights["name"]) for p, r in runs):
        if name.startswith(TWIN):
            continue
        said = _read(folder / CANARY_FILE)
        if said is None:
            yield Worry("look at", f"the canary did not check {name}")
            continue
        for fault in _texts(said.get("faults")):
            yield Worry("fault", f"the canary on {name}: {fault}")
        if left := _texts(said.get("not_tried")):
            yield Worry("look at", f"the canary had no time for all of {name}", "; ".join(left))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _missing(table: Table) -> Iterator[Worry]:
    for row in measured_rows(table):
        gone = [heading(c, table) for c in table.columns if c not in row.values]
        if gone:
            yield Worry("look at", f"{row.label} did not run {_count(gone)}", first_few(gone, MOST))


def _no_better(table: Table) -> Iterator[Worry]:
    """Yield checkpoints that random weights beat, or equal."""
    rows = measured_rows(table)
    for row in rows:
        stand = {c: verdict(row, twin_of(row, rows), c) for c in table.columns}
        for what, words in (
            ("worse", "is worse than random weights in"),
            ("cannot tell", "cannot be distinguished from random weights in"),
        ):
            if named := [heading(c, table) for c, v in stand.items() if v == what]:
                yield Worry(
                    "look at", f"{row.label} {words} {_count(named)}", first_few(named, MOST)
                )


def _deviations(table: Table, runs: Sequence[Run]) -> Iterator[Worry]:
    """Yield where runs were not what the published protocol says."""
    for profile in dict.fromkeys(c.profile for c in table.columns):
        if profile in PROFILES:
            yield Worry("look at", PROFILES[profile])
    changed: dict[str, list[str]] = {}
    for _, r in runs:
        for key, value in r.overrides.items():
            changed.setdefault(f"{key}={value}", []).append(r.benchmark)
    for what, where in changed.items():
        yield Worry("look at", f"changed recipe: {what}", first_few(dict.fromkeys(where), MOST))
    for column in table.columns:
        if column.ran:
            yield Worry("look at", f"{column.title} did not run as its protocol says", column.ran)
    for name in dict.fromkeys(
        r.weights["name"] for _, r in runs if r.weights.get("audit") == NOT_AUDITED
    ):
        yield Worry("look at", f"{name} is {NOT_AUDITED}: nobody accounted for its tensors")


def _uncertain(table: Table) -> Iterator[Worry]:
    def bare(row: Row) -> list[str]:
        return [
            heading(c, table)
            for c, v in row.values.items()
            if v.value is not None and v.interval is None and len(v.each) < 2
        ]

    named = dict.fromkeys(title for row in measured_rows(table) for title in bare(row))
    if named:
        yield Worry("look at", f"no interval for {_count(list(named))}", first_few(named, MOST))


def _code_and_data(runs: Sequence[Run]) -> Iterator[Worry]:
    sources = [r.provenance for _, r in runs if r.status == "done"]
    if any(s.dirty for s in sources):
        count = sum(s.dirty for s in sources)
        yield Worry("look at", f"{count} cells ran from code with changes that no commit holds")
    commits = dict.fromkeys(s.commit[:10] for s in sources if s.commit)
    if len(commits) > 1:
        yield Worry("look at", f"cells come from {len(commits)} commits", first_few(commits, MOST))
    digests: dict[tuple[str, str], set[str]] = {}
    for _, r in runs:
        if r.data_digest.digest:
            digests.setdefault((r.benchmark, r.protocol), set()).add(r.data_digest.digest)
    for (benchmark, _), several in digests.items():
        if len(several) > 1:
            yield Worry(
                "fault",
                f"{benchmark}: not all rows saw the same data",
                first_few(sorted(several), MOST),
            )


def _logs(runs: Sequence[Run]) -> Iterator[Worry]:
    """Yield what the logs of finished cells warned of, the same words once."""
    where: dict[str, list[str]] = {}
    for path, r in runs:
        for line in dict.fromkeys(warnings_in(path / LOG)):
            where.setdefault(line, []).append(f"{r.benchmark} of {r.weights['name']}")
    often = sorted(where, key=lambda line: -len(where[line]))
    for line in often[:MOST]:
        yield Worry("look at", line, f"log of {first_few(where[line], 1)}")
    if rest := len(often[MOST:]):
        yield Worry("look at", f"{rest} more warnings in the logs")


def warnings_in(log: Path) -> list[str]:
    """Return what a cell's log warns of."""
    try:
        with log.open("rb") as file:
            content = file.read(LOG_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return []
    return re.findall(rf"^\d\d:\d\d:\d\d (?:\[rank \d+\] )?{WARNED}(.*)$", content, re.MULTILINE)


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} benchmark{'s' if len(names) > 1 else ''}"
