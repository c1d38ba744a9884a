"""What the experiment says: the table with intervals, and a verdict only where it can decide."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mimbench.scores.confidence import bootstrap_mean, percentile_interval
from mimbench.scores.verdicts import spread
from pretrain.compare.blocks import HITS, Budget, records
from pretrain.compare.decide import (
    blocks_needed,
    detectable,
    holm,
    non_inferiority,
    power,
    sign_flip,
    t_interval,
)
from pretrain.compare.design import Design

Found = Mapping[tuple[str, int], Mapping[str, Any]]
"""Arm and block -> what its run left."""


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """An arm against the reference, in the blocks that have both."""

    arm: str
    values: Sequence[float]
    differences: Sequence[float]
    p: float | None = None
    """Of the sign flips; for tested arms after Holm."""
    images: tuple[float, float] | None = None
    """95 % interval over test images, blocks held fixed."""
    seconds: float = math.nan


def collect(out: Path, design: Design, budget: Budget) -> Found:
    """Return the runs of a budget that belong to this design."""
    digest = design.digest()
    return {
        (r["arm"], r["seed"]): r
        for r in records(out)
        if r["design"] == digest and r["budget"] == budget
    }


def paired(found: Found, design: Design, arm: str, base: str, outcome: str) -> list[float]:
    """Return arm less base in every block that has both."""
    both = [seed for seed in design.seeds if (arm, seed) in found and (base, seed) in found]
    return [
        found[arm, seed]["scores"][outcome] - found[base, seed]["scores"][outcome] for seed in both
    ]


def rows(design: Design, found: Found, baseline: Found | None = None) -> list[ArmRow]:
    """Return all arms against the reference; p-values of the tested ones after Holm.

    Args:
        design: The experiment.
        found: Its runs.
        baseline: Where the reference's runs are, if not among them.
    """
    merged = {**{k: v for k, v in (baseline or {}).items() if k[0] == design.reference}, **found}
    differences = {
        arm: paired(merged, design, arm, design.reference, design.outcome) for arm in design.arms
    }
    raw = {arm: sign_flip(d) for arm, d in differences.items() if len(d) > 1}
    tested = holm({arm: raw[arm] for arm in design.named("tested") if arm in raw})
    out = []
    for arm in design.arms:
        own = [merged[arm, s] for s in design.seeds if (arm, s) in merged]
        if not own:
            continue
        out.append(
            ArmRow(
                arm=arm,
                values=[r["scores"][design.outcome] for r in own],
                differences=differences[arm],
                p=None if arm == design.reference else tested.get(arm, raw.get(arm)),
                images=over_images(merged, design, arm),
                seconds=float(np.mean([r["seconds"] for r in own])),
            )
        )
    return out


def over_images(found: Found, design: Design, arm: str) -> tuple[float, float] | None:
    """Return the interval of the mean difference over test images: paired, blocks held fixed."""
    both = [s for s in design.seeds if (arm, s) in found and (design.reference, s) in found]
    if not both or arm == design.reference:
        return None
    per_image = np.mean(
        [_hits(found[arm, s], design) - _hits(found[design.reference, s], design) for s in both],
        axis=0,
    )
    interval = percentile_interval(100 * bootstrap_mean(per_image, np.random.default_rng(0)))
    return interval.low, interval.high


def _hits(record: Mapping[str, Any], design: Design) -> np.ndarray:
    with np.load(record["folder"] / HITS) as file:
        bits = np.unpackbits(file[design.outcome])[: design.probe.test]
    return bits.astype(np.float64)


def verdict(design: Design, found: Found) -> tuple[bool, list[str]]:
    """Return whether the experiment decides anything, and why not or what."""
    missing = [(a, s) for a in design.arms for s in design.seeds if (a, s) not in found]
    if missing:
        done = len(design.arms) * design.blocks - len(missing)
        whole = sum(all((a, s) in found for a in design.arms) for s in design.seeds)
        return False, [
            f"**Decides nothing yet**: {done} of {len(design.arms) * design.blocks} runs are done, "
            f"{whole} of {design.blocks} blocks are complete."
        ]
    faults = unpaired(design, found) + assay(design, found)
    if faults:
        return False, ["**Decides nothing**: " + "; ".join(faults) + "."]
    lines = []
    table = {row.arm: row for row in rows(design, found)}
    for arm in design.named("tested"):
        row = table[arm]
        mean, p = float(np.mean(row.differences)), row.p if row.p is not None else 1.0
        if p <= design.level:
            word = "better" if mean > 0 else "worse"
            lines.append(f"{arm} is {word} than {design.reference} by {abs(mean):.2f} (p {p:.3f}).")
        else:
            sd = spread(row.differences) or 0.0
            least = detectable(sd, design.blocks, design.first_step) if sd else 0.0
            lines.append(
                f"No difference shown between {arm} and {design.reference} ({mean:+.2f}, p {p:.3f}); "
                f"{least:.1f} points would have been found in 80 of 100 such experiments."
            )
    return True, lines + equivalences(design, found)


def assay(design: Design, found: Found) -> list[str]:
    """Return why the experiment could not have found anything: its control or its noise floor."""
    faults = []
    control, noise = design.named("control")[0], design.named("noise")[0]
    lost = paired(found, design, control, design.reference, design.outcome)
    if not (np.mean(lost) < 0 and sign_flip(lost) <= design.level):
        faults.append(
            f"the control '{control}' is known to be worse and was not found to be "
            f"({np.mean(lost):+.2f}, p {sign_flip(lost):.3f})"
        )
    same = paired(found, design, noise, design.reference, design.outcome)
    interval = t_interval(same)
    if interval is not None and not interval.covers(0.0):
        faults.append(
            f"'{noise}' differs from itself ({interval.low:+.2f} to {interval.high:+.2f})"
        )
    return faults


def unpaired(design: Design, found: Found) -> list[str]:
    """Return what the arms of a block do not share though they should."""
    faults = []
    for seed in design.seeds:
        for what in ("start", "order"):
            values = {found[arm, seed][what] for arm in design.arms if (arm, seed) in found}
            if len(values) > 1:
                faults.append(f"the arms of block {seed} do not share their {what}")
    return faults


def equivalences(design: Design, found: Found) -> list[str]:
    """Return the sentences on arms that are to be as good as another."""
    lines = []
    for arm, settings in design.arms.items():
        if settings.as_good_as is None:
            continue
        result = non_inferiority(
            paired(found, design, arm, settings.as_good_as, design.outcome), design.margin
        )
        word = "is" if result.shown else "is not shown to be"
        lines.append(
            f"{arm} {word} as good as {settings.as_good_as} within {design.margin:g} "
            f"(at least {result.low:+.2f} with 95 % confidence, p {result.p:.3f})."
        )
    return lines


def table(design: Design, found: Found, baseline: Found | None = None) -> str:
    """Return all arms as a Markdown table."""
    lines = [
        f"| arm | blocks | {design.outcome} top-1 | less {design.reference} | 95 % over blocks | "
        "all together | 95 % over images | p | s |",
        "|---" * 9 + "|",
    ]
    many = len(design.named("tested"))
    for row in rows(design, found, baseline):
        sd = spread(row.values)
        value = f"{np.mean(row.values):.1f}" + (f" ± {sd:.1f}" if sd is not None else "")
        cells = [row.arm, str(len(row.values)), value]
        if row.arm == design.reference or not row.differences:
            cells += ["-"] * 5
        else:
            gap = f"{np.mean(row.differences):+.2f}"
            gap_sd = spread(row.differences)
            cells.append(gap + (f" (sd {gap_sd:.1f})" if gap_sd is not None else ""))
            for comparisons in (1, many):
                interval = t_interval(row.differences, comparisons=comparisons)
                cells.append("-" if interval is None else _span(interval.low, interval.high))
            cells.append("-" if row.images is None else _span(*row.images))
            cells.append("-" if row.p is None else f"{row.p:.3f}")
        lines.append("| " + " | ".join([*cells, f"{row.seconds:.0f}"]) + " |")
    return "\n".join(lines)


def _span(low: float, high: float) -> str:
    return f"{low:+.1f} to {high:+.1f}"


def secondary(design: Design, found: Found) -> str:
    """Return every outcome's mean and spread for every arm; nothing is tested on them."""
    names = ["ridge", "knn", "ridge_class", "knn_class"]
    lines = [f"| arm | {' | '.join(names)} | loss under random masks |", "|---" * 6 + "|"]
    for arm in design.arms:
        own = [found[arm, s] for s in design.seeds if (arm, s) in found]
        if own:
            columns = [[r["scores"][n] for r in own] for n in names]
            if all("quality" in r for r in own):
                columns.append([r["quality"]["reconstruction"]["loss"] for r in own])
            cells = [_mean(values, 3 if i == len(names) else 1) for i, values in enumerate(columns)]
            lines.append("| " + " | ".join([arm, *cells]) + " |")
    return "\n".join(lines)


def qualities(design: Design, found: Found) -> str:
    """Return how well difficulties are predicted: rank correlation, share of the hardest found."""
    lines = [
        "| arm | order from | rank correlation | share of the hardest found |",
        "|---" * 4 + "|",
    ]
    for arm in design.arms:
        own = [
            found[arm, s]["quality"] for s in design.seeds if "quality" in found.get((arm, s), {})
        ]
        for name in own[0] if own else ():
            if name != "reconstruction":
                ranks, shares = ([q[name][k] for q in own] for k in ("rank", "found"))
                lines.append(f"| {arm} | {name} | {_mean(ranks, 3)} | {_mean(shares, 3)} |")
    return "\n".join(lines)


def _mean(values: Sequence[float], digits: int = 1) -> str:
    sd = spread(values)
    return f"{np.mean(values):.{digits}f}" + (f" ± {sd:.{digits}f}" if sd is not None else "")


def planned(design: Design) -> str:
    """Return, before anything runs, what the experiment could find."""
    tested = len(design.named("tested"))
    lines = [
        f"{len(design.arms)} arms ({tested} tested against {design.reference}), {design.blocks} "
        f"blocks, outcome: {design.outcome}. Smallest p of {design.blocks} sign flips: "
        f"{2.0 ** (1 - design.blocks):.4f}; the smallest of {tested} must reach "
        f"{design.first_step:.4f} (Holm).",
        "",
        "| sd of a paired difference | found in 80 of 100 (one test) | (Holm's first step) | "
        "blocks for 1 point | for 2 points | power for 1 point |",
        "|---" * 6 + "|",
    ]
    for sd in sorted({0.7, 1.0, design.expected_sd, 2.0, 3.0}):
        needed = [blocks_needed(e, sd, design.first_step) for e in (1.0, 2.0)]
        lines.append(
            f"| {sd:g}{' (expected)' if sd == design.expected_sd else ''} | "
            f"{detectable(sd, design.blocks, design.level):.1f} | "
            f"{detectable(sd, design.blocks, design.first_step):.1f} | "
            f"{' | '.join('over 2000' if n is None else str(n) for n in needed)} | "
            f"{power(1.0, sd, design.blocks, design.first_step):.2f} |"
        )
    return "\n".join(lines)
