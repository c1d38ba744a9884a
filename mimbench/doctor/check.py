"""What a check found, and how that is shown."""

import json
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "warn", "fault"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding: `warn` leaves part of mimbench unusable or slow, `fault` has to be fixed."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def ok(name: str, detail: str) -> Check:
    """Return a finding that needs nothing."""
    return Check(name=name, status="ok", detail=detail)


def warn(name: str, detail: str, fix: str = "") -> Check:
    """Return a finding that limits what can be run."""
    return Check(name=name, status="warn", detail=detail, fix=fix)


def fault(name: str, detail: str, fix: str) -> Check:
    """Return a finding that has to be fixed, with the command that does it."""
    return Check(name=name, status="fault", detail=detail, fix=fix)


def python_module(name: str) -> str:
    """Return the command that runs a module of ours with the Python that runs now."""
    return f"{shlex.quote(sys.executable)} -m {name}"


def has_fault(checks: Sequence[Check]) -> bool:
    """Return whether any finding blocks."""
    return any(check.status == "fault" for check in checks)


def as_json(checks: Sequence[Check]) -> str:
    """Return the findings as a JSON object."""
    content = {"ok": not has_fault(checks), "checks": [asdict(check) for check in checks]}
    return json.dumps(content, indent=2) + "\n"


def as_table(checks: Sequence[Check]) -> str:
    """Return the findings for a reader: a line each, below it what fixes it."""
    width = max((len(check.name) for check in checks), default=0)
    columns = max(60, shutil.get_terminal_size((100, 24)).columns)
    lines: list[str] = []
    for check in checks:
        head = f"{check.status:<5}  {check.name:<{width}}  "
        lines += textwrap.wrap(
            check.detail,
            columns,
            initial_indent=head,
            subsequent_indent=" " * len(head),
            break_long_words=False,
            break_on_hyphens=False,
        ) or [head.rstrip()]
        # A command is never wrapped: it is there to be copied.
        lines += [f"{'':7}fix: {line}" for line in check.fix.splitlines()]
    return "\n".join([*lines, "", _verdict(checks)]) + "\n"


def _verdict(checks: Sequence[Check]) -> str:
    """Return the closing line."""
    counts = {
        status: sum(check.status == status for check in checks) for status in ("fault", "warn")
    }
    if counts["fault"]:
        return f"{counts['fault']} to fix, {counts['warn']} to know about, of {len(checks)} checks"
    return f"all {len(checks)} checks passed" + (
        f", {counts['warn']} with a remark" if counts["warn"] else ""
    )
