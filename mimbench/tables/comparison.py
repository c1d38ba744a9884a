"""Two rows side by side: statistics where protocols agree, the differing fields where they do not."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mimbench.benchmarks.manifest import Effect, Manifest, Reference
from mimbench.benchmarks.orders import NOT_PROTOCOL, protocol_config
from mimbench.benchmarks.records import statistics_of
from mimbench.benchmarks.survey import Question, survey
from mimbench.results.record import Result
from mimbench.scores.confidence import Comparison, compare_functions, compare_shares, verdict
from mimbench.scores.outcomes import Statistic
from mimbench.system.errors import UserError, did_you_mean

Run = tuple[Path, Result]
"""A run's folder and what it found."""


@dataclass(frozen=True)
class Difference:
    """One field in which two protocols differ, with what is known about its effect."""

    field: str
    a: Any
    b: Any
    known: tuple[str, ...]


def group_of(protocol: str, manifest: Manifest) -> str:
    """Return the group of a protocol id, also of one that no benchmark implements."""
    if protocol in manifest.benchmarks:
        return manifest.benchmarks[protocol].group
    known = manifest.protocols.get(protocol)
    return known.group if known else ""


def flatten(config: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Return nested fields as dotted names."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{at}{key}"
        out |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return out


def differences(
    a: Mapping[str, Any], b: Mapping[str, Any], group: str, effects: Sequence[Effect]
) -> list[Difference]:
    """Return just the fields in which two resolved configurations differ."""
    flat_a, flat_b = flatten(a), flatten(b)
    names = [n for n in {**flat_a, **flat_b} if flat_a.get(n, "-") != flat_b.get(n, "-")]
    return [
        Difference(n, flat_a.get(n, "-"), flat_b.get(n, "-"), known_effects(n, group, effects))
        for n in names
    ]


def known_effects(field: str, group: str, effects: Sequence[Effect]) -> tuple[str, ...]:
    """Return what is known about a field's effect in a group of benchmarks, with the source."""
    words = {field, *field.split(".")}
    return tuple(
        f"{e.known} [{e.source}]"
        for e in effects
        if words & set(e.fields) and (not e.groups or group in e.groups)
    )


def find_row(results: Sequence[Run], name: str) -> list[Run]:
    """Return the results of a row: by its name or the beginning of its digest."""
    found = [
        (p, r)
        for p, r in results
        if r.weights["name"] == name or r.weights["digest"].startswith(name)
    ]
    digests = {r.weights["digest"] for _, r in found}
    if len(digests) > 1:
        raise UserError(
            f"'{name}' names {len(digests)} checkpoints; use the beginning of a digest: "
            + ", ".join(sorted(d[:12] for d in digests))
        )
    return [(p, r) for p, r in found if r.status == "done"]


def find_published(references: Sequence[Reference], name: str) -> list[Reference]:
    """Return the published rows that `HPM`, `HPM 800` or `HPM B/16 800` means."""
    method, numbers = name, []
    while len(parts := method.rsplit(" ", 1)) == 2 and (parts[1].isdigit() or "/" in parts[1]):
        method = parts[0]
        numbers.append(parts[1])
    return [
        r
        for r in references
        if r.method == method and all(n == r.model or n == str(r.epochs) for n in numbers)
    ]


def compare_measured(
    a: Sequence[Run], b: Sequence[Run], tasks: Collection[str]
) -> tuple[Result, Comparison] | None:
    """Compare all seeds of two checkpoints under one protocol; None without outcomes on both sides."""
    metric = a[0][1].main_metric
    sides = [[statistics_of(path, r, tasks).get(metric) for path, r in side] for side in (a, b)]
    whole: list[list[Statistic]] = [[s for s in side if s] for side in sides]
    if any(len(w) < len(s) for w, s in zip(whole, sides, strict=True)):
        return None
    first = whole[0][0]
    if any(set(s.images) != set(first.images) for side in whole for s in side):
        raise UserError(
            f"{a[0][1].benchmark}: the two runs saw different test images; run one of them again"
        )
    mine, other = ([s.ordered(first.images) for s in side] for side in whole)
    rng = np.random.default_rng(0)
    shares = [[s.per_image for s in side if s.per_image is not None] for side in (mine, other)]
    if len(shares[0]) == len(mine) and len(shares[1]) == len(other):
        return a[0][1], compare_shares(metric, shares[0], shares[1], rng)
    return a[0][1], compare_functions(
        metric,
        [s.value for s in mine],
        [s.value for s in other],
        len(first.images),
        rng,
        first.resamples,
    )


def describe_pair(a: Sequence[Run], b: Sequence[Run], manifest: Manifest) -> list[str]:
    """Return the lines of the comparison of two measured rows."""
    names = a[0][1].weights["name"], b[0][1].weights["name"]
    lines: list[str] = []
    for benchmark in dict.fromkeys(r.benchmark for _, r in a):
        mine = [x for x in a if x[1].benchmark == benchmark]
        other = [x for x in b if x[1].benchmark == benchmark]
        shared = {r.protocol for _, r in mine} & {r.protocol for _, r in other}
        for protocol in sorted(shared):
            pair = [[x for x in side if x[1].protocol == protocol] for side in (mine, other)]
            found = compare_measured(pair[0], pair[1], manifest.tasks)
            text = (
                verdict(*names, found[1]) if found else "no outcomes were kept: nothing to compare"
            )
            lines.append(f"{benchmark}: {text}")
        if other and not shared:
            lines.append(f"{benchmark}: not comparable, the protocols differ:")
            config_a, config_b = mine[0][1].config, other[0][1].config
            lines += show(
                differences(config_a, config_b, group_of(benchmark, manifest), manifest.effects)
            )
    return lines or [f"{names[0]} and {names[1]} have no benchmark in common"]


def describe_published(
    a: Sequence[Run], references: Sequence[Reference], manifest: Manifest
) -> list[str]:
    """Return the lines of the comparison of a measured row with published ones."""
    lines: list[str] = []
    for _, result in a:
        group = group_of(result.benchmark, manifest)
        for reference in references:
            if (group_of(reference.protocol, manifest), reference.metric) != (
                group,
                result.main_metric,
            ):
                continue
            value = result.metrics[result.main_metric]
            half = result.intervals.get(result.main_metric)
            shown = f"{value:.2f}" + (f" ±{half:.2f}" if half else "")
            lines.append(
                f"{result.benchmark}: {shown} measured, {reference.value:.2f} published for "
                f"{reference.method} {reference.model} [{reference.source}]: {value - reference.value:+.2f}"
            )
            lines += _why(result, reference, manifest)
    return lines or ["no benchmark of this row has a published number of that name"]


def _why(result: Result, reference: Reference, manifest: Manifest) -> list[str]:
    lines = [f"  note: {reference.note}"] if reference.note else []
    if result.weights.get("model") != reference.model:
        lines.append(
            f"  model: {result.weights.get('model')} measured, {reference.model} published"
        )
    protocol = manifest.protocols[reference.protocol]
    official = published_config(reference.protocol, manifest)
    if official is None:
        return [
            *lines,
            f"  published under {reference.protocol}, which no benchmark here implements: {protocol.summary} [{protocol.source}]",
        ]
    found = differences(
        result.config, official, group_of(result.benchmark, manifest), manifest.effects
    )
    if not found:
        return [*lines, f"  same protocol ({reference.protocol}): {protocol.source}"]
    return [*lines, f"  protocols differ (measured | {reference.protocol}):", *show(found)]


def published_config(protocol: str, manifest: Manifest) -> dict[str, Any] | None:
    """Return the resolved published recipe of a protocol, None if no benchmark implements it."""
    if protocol not in manifest.benchmarks:
        return None
    dataset, config = manifest.recipe(protocol, "paper")
    question = Question(
        benchmark=protocol,
        task=manifest.benchmarks[protocol].task,
        dataset=dataset,
        config=config,
        needs_data=False,
    )
    [finding] = survey([question], None)
    if finding.problem:
        raise UserError(finding.problem)
    plain = {k: v for k, v in finding.config.items() if k not in NOT_PROTOCOL}
    return protocol_config(dataset, plain)


def show(found: Sequence[Difference]) -> list[str]:
    """Return differences as indented lines."""
    lines = []
    for d in found:
        lines.append(f"    {d.field}: {d.a} | {d.b}")
        lines += [f"      known: {text}" for text in d.known] or ["      known effect: not found"]
    return lines


def choose(results: Sequence[Run], name: str) -> list[Run]:
    """Return a measured row or fail with the names there are."""
    found = find_row(results, name)
    if not found:
        names = {r.weights["name"] for _, r in results}
        raise UserError(f"no finished results of '{name}'" + did_you_mean(name, names))
    return found
