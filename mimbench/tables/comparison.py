"""Two rows side by side: statistics where protocols agree, the differing fields where they do not."""

from collections.abc import Collection, Sequence
from statistics import fmean

import numpy as np

from mimbench.benchmarks.manifest import Manifest, Reference
from mimbench.benchmarks.records import statistics_of
from mimbench.results.record import Result, Run
from mimbench.scores.outcomes import Statistic
from mimbench.scores.recipes import PairedGap, paired_gap
from mimbench.scores.verdicts import Comparison, compare_functions, compare_shares, verdict
from mimbench.system.errors import UserError, did_you_mean
from mimbench.tables.columns import ran_as
from mimbench.tables.differences import differences, group_of, resolved, show
from mimbench.tables.recipes import why
from mimbench.tables.table import mean_gap

HOLM = (
    "{count} verdicts at once: each p is corrected for all of them (Holm), so that the chance of even one "
    "false difference among them stays below 5 %"
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
    a: Sequence[Run], b: Sequence[Run], tasks: Collection[str], metric: str = ""
) -> tuple[Result, Comparison] | None:
    """Compare all seeds of two checkpoints under one protocol; None without outcomes on both sides.

    Args:
        a: Runs of one.
        b: Runs of the other.
        tasks: Names of the tasks that exist.
        metric: Which figure; '' for the main one.
    """
    metric = metric or a[0][1].main_metric
    digests = {r.data_digest.digest for _, r in [*a, *b]} - {""}
    if len(digests) > 1:
        raise UserError(
            f"{a[0][1].benchmark}: the two runs saw different data ({', '.join(sorted(digests))}); "
            "run one of them again"
        )
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
    """Return the lines of the comparison of two measured rows; several verdicts are corrected."""
    names = a[0][1].weights["name"], b[0][1].weights["name"]
    lines: list[tuple[str, Comparison | str, Result, PairedGap | None]] = []
    for benchmark in dict.fromkeys(r.benchmark for _, r in a):
        mine = [x for x in a if x[1].benchmark == benchmark]
        other = [x for x in b if x[1].benchmark == benchmark]
        shared = [
            (ours, theirs)
            for ours in _by_recipe(mine)
            for theirs in _by_recipe(other)
            if same_recipe(ours[0][1], theirs[0][1])
        ]
        for pair in shared:
            found = compare_measured(pair[0], pair[1], manifest.tasks)
            what = found[1] if found else "no outcomes were kept: nothing to compare"
            lines.append((benchmark, what, pair[0][0][1], gap_of(*pair)))
        if other and not shared:
            apart = _apart(mine[0][1], other[0][1], manifest)
            lines.append((benchmark, apart, mine[0][1], None))
    among = [what.p for _, what, _, _ in lines if isinstance(what, Comparison)]
    shown = [
        f"{benchmark}: "
        + (
            what
            if isinstance(what, str)
            else verdict(
                *names, what, trains=r.trains, lower=r.lower_is_better, among=among, gap=gap
            )
        )
        for benchmark, what, r, gap in lines
    ]
    if len(among) > 1:
        shown.append(HOLM.format(count=len(among)))
    return shown or [f"{names[0]} and {names[1]} have no benchmark in common"]


def gap_of(a: Sequence[Run], b: Sequence[Run]) -> PairedGap | None:
    """Return the difference of two rows under each setting that all their seeds were measured with."""
    sides = [[r for _, r in side] for side in (a, b)]
    means = [fmean(r.metrics[r.main_metric] for r in side) for side in sides]
    return paired_gap(means[0], mean_gap(sides[0]), means[1], mean_gap(sides[1]))


def _by_recipe(runs: Sequence[Run]) -> list[list[Run]]:
    """Return runs of one benchmark in groups of one protocol each, in an order that always is the same."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run[1].protocol, ran_as(run[1])), []).append(run)
    return [groups[key] for key in sorted(groups)]


def same_recipe(a: Result, b: Result) -> bool:
    """Tell whether two runs followed one recipe.

    A field that the model's size decides may be spelled out in one of them: the protocols differ
    then, what they come to does not.
    """
    alike = (a.task, a.version, ran_as(a)) == (b.task, b.version, ran_as(b))
    return alike and (a.protocol == b.protocol or resolved(a) == resolved(b))


def _apart(a: Result, b: Result, manifest: Manifest) -> str:
    """Return why two runs of one benchmark cannot be compared."""
    if a.protocol == b.protocol:
        how = [ran_as(r) or "as the protocol says" for r in (a, b)]
        return f"not comparable, the runs were not alike: {how[0]} | {how[1]}"
    found = differences(resolved(a), resolved(b), group_of(a.benchmark, manifest), manifest.effects)
    return "\n".join(["not comparable, the protocols differ:", *show(found)])


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
                f"{reference.method} {reference.model} [{reference.source}]: "
                f"measured - published = {value - reference.value:+.2f}"
            )
            lines += _gap_around(result, reference) + why(result, reference, manifest)
    return lines or ["no benchmark of this row has a published number of that name"]


def _gap_around(result: Result, reference: Reference) -> list[str]:
    """Return a line where the published value lies inside the measured row's own recipe gap."""
    gap = result.gap
    if gap is None or not gap.complete or not gap.low <= reference.value <= gap.high:
        return []
    return [
        f"    inside the recipe gap: the same weights score {gap.low:.2f} to {gap.high:.2f} under "
        f"{len(gap.settings)} neighbouring settings: cannot tell the two apart"
    ]


def choose(results: Sequence[Run], name: str) -> list[Run]:
    """Return a measured row or fail with the names there are."""
    found = find_row(results, name)
    if not found:
        names = {r.weights["name"] for _, r in results}
        raise UserError(f"no finished results of '{name}'" + did_you_mean(name, names))
    return found
