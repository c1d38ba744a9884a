"""`python -m pretrain.compare_masks`: the same tiny pretraining under every strategy, scored alike.

Each strategy trains with the same steps, images and seeds of pretrain/configs/demo.yaml on the
sample data; the benchmarks are those of benchmarks.yaml in its demo profile. Cells that are done are
kept, so the command can be interrupted, and repeated with more seeds. Needs no network.
"""

import argparse
import logging
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mimbench.cells import Request, finished, make_cells, read_contestant
from mimbench.errors import UserError
from mimbench.evaluation import evaluate
from mimbench.logs import configure_logging
from mimbench.manifest import DEFAULT_FILE, Manifest, load_manifest
from mimbench.orders import ORDER_FILE, write_order
from mimbench.runtime import Ranks
from mimbench.task import Machine
from pretrain.config import read_config
from pretrain.export import ENCODER
from pretrain.train import train

logger = logging.getLogger(__name__)

PLAIN = ("objective.predict_loss=none",)
STRATEGIES: Mapping[str, tuple[str, ...]] = {
    "random (MAE)": (*PLAIN, "mask.name=random"),
    "grid (SimMIM)": (*PLAIN, "mask.name=grid"),
    "block (BEiT)": (*PLAIN, "mask.name=block"),
    "hard (HPM)": ("mask.name=hard",),
    "attention high (AttMask)": (*PLAIN, "mask.name=attention", "mask.order=high"),
    # on 16 patches the published tenth would hint at nothing
    "attention hint (AttMask)": (
        *PLAIN,
        "mask.name=attention",
        "mask.order=hint",
        "mask.show=0.25",
    ),
    "attention low (AttMask)": (*PLAIN, "mask.name=attention", "mask.order=low"),
    "adversarial (AutoMAE)": (*PLAIN, "mask.name=adversarial"),
}
"""What each strategy changes in the recipe; all hide half of the patches."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared, and how."""

    out: Path
    epochs: int
    seeds: int
    benchmarks: Sequence[str]
    strategies: Sequence[str]
    device: str
    done: bool = False
    """Table what lies there and compute nothing."""

    def folder(self, label: str, seed: int) -> Path:
        """Return where a strategy's run lies."""
        slug = label.replace("(", "").replace(")", "").replace(" ", "-").lower()
        return self.out / "pretrain" / f"{slug}-{seed}"


def pretrain(plan: Plan, label: str, seed: int) -> Path:
    """Return the encoder of one strategy and seed, trained unless it lies there."""
    out = plan.folder(label, seed)
    overrides = [
        "mask.ratio=0.5",
        *STRATEGIES[label],
        f"training.epochs={plan.epochs}",
        f"optimizer.warmup_epochs={plan.epochs / 20}",
        f"training.seed={seed}",
        "training.keep_every=0",
        "training.tensorboard=false",
        f"machine.device={plan.device}",
    ]
    if not (out / ENCODER).is_file():
        train(read_config("demo", overrides), out, ranks=Ranks())
    return out / ENCODER


def score(plan: Plan, manifest: Manifest, encoder: Path, seed: int) -> dict[str, float]:
    """Return benchmark -> its main number for one encoder."""
    request = Request(
        profile="demo",
        benchmarks=list(plan.benchmarks),
        overrides={},
        first_seed=seed,
        data=None,
        out=plan.out / "runs",
        machine=Machine(device=plan.device),
    )
    contestant = read_contestant(encoder, name=encoder.parent.name)
    found = {}
    for cell in make_cells(manifest, [contestant], request):
        if cell.problem:
            raise UserError(cell.problem)
        result = finished(cell)
        if result is None and plan.done:
            continue
        if result is None:
            write_order(cell.folder / ORDER_FILE, cell.order)
            result = evaluate(cell.order, cell.folder)
        found[cell.order.benchmark] = result.metrics[result.main_metric]
    return found


def table(plan: Plan, scores: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Return means and spreads as a Markdown table."""
    lines = [
        f"| strategy | seeds | {' | '.join(plan.benchmarks)} |",
        "|---" * (2 + len(plan.benchmarks)) + "|",
    ]
    for label, rows in scores.items():
        cells = []
        for name in plan.benchmarks:
            values = [row[name] for row in rows if name in row]
            if not values:
                cells.append("-")
            elif len(values) == 1:
                cells.append(f"{values[0]:.1f}")
            else:
                cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}")
        lines.append(f"| {label} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def compare(plan: Plan, manifest: Manifest) -> dict[str, list[dict[str, float]]]:
    """Return strategy -> one row of numbers for each seed, seed by seed over all strategies."""
    scores: dict[str, list[dict[str, float]]] = {label: [] for label in plan.strategies}
    for seed in range(plan.seeds):
        for label in plan.strategies:
            if plan.done and not (plan.folder(label, seed) / ENCODER).is_file():
                continue
            row = score(plan, manifest, pretrain(plan, label, seed), seed)
            if not row:
                continue
            scores[label].append(row)
            logger.info("%s, seed %d: %s", label, seed, row)
    return scores


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.compare_masks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("runs") / "masks")
    parser.add_argument("--epochs", type=int, default=22, help="of each run, 93 steps each (22)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--only", default="in-knn,in-logreg", help="benchmarks, by their ids (in-knn,in-logreg)"
    )
    parser.add_argument("--strategies", default="", help="parts of names; all by default")
    parser.add_argument("--benchmarks", type=Path, default=DEFAULT_FILE, metavar="FILE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--done", action="store_true", help="table what is done, compute nothing")
    args = parser.parse_args(arguments)
    configure_logging()
    wanted = [part for part in args.strategies.split(",") if part]
    plan = Plan(
        out=args.out,
        epochs=args.epochs,
        seeds=args.seeds,
        benchmarks=args.only.split(","),
        strategies=[n for n in STRATEGIES if not wanted or any(part in n for part in wanted)],
        device=args.device,
        done=args.done,
    )
    try:
        scores = compare(plan, load_manifest(args.benchmarks))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(table(plan, scores) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
