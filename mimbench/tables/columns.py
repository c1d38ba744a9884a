"""The columns of a table: one for each benchmark, protocol and way in which a run fell short of it."""

from collections.abc import Sequence
from pathlib import Path

from mimbench.benchmarks.locations import OWN
from mimbench.benchmarks.manifest import Manifest
from mimbench.doctor.data import ALIASES, LAYOUTS
from mimbench.results.record import Result
from mimbench.tables.rows import Column


def columns_of(results: Sequence[Result], manifest: Manifest) -> list[Column]:
    """Return the columns in the manifest's order, published recipes first."""
    order = {name: i for i, name in enumerate(manifest.benchmarks)}
    known: dict[tuple[str, str, str], Column] = {}
    # a failure does not know which way its metric is better
    for r in sorted(results, key=lambda r: r.status != "done"):
        failed_only = r.status == "failed" and not r.protocol
        key = (r.benchmark, r.protocol, ran_as(r))
        if key in known or failed_only:
            continue
        known[key] = _column(r, manifest, official=_official(key, results))
    for r in results:
        if all(c.benchmark != r.benchmark for c in known.values()):
            known[r.benchmark, r.protocol, ""] = _column(r, manifest, official=False)
    return sorted(
        known.values(),
        key=lambda c: (
            order.get(c.benchmark, len(order)),
            c.benchmark,
            not c.official,
            c.protocol,
            c.ran,
        ),
    )


def _official(key: tuple[str, str, str], results: Sequence[Result]) -> bool:
    # a failure under the same protocol may have another recipe behind it: all must be the paper's;
    # what one run changed without a change of the digest moves nothing
    same = [o for o in results if (o.benchmark, o.protocol) == key[:2]]
    plain = any(o.status == "done" and not o.overrides for o in same)
    return not key[2] and all(
        o.profile == "paper"
        and not is_own(o)
        and (not o.overrides or (plain and o.status == "done"))
        for o in same
    )


def _column(result: Result, manifest: Manifest, *, official: bool) -> Column:
    benchmark = manifest.benchmarks.get(result.benchmark)
    title = benchmark.title if benchmark else result.benchmark
    return Column(
        result.benchmark,
        result.profile,
        result.protocol,
        own_title(title, result) if is_own(result) else title,
        result.main_metric,
        official,
        ran=ran_as(result),
        lower=result.lower_is_better,
    )


def ran_as(result: Result) -> str:
    """Return in words where a run was not what its protocol says; '' where it was."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.ran.items())


def is_own(result: Result) -> bool:
    """Return whether the data is the user's own."""
    return str(result.config.get("dataset", "")).startswith(OWN)


def own_title(title: str, result: Result) -> str:
    """Return a column's title with the data's own name in the place of the published set's."""
    layout = str(result.config["dataset"]).removeprefix(OWN).rpartition("-")[0]
    if layout in LAYOUTS:
        title = title.removeprefix(f"{LAYOUTS[layout].TITLE} ")
    folder = Path(result.data)
    usual = {layout, *ALIASES.get(layout, ())}
    name = folder.parent.name if folder.name in usual else folder.name
    return f"{name or 'own data'}: {title}"
