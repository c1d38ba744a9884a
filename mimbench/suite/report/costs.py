"""What a run cost: time of each cell on one axis, the most memory, the machine."""

from collections.abc import Sequence

from mimbench.results.record import Result
from mimbench.suite.costs.footprint import gigabytes
from mimbench.suite.report.colours import RowLook
from mimbench.suite.report.gathered import Gathered
from mimbench.suite.report.markup import text
from mimbench.system.progress import clock


def costs(gathered: Gathered) -> list[str]:
    """Return the total in words, and bars."""
    everything = [
        (title, look, r) for title, found in gathered.benchmarks() for look, _, r in found
    ]
    if not everything:
        return []
    longest = max(r.provenance.seconds for _, _, r in everything)
    bars = "".join(_bar(title, look, r, longest) for title, look, r in everything)
    return [
        f"<p>{text(_total(everything))}</p>",
        f"<details><summary>Time and memory of each cell</summary>"
        f'<div class="costs">{bars}</div></details>',
    ]


def _total(everything: Sequence[tuple[str, RowLook, Result]]) -> str:
    """Return total, dearest cell, memory and machines in words."""
    spent: dict[str, float] = {}
    for _, look, r in everything:
        spent[look.label] = spent.get(look.label, 0.0) + r.provenance.seconds
    whole = sum(spent.values())
    each = ", ".join(f"{label} {clock(seconds)}" for label, seconds in spent.items())
    title, look, most = max(everything, key=lambda x: x[2].provenance.seconds)
    share = 100 * most.provenance.seconds / whole if whole else 0.0
    peak = max(r.provenance.peak_memory_mb for _, _, r in everything)
    machines = dict.fromkeys(
        f"{r.provenance.device}, {r.provenance.host_cores} cores" for _, _, r in everything
    )
    return (
        f"{len(everything)} cells took {clock(whole)} ({each}). The longest: {title} of {look.label}, "
        f"{clock(most.provenance.seconds)}, {share:.0f} % of it. Most memory in one cell: "
        f"{gigabytes(peak)}. Machine: {'; '.join(machines)}."
    )


def _bar(title: str, look: RowLook, result: Result, longest: float) -> str:
    source = result.provenance
    width = 100 * source.seconds / longest if longest else 0.0
    seed = f", seed {source.seed}" if source.seed else ""
    return (
        f'<div class="bar"><span>{text(title)}<small>{text(look.label)}{seed}</small></span>'
        f'<span><i class="{look.fill}-bar" style="width:{width:.1f}%;--tone:{look.tone}"></i></span>'
        f"<span>{clock(source.seconds)} · {gigabytes(source.peak_memory_mb)}</span></div>"
    )
