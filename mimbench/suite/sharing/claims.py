"""What of a run may be said in public: numbers with all that they rest on, and why others are left out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mimbench.benchmarks.basis import outdated
from mimbench.benchmarks.manifest import HubDataset, HubMetric, Manifest
from mimbench.results.record import NOT_AUDITED, Result, Run
from mimbench.system.errors import UserError, printable
from mimbench.tables.columns import columns_of, ran_as
from mimbench.tables.rows import Column, Value
from mimbench.tables.table import TWIN, first_line, read_results_with_folders, value_of

SAMPLE = "sample-"
"""How the names of sample data begin."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One number of the checkpoint."""

    column: Column
    """The benchmark and its protocol, with this number's metric."""
    value: Value
    main: bool
    """It is the benchmark's own number, the one in the table."""
    dataset: HubDataset | None
    metric: HubMetric | None
    """What the Hub calls both, where the recipe is the published one and the Hub has a name."""

    @property
    def number(self) -> float:
        """Return the value; a claim always has one."""
        assert self.value.value is not None
        return self.value.value


def checkpoint_runs(folder: Path) -> list[Run]:
    """Return the runs of one checkpoint.

    Args:
        folder: What `run` wrote, with one checkpoint beside random twins, or a checkpoint's folder in it.
    """
    folder = folder.absolute()
    runs = [(p, r) for p, r in read_results_with_folders(folder.parent) if p.parent == folder]
    if runs:
        return runs
    runs = read_results_with_folders(folder)
    if not runs:
        raise UserError(f"no results in {folder}; name the folder that a run wrote (--out)")
    places = {p.parent for p, r in runs if not r.weights["name"].startswith(TWIN)}
    if len(places) != 1:
        listed = "\n".join(sorted(map(str, places or {p.parent for p, _ in runs})))
        raise UserError(
            f"{folder} holds {len(places)} checkpoints; name the folder of one:\n{listed}"
        )
    return [(p, r) for p, r in runs if p.parent in places]


def unfit(folder: Path, result: Result) -> str:
    """Return why a result is not published, or ''."""
    if result.status != "done":
        return f"failed: {printable(first_line(result.error), 200)}"
    if result.profile == "demo" or str(result.config.get("dataset", "")).startswith(SAMPLE):
        return "sample data: says nothing about the published set"
    if result.weights.get("audit") == NOT_AUDITED:
        return f"{NOT_AUDITED}: nothing says that these are the weights of a file"
    if result.ran:
        return f"not what its protocol says: {ran_as(result)}"
    if outdated(result, folder.parent):
        return "stale: a run that it was built on has another result by now"
    return ""


def claims_of(runs: Sequence[Run], manifest: Manifest) -> list[Claim]:
    """Return the numbers of runs that are fit to be published, in the table's order.

    Args:
        runs: All runs of one checkpoint under the protocols in question, unfit ones left out.
        manifest: Titles, and the Hub's names.
    """
    results = [result for _, result in runs]
    return [
        c for column in columns_of(results, manifest) for c in _claims(column, results, manifest)
    ]


def _claims(column: Column, results: Sequence[Result], manifest: Manifest) -> Iterator[Claim]:
    here = [
        r
        for r in results
        if (r.benchmark, r.protocol, ran_as(r)) == (column.benchmark, column.protocol, column.ran)
    ]
    others = [m for m in manifest.hub.metrics if m != column.metric]
    shared = [m for m in others if all(m in r.metrics for r in here)]
    dataset = manifest.hub.datasets.get(str(here[0].config.get("dataset", "")))
    for metric in (column.metric, *shared):
        known = column.official and dataset is not None
        yield Claim(
            column=(mine := replace(column, metric=metric)),
            value=value_of(here, mine),
            main=metric == column.metric,
            dataset=dataset if known else None,
            metric=manifest.hub.metrics.get(metric) if known else None,
        )
