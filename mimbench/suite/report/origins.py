"""Where each number comes from, and the commands that make it again."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from mimbench.benchmarks.run_config import CONFIG_FILE
from mimbench.results.record import Result
from mimbench.suite.report.markup import text

SHOWN_LENGTH = 200
"""Longer notes of a task are in result.json, not in the report."""


def provenance_of(runs: Sequence[tuple[Path, Result]]) -> str:
    """Return what is known of each run, folded."""
    return "".join(
        f"<details><summary>{text(path.parent.name)} / {text(path.name)}</summary>"
        f"<dl>{_facts(result)}</dl></details>"
        for path, result in runs
    )


def _facts(r: Result) -> str:
    source = r.provenance
    facts = {
        "status": r.status if r.status == "done" else f"failed: {r.error}",
        "protocol": f"{r.protocol} ({r.profile}), task {r.task} version {r.version}",
        "weights": f"{r.weights['digest']} ({r.weights['format']} {r.weights.get('which', '')})",
        "metrics": ", ".join(f"{k} {v:.3f}" for k, v in r.metrics.items()),
        "code": f"commit {source.commit or 'unknown'}{', with changes' if source.dirty else ''}, "
        f"Python {source.python}",
        "libraries": ", ".join(f"{k} {v}" for k, v in source.libraries.items()),
        "machine": f"{source.device}, {source.host_cores} cores, {source.seconds:.0f} s, "
        f"peak {source.peak_memory_mb:.0f} MB, seed {source.seed}",
        "changed": ", ".join(f"{k}: {v}" for k, v in r.overrides.items()),
        "data": r.data,
        "notes": ", ".join(f"{k}: {v}" for k, v in r.notes.items() if len(str(v)) <= SHOWN_LENGTH),
    }
    return "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in facts.items() if v)


def repeat(out: Path, runs: Sequence[tuple[Path, Result]]) -> str:
    """Return the commands that make the table and each of its cells again."""
    commands = [
        f"python -m mimbench eval {shlex.quote(str(path / CONFIG_FILE))}" for path, _ in runs
    ]
    shown = "\n".join([f"python -m mimbench table {shlex.quote(str(out))}", *commands])
    return (
        "<p>Each cell alone, with the recipe that it was run with:</p>"
        f'<pre tabindex="0"><code>{text(shown)}</code></pre>'
    )
