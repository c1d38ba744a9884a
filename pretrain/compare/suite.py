"""`python -m pretrain.compare suite`: one tiny pretraining in many arms, scored alike, over seeds.

The arms are every masking strategy, and HPM taken apart: MAE, loss prediction with random masks,
hard masks. All train by one recipe on the sample data, with the same images, steps and seeds; a twin
with random weights stands beside them for orientation. The benchmarks are those of benchmarks.yaml
in its demo profile. Runs and cells that are done are kept, so that the command can be interrupted,
and repeated with more seeds or benchmarks. Needs no network.
"""

import argparse
import logging
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimbench.benchmarks.cells import (
    Cell,
    Request,
    make_cells,
    read_candidate,
)
from mimbench.benchmarks.lifecycle import finished, run_here
from mimbench.benchmarks.manifest import DEFAULT_FILE, Manifest, load_manifest
from mimbench.checkpoints.files import write_weights
from mimbench.system.config import parse_overrides
from mimbench.system.errors import UserError
from mimbench.system.exit_codes import ExitCode, run_command
from mimbench.system.files import write_json
from mimbench.system.logs import configure_logging
from mimbench.system.options import Parser, add_option
from mimbench.system.runtime import Ranks
from mimbench.task import Machine
from mimbench.vit.weights import random_weights
from pretrain.checkpoints.handover import ENCODER
from pretrain.checkpoints.stored import CARD
from pretrain.compare.arms import ARMS, ORACLES, TWIN, arms_of, changes_of
from pretrain.config import Config, read_config
from pretrain.train import train

logger = logging.getLogger(__name__)

BENCHMARKS = "in-knn,in-lin-mae,in-logreg,coco-vitdet-12,ade-upernet-160"

Scores = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Arm -> seed -> benchmark -> its main number."""


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """What is compared, and how."""

    out: Path
    seeds: int
    benchmarks: Sequence[str]
    arms: Sequence[str]
    recipe: str = "demo"
    overrides: Sequence[str] = ()
    """Changes of the pretraining recipe, the same for all arms."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """Changes of the benchmarks' recipes, the same for all arms."""
    device: str = "auto"
    done: bool = False
    """Table what lies there and compute nothing."""

    def folder(self, arm: str, seed: int) -> Path:
        """Return where an arm's run lies."""
        slug = "".join(c if c.isalnum() else " " for c in arm).lower()
        return self.out / "pretrain" / f"{'-'.join(slug.split())}-{seed}"

    def config(self, arm: str, seed: int) -> Config:
        """Return an arm's run."""
        own = [
            f"training.seed={seed}",
            "training.keep_every=0",
            "training.tensorboard=false",
            f"machine.device={self.device}",
        ]
        return read_config(self.recipe, [*self.overrides, *changes_of(arm), *own])


def prepare(plan: ComparisonPlan, arm: str, seed: int) -> Path | None:
    """Return an arm's encoder, trained unless it lies there; None where that is not allowed."""
    out, config = plan.folder(arm, seed), plan.config(arm, seed)
    path = out / ENCODER
    if plan.done:
        # the card is the last that a finished run writes
        return path if (path if arm == TWIN else out / CARD).is_file() else None
    if arm == TWIN:
        out.mkdir(parents=True, exist_ok=True)
        write_weights(path, random_weights(config.encoder.spec(config.data), seed))
    else:
        # a finished run returns at once, one of another recipe is refused
        train(config, out, ranks=Ranks())
    return path


def cells_of(
    plan: ComparisonPlan, manifest: Manifest, seed: int, encoders: Mapping[str, Path]
) -> list[Cell]:
    """Return the cells of one seed's encoders, all at once: asking the tasks takes a while."""
    request = Request(
        profile="demo",
        benchmarks=plan.benchmarks,
        overrides=plan.evaluation,
        first_seed=seed,
        out=plan.out / "runs",
        machine=Machine(device=plan.device, workers=0),
    )
    candidates = [
        read_candidate(path, name=plan.folder(arm, seed).name) for arm, path in encoders.items()
    ]
    return make_cells(manifest, candidates, request) if candidates else []


def score(cell: Cell, *, done: bool) -> float | None:
    """Return a cell's main number, computed unless it lies there; None where that is not allowed."""
    result = finished(cell)
    if result is None and done:
        return None
    if result is None:
        result = run_here(cell)
        logger.info("%s: %.1f", cell.label, result.metrics[result.main_metric])
    return result.metrics[result.main_metric]


def compare(plan: ComparisonPlan, manifest: Manifest) -> Scores:
    """Return all numbers, seed by seed over all arms; compare.json holds them as they come."""
    scores: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in plan.arms}
    for seed in range(plan.seeds):
        prepared = ((arm, prepare(plan, arm, seed)) for arm in plan.arms)
        encoders = {arm: path for arm, path in prepared if path is not None}
        names = {plan.folder(arm, seed).name: arm for arm in encoders}
        for cell in cells_of(plan, manifest, seed, encoders):
            value = score(cell, done=plan.done)
            if value is not None:
                row = scores[names[cell.run.name]].setdefault(seed, {})
                row[cell.run.benchmark] = value
            if not plan.done:
                write_json(plan.out / "compare.json", record(plan, scores))
    return scores


def record(plan: ComparisonPlan, scores: Scores) -> dict[str, Any]:
    """Return what a reader of the file needs to know: the settings, and each seed's numbers."""
    return {
        "recipe": plan.recipe,
        "set": list(plan.overrides),
        "set_benchmark": dict(plan.evaluation),
        "arms": {arm: list(changes_of(arm)) for arm in plan.arms},
        "scores": scores,
    }


def table(plan: ComparisonPlan, scores: Scores) -> str:
    """Return means and standard deviations over the seeds as a Markdown table."""
    lines = [
        f"| masks | seeds | {' | '.join(plan.benchmarks)} |",
        "|---" * (2 + len(plan.benchmarks)) + "|",
    ]
    for arm, rows in scores.items():
        found = ([r[name] for r in rows.values() if name in r] for name in plan.benchmarks)
        cells = [summary(values, len(rows)) for values in found]
        lines.append(f"| {arm} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(values: Sequence[float], seeds: int) -> str:
    """Return mean ± standard deviation, and how many there are where not all seeds have one."""
    if not values:
        return "-"
    text = f"{statistics.mean(values):.1f}"
    text += f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return text if len(values) == seeds else f"{text} ({len(values)})"


def parser() -> Parser:
    """Return the command line."""
    out = Parser(prog="python -m pretrain.compare suite", description=__doc__)
    add_option(
        out, "--out", "default: runs/compare", default=Path("runs") / "compare", metavar="DIR"
    )
    add_option(out, "--seeds", "default: 3", default=3)
    out.add_argument("--arms", default="", help="parts of names, by commas; all by default")
    add_option(out, "--only", f"default: {BENCHMARKS}", default=BENCHMARKS)
    out.add_argument("--recipe", default="demo", help="pretraining recipe of all arms (demo)")
    add_option(out, "--set", "for example training.epochs=8")
    out.add_argument(
        "--set-benchmark",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a benchmark for all arms: detection.images=800",
    )
    add_option(out, "--benchmarks", default=DEFAULT_FILE)
    add_option(out, "--device")
    out.add_argument("--done", action="store_true", help="table what is done, compute nothing")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = parser().parse_args(arguments)
    configure_logging()
    return run_command(_compare, args)


def _compare(args: argparse.Namespace) -> int:
    wanted = [part for part in args.arms.split(",") if part]
    plan = ComparisonPlan(
        out=args.out,
        seeds=args.seeds,
        benchmarks=args.only.split(","),
        arms=arms_of(args.set, wanted),
        recipe=args.recipe,
        overrides=args.set,
        evaluation=parse_overrides(args.set_benchmark),
        device=args.device,
        done=args.done,
    )
    if not plan.arms:
        raise UserError(
            f"no arm is called {args.arms!r}; there are {', '.join((*ARMS, TWIN))}, and with "
            f"--set data.name=scenes or data.annotations={', '.join(ORACLES)}"
        )
    sys.stdout.write(table(plan, compare(plan, load_manifest(args.benchmarks))) + "\n")
    return ExitCode.OK
