"""Why a measured number differs from a published one: the fields in which the recipes differ."""

import contextlib
import json
from pathlib import Path
from typing import Any

from mimbench.benchmarks.manifest import Manifest, Reference
from mimbench.benchmarks.preflight import RecipeQuery, preflight
from mimbench.results.record import Result
from mimbench.system.config import to_mapping
from mimbench.system.errors import UserError
from mimbench.system.files import cache_folder, value_digest, write_json
from mimbench.system.source import ROOT
from mimbench.tables.columns import ran_as
from mimbench.tables.differences import differences, group_of, resolved, show


def why(result: Result, reference: Reference, manifest: Manifest) -> list[str]:
    """Return the lines that say in what a run and a published number differ."""
    lines = [f"  note: {reference.note}"] if reference.note else []
    if result.weights.get("model") != reference.model:
        lines.append(
            f"  model: {result.weights.get('model')} measured, {reference.model} published"
        )
    protocol = manifest.protocols[reference.protocol]
    if ran := ran_as(result):
        lines.append(f"  not run as the protocol says: {ran}")
    if unpublished := result.notes.get("unpublished"):
        lines.append(f"  {unpublished}")
    official = published_config(reference.protocol, manifest, reference.model)
    if official is None:
        return [
            *lines,
            f"  published under {reference.protocol}, which no benchmark here implements: {protocol.summary} [{protocol.source}]",
        ]
    found = differences(
        resolved(result), official, group_of(result.benchmark, manifest), manifest.effects
    )
    if not found and (ran or unpublished):
        return lines
    if not found:
        return [*lines, f"  same protocol ({reference.protocol}): {protocol.source}"]
    return [*lines, f"  protocols differ (measured | {reference.protocol}):", *show(found)]


def published_config(protocol: str, manifest: Manifest, model: str) -> dict[str, Any] | None:
    """Return the published recipe of a protocol for a model, None if no benchmark implements it.

    Args:
        protocol: The protocol's id.
        manifest: Benchmarks and protocols.
        model: `B/16`: what depends on the size is filled in for it.
    """
    if protocol not in manifest.benchmarks:
        return None
    dataset, config = manifest.recipe(protocol, "paper")
    query = RecipeQuery(
        benchmark=protocol,
        task=manifest.benchmarks[protocol].task,
        dataset=dataset,
        config=config,
        needs_data=False,
    )
    where = _cached(query, model)
    if where is not None and where.is_file():
        return dict(json.loads(where.read_text(encoding="utf-8")))
    [report] = preflight([query], None, models=[model])
    if report.problem:
        raise UserError(report.problem)
    found = {**report.canonical, **(report.resolved[0] if report.resolved else {})}
    if where is not None:
        # a cache that cannot be written costs a few seconds
        with contextlib.suppress(UserError):
            write_json(where, found)
    return found


def _cached(query: RecipeQuery, model: str) -> Path | None:
    """Return where the answer is kept: asking the task takes seconds. None for a task from elsewhere."""
    if not ROOT.joinpath(*query.task.split(".")).with_suffix(".py").is_file():
        return None
    key = value_digest([to_mapping(query), model, code_state()])
    return cache_folder() / "published" / f"{key[:24]}.json"


def code_state() -> list[tuple[str, int, int]]:
    """Return path, size and time of all code: a change of any file may change what a recipe means."""
    tops = sorted(path.parent for path in ROOT.glob("*/__init__.py"))
    files = [path for top in tops for path in sorted(top.rglob("*.py"))]
    return [
        (path.relative_to(ROOT).as_posix(), (stat := path.stat()).st_size, stat.st_mtime_ns)
        for path in files
    ]
