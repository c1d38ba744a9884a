"""Evaluate checkpoints on every benchmark of a profile; one table."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mimbench.benchmarks.locations import is_sample
from mimbench.benchmarks.manifest import DEFAULT_FILE, PROFILES, Manifest, load_manifest
from mimbench.commands.table import parse_choices
from mimbench.system.config import parse_overrides
from mimbench.system.errors import UserError
from mimbench.system.lock import work_without_locks
from mimbench.system.options import Parser, add_option, add_reading
from mimbench.tables.papers import load_papers

if TYPE_CHECKING:
    from mimbench.benchmarks.cells import Request
    from mimbench.suite.running.cluster import Cluster

MOST_AT_ONCE = 4


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    add_checkpoints(parser, "*")
    parser.add_argument(
        "--demo", action="store_true", help="sample data, a tiny pretraining, every task"
    )
    add_request_arguments(parser)
    run = parser.add_argument_group("running")
    run.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    add_option(run, "--fresh", "old results are kept aside")
    run.add_argument(
        "--resume", action="store_true", help="go on where a run stopped (the default)"
    )
    run.add_argument(
        "--no-canary", action="store_true", help="skip the check against random weights"
    )
    run.add_argument(
        "--twin", action="store_true", help="evaluate a random-weight twin of each checkpoint too"
    )
    add_option(run, "--gap", "of cells that are cheap; finished cells stay as they are")
    add_option(run, "--gpus", "default: one, if there is one")
    run.add_argument(
        "--per-task", type=int, metavar="N", help="GPUs for one task (default: all of --gpus)"
    )
    run.add_argument(
        "--no-room-check", action="store_true", help="start on a disk that is too small, too"
    )
    run.add_argument(
        "--launcher",
        choices=["local", "slurm", "submitit"],
        default="local",
        help="this machine, Slurm, or submitit's local executor",
    )
    add_option(run, "--nodes", "with Slurm: for heavy tasks", default=1)
    run.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="submitit's parameters: slurm_partition=gpu",
    )
    add_option(
        run, "--track", "as its own settings say: WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_DIR"
    )
    add_option(run, "--reference")


def add_checkpoints(parser: Parser, count: str) -> None:
    """Add the checkpoints to evaluate."""
    parser.add_argument(
        "checkpoints",
        nargs=count,
        metavar="[NAME=]CKPT",
        help="file, folder, timm:NAME or hf:ORG/NAME, and how the table names it",
    )


def add_request_arguments(parser: Parser) -> None:
    """Add what `run` and `plan` share: which benchmarks, which recipe, which machine."""
    what = parser.add_argument_group("what")
    text = f"{', '.join(PROFILES)}, or a set such as frozen; default: paper; demo with --demo"
    add_option(what, "--profile", text)
    add_option(what, "--only", "default: all of the profile", default="")
    add_option(what, "--table")
    add_option(what, "--set", "for example knn.k=[20]")
    add_option(what, "--seeds", "default: 1", default=1)
    add_option(what, "--data", "holds imagenet/, coco/, ade/, voc/; sample: the sample data")
    add_option(what, "--out", "default: runs (runs/demo with --demo)", metavar="DIR")
    add_reading(what)
    add_option(what, "--benchmarks", default=DEFAULT_FILE)
    what.add_argument(
        "--own-data",
        action="store_true",
        help="data of your own in these layouts: no published counts, no published rows",
    )
    what.add_argument(
        "--more-data",
        action="append",
        type=Path,
        default=[],
        metavar="DIR",
        help="another data set of your own, with columns of its own; may be repeated",
    )
    machine = parser.add_argument_group("machine")
    add_option(machine, "--device")
    add_option(machine, "--workers")
    add_option(machine, "--max-batch")
    add_option(machine, "--jobs", "cells, without a GPU; default: 1, --demo: one for each core")
    machine.add_argument(
        "--compile", action="store_true", help="compile the network (torch.compile)"
    )
    add_option(machine, "--recompute")
    add_option(machine, "--no-lock")


def request_of(args: argparse.Namespace, manifest: Manifest) -> "Request":
    """Return the request that parsed arguments spell out."""
    from mimbench.benchmarks.cells import Request
    from mimbench.system.runtime import usable_cores
    from mimbench.task import Machine

    if args.seeds < 1:
        raise UserError(f"--seeds is {args.seeds}, expected 1 or more")
    demo = bool(getattr(args, "demo", False))
    if args.no_lock:
        work_without_locks()
    side_by_side = _side_by_side(args.jobs, demo=demo)
    usual = max(1, min(8, usable_cores() // side_by_side))
    chosen = args.profile or ("demo" if demo else "paper")
    only = tuple(name for name in args.only.split(",") if name)
    if args.table:
        if only or chosen in manifest.sets:
            raise UserError("--table names its own benchmarks: leave --only and sets out")
        only = load_papers(manifest).find(args.table).benchmarks
    profile, benchmarks = manifest.recipes_of(chosen), manifest.choose(chosen, only)
    if sample := is_sample(args.data):
        # published recipes are for published data: the sample has its own
        profile, benchmarks = "demo", with_sample_recipe(benchmarks, manifest)
    return Request(
        profile=profile,
        benchmarks=tuple(benchmarks),
        overrides=parse_overrides(args.set),
        seeds=args.seeds,
        data=None if sample else args.data,
        more_data=tuple(args.more_data),
        own_data=args.own_data,
        out=args.out or (Path("runs/demo") if demo else Path("runs")),
        machine=Machine(
            # a cell sees no other GPU than its own
            device="cuda" if args.device.startswith("cuda:") else args.device,
            workers=usual if args.workers is None else args.workers,
            compile=args.compile,
            recompute=args.recompute,
        ),
        max_batch=args.max_batch,
        which=args.which,
        num_heads=args.num_heads,
        device=args.device,
        side_by_side=side_by_side,
        manifest=args.benchmarks,
        paper_table=args.table or "",
    )


def with_sample_recipe(names: Sequence[str], manifest: Manifest) -> list[str]:
    """Return those of some benchmarks that have a recipe for the sample data."""
    found = [name for name in names if "demo" in manifest.benchmarks[name].profiles]
    if not found:
        raise UserError(f"none of {', '.join(names)} has a recipe for the sample data")
    return found


def _side_by_side(asked: int | None, *, demo: bool) -> int:
    """Return how many cells share the cores: the demo's models are too small for a second core."""
    from mimbench.system.runtime import usable_cores

    if asked is not None and asked < 1:
        raise UserError(f"--jobs is {asked}, expected 1 or more")
    return asked or (min(MOST_AT_ONCE, usable_cores()) if demo else 1)


def _cluster(args: argparse.Namespace) -> "Cluster | None":
    from mimbench.suite.running.cluster import Cluster

    if args.launcher == "local":
        return None
    kind = "slurm" if args.launcher == "slurm" else "local"
    gpus = args.gpus if args.gpus is not None else (1 if kind == "slurm" else 0)
    return Cluster(
        kind=kind,
        gpus=gpus,
        nodes=args.nodes,
        parameters=parse_overrides(args.slurm),
        poll=5.0 if kind == "slurm" else 0.5,
    )


def parse_checkpoint(text: str) -> tuple[str, Path]:
    """Return (row name or '', path) from `NAME=PATH` or a plain path."""
    name, equals, path = text.partition("=")
    if equals and name and "/" not in name and not Path(text).exists():
        return name, Path(path)
    return "", Path(text)


def main(args: argparse.Namespace) -> int:
    """Run the suite."""
    from mimbench.suite.demo import NAME, demo_checkpoint, farewell
    from mimbench.suite.suite import run_suite
    from mimbench.suite.tracking.session import require_client

    require_client(args.track)
    manifest = load_manifest(args.benchmarks)
    request = replace(
        request_of(args, manifest),
        fresh=args.fresh,
        dry_run=args.dry_run,
        canary=not args.no_canary,
        # the demo's own weights were made a minute ago, and know too little to win by the canary's margin
        unasked=frozenset({NAME} if args.demo else ()),
        twin=args.twin or args.demo,
        gap=args.gap,
        gpus=args.gpus,
        per_task=args.per_task,
        room=not args.no_room_check,
        choice=parse_choices(args.reference),
        track=args.track,
    )
    if args.gap and args.launcher != "local":
        raise UserError(
            "--gap runs on this machine only; when the cells are done, start the same command with "
            "--launcher local --gap: it reads their results and measures the neighbours"
        )
    checkpoints = [parse_checkpoint(text) for text in args.checkpoints]
    if args.demo:
        checkpoints.insert(0, (NAME, demo_checkpoint(request.out, track=args.track)))
    if not checkpoints:
        raise UserError("name at least one checkpoint, or --demo: ./run_all.sh ckpt.pth")
    code = run_suite(manifest, checkpoints, request, _cluster(args))
    if args.demo and not args.dry_run:
        sys.stdout.write(farewell(request.out))
    return code
