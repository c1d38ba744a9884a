"""Two rows side by side: statistics where protocols agree, the differing fields where they do not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mimbench.benchmarks.manifest import Effect, Manifest, Reference
from mimbench.benchmarks.orders import NOT_PROTOCOL, protocol_config
from mimbench.benchmarks.survey import Question, survey
from mimbench.results import Result
from mimbench.scores.confidence import Comparison, compare_functions, compare_hits, verdict
from mimbench.scores.outcomes import RESAMPLES, Outcome, faithful_outcomes
from mimbench.system.errors import UserError, did_you_mean

PREFIXES = {
    "coco": "detection",
    "ade": "segmentation",
    "in-knn": "knn",
    "in-lin": "linear",
    "in-logreg": "linear",
    "in-ft": "finetune",
    "in-": "lowshot",
}


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
    return next((g for prefix, g in PREFIXES.items() if protocol.startswith(prefix)), "")


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


def find_row(results: Sequence[tuple[Path, Result]], name: str) -> list[tuple[Path, Result]]:
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
    a: Sequence[tuple[Path, Result]], b: Sequence[tuple[Path, Result]]
) -> tuple[Result, Comparison] | None:
    """Compare all seeds of two checkpoints under one protocol; None without outcomes on both sides."""
    metric = a[0][1].main_metric
    sides = [
        [faithful_outcomes(path, r.metrics).get(metric) for path, r in side] for side in (a, b)
    ]
    whole: list[list[Outcome]] = [[o for o in side if o] for side in sides]
    if any(len(w) < len(s) for w, s in zip(whole, sides, strict=True)):
        return None
    first = whole[0][0]
    if any(set(o.images) != set(first.images) for side in whole for o in side):
        raise UserError(
            f"{a[0][1].benchmark}: the two runs saw different test images; run one of them again"
        )
    rng = np.random.default_rng(0)
    if first.hits is not None:
        aligned = [[_aligned_hits(o) for o in side] for side in whole]
        return a[0][1], compare_hits(aligned[0], aligned[1], rng)
    if any(o.images != first.images for side in whole for o in side):
        raise UserError(
            f"{a[0][1].benchmark}: the two runs list the test images in different orders"
        )
    functions = [[o.value for o in side] for side in whole]
    return a[0][1], compare_functions(
        metric, functions[0], functions[1], len(first.images), rng, RESAMPLES[metric]
    )


def _aligned_hits(outcome: Outcome) -> np.ndarray:
    """Return hits in the order of the images' names: loaders may order them differently."""
    if outcome.hits is None:
        raise ValueError("only classification has hits")
    return outcome.hits[np.argsort(np.array(outcome.images), kind="stable")]


def describe_pair(
    a: Sequence[tuple[Path, Result]], b: Sequence[tuple[Path, Result]], manifest: Manifest
) -> list[str]:
    """Return the lines of the comparison of two measured rows."""
    names = a[0][1].weights["name"], b[0][1].weights["name"]
    lines: list[str] = []
    for benchmark in dict.fromkeys(r.benchmark for _, r in a):
        mine = [x for x in a if x[1].benchmark == benchmark]
        other = [x for x in b if x[1].benchmark == benchmark]
        shared = {r.protocol for _, r in mine} & {r.protocol for _, r in other}
        for protocol in sorted(shared):
            pair = [[x for x in side if x[1].protocol == protocol] for side in (mine, other)]
            found = compare_measured(pair[0], pair[1])
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
    a: Sequence[tuple[Path, Result]], references: Sequence[Reference], manifest: Manifest
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
            half = result.extra.get("intervals", {}).get(result.main_metric)
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


def choose(results: Sequence[tuple[Path, Result]], name: str) -> list[tuple[Path, Result]]:
    """Return a measured row or fail with the names there are."""
    found = find_row(results, name)
    if not found:
        names = {r.weights["name"] for _, r in results}
        raise UserError(f"no finished results of '{name}'" + did_you_mean(name, names))
    return found
