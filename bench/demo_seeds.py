"""The demo over several pretraining seeds: does pretraining beat random weights in every column?

    python -m bench.demo_seeds 0 1 7 [--out runs/demo-seeds]

Pretrains the demo's recipe once for each seed, evaluates every network and their common random twin on
the demo's benchmarks, and prints a table in Markdown: each cell with its own 95 % interval, and under it
the paired difference to the twin (the same test images resampled for both). Finished parts are kept. The
heads' seed and all settings are the same for every row; only the pretraining's seed changes.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mimbench.benchmarks.manifest import Manifest, load_manifest
from mimbench.benchmarks.preflight import child_environment
from mimbench.results.record import Result, Run
from mimbench.scores.confidence import Interval
from mimbench.suite.demo import NAME, pretrain_demo
from mimbench.system.errors import UserError
from mimbench.system.options import Parser, add_option
from mimbench.tables.comparison import compare_measured
from mimbench.tables.table import TWIN, read_results_with_folders

METRICS: Mapping[str, tuple[str, ...]] = {
    "transfer.detection.vitdet": ("mask_ap",),
    "transfer.segmentation.upernet": ("miou_things",),
}
"""What is shown of a task beside its main metric."""


class DemoColumn(NamedTuple):
    """One column of the demo: the twin's value, then each seed's with its lead over the twin."""

    title: str
    twin: str
    seeds: list[str]
    leads: list[Interval | None]
    """Paired differences, better is positive; None where no outcomes were kept."""

    beside: bool = False
    """A figure that is shown beside the main one; the verdict does not wait for its interval."""

    @property
    def apart(self) -> str:
        """Return the verdict in a word."""
        return "-" if self.beside and None in self.leads else "yes" if self.shown else "no"

    @property
    def shown(self) -> bool:
        """Tell whether every seed is ahead, the whole interval above 0."""
        return all(lead is not None and lead.low > 0 for lead in self.leads)


def value(result: Result, metric: str) -> str:
    """Return a figure with its half interval."""
    half = result.intervals.get(metric)
    return f"{result.metrics[metric]:.1f}" + (f" ±{half:.1f}" if half else "")


def lead(own: Run, twin: Run, metric: str, manifest: Manifest) -> Interval | None:
    """Return by how much a run beats the twin's, over the same test images."""
    found = compare_measured([own], [twin], manifest.tasks, metric)
    if found is None:
        return None
    interval = found[1].sampling
    lower = own[1].lower_is_better
    return Interval(-interval.high, -interval.low) if lower else interval


def read_lines(
    runs: Sequence[Run], manifest: Manifest, names: Sequence[str], benchmarks: Sequence[str]
) -> list[DemoColumn]:
    """Return the columns that the twin and all seeds have."""
    by_name: dict[tuple[str, str], Run] = {
        (r.benchmark, r.weights["name"]): (p, r) for p, r in runs
    }
    lines = []
    for benchmark in benchmarks:
        entry = manifest.benchmarks[benchmark]
        twin = next(
            (run for (b, name), run in by_name.items() if b == benchmark and name.startswith(TWIN)),
            None,
        )
        own = [by_name.get((benchmark, name)) for name in names]
        if twin is None or None in own:
            raise UserError(
                f"{benchmark} is not finished for every seed; run the same command again"
            )
        for metric in (twin[1].main_metric, *METRICS.get(entry.task, ())):
            beside = twin[1].beside.get(metric, metric)
            title = entry.title if metric == twin[1].main_metric else f"{entry.title}: {beside}"
            lines.append(
                DemoColumn(
                    title,
                    value(twin[1], metric),
                    [value(run[1], metric) for run in own if run],
                    [lead(run, twin, metric, manifest) for run in own if run],
                    beside=metric != twin[1].main_metric,
                )
            )
    return lines


def markdown(lines: Sequence[DemoColumn], seeds: Sequence[int]) -> str:
    """Return the table."""
    head = [
        "",
        "random twin",
        *(f"seed {s}" for s in seeds),
        *(f"lead {s}" for s in seeds),
        "apart",
    ]
    rows = [head, ["---"] * len(head)]
    for line in lines:
        leads = [f"{x.low:+.1f} to {x.high:+.1f}" if x else "-" for x in line.leads]
        rows.append([line.title, line.twin, *line.seeds, *leads, line.apart])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Pretrain, evaluate, print; 0 only if every column is apart for every seed."""
    parser = Parser(prog="python -m bench.demo_seeds", description=__doc__)
    parser.add_argument(
        "seeds", type=int, nargs="*", default=[0, 1, 7], help="pretraining seeds; default: 0 1 7"
    )
    add_option(parser, "--out", "default: runs/demo-seeds", default=Path("runs/demo-seeds"))
    add_option(parser, "--jobs", "cells side by side; default: 2", default=2)
    args = parser.parse_args(argv)
    names = [f"seed-{seed}" if seed else NAME for seed in args.seeds]
    found = [pretrain_demo(args.out / f"pretrain-{seed}", seed=seed) for seed in args.seeds]
    command = [sys.executable, "-m", "mimbench", "run", "--profile", "demo", "--twin"]
    command += ["--no-canary", "--out", str(args.out), "--jobs", str(args.jobs)]
    command += [f"{name}={path}" for name, path in zip(names, found, strict=True)]
    code = subprocess.run(command, env=child_environment(), stdout=2, check=False).returncode
    if code:
        return code
    manifest = load_manifest()
    runs = read_results_with_folders(args.out)
    lines = read_lines(runs, manifest, names, manifest.choose("demo", ()))
    sys.stdout.write(markdown(lines, args.seeds))
    return 1 if any(line.apart == "no" for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
