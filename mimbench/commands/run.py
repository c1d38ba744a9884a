"""Evaluate checkpoints on every benchmark of a profile; one table."""

import argparse
import os
from pathlib import Path

from mimbench.benchmarks.manifest import DEFAULT_FILE, PROFILES, load_manifest
from mimbench.commands.table import parse_choices
from mimbench.suite.demo import NAME, demo_checkpoint
from mimbench.suite.running.cluster import Cluster
from mimbench.suite.suite import Options, Running, run_suite
from mimbench.system.config import parse_overrides
from mimbench.system.errors import UserError
from mimbench.system.lock import NO_LOCK
from mimbench.system.runtime import usable_cores

MOST_AT_ONCE = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("checkpoints", nargs="*", metavar="[NAME=]CKPT")
    parser.add_argument(
        "--demo", action="store_true", help="sample data, tiny pretraining, all tasks"
    )
    add_request_arguments(parser)
    run = parser.add_argument_group("running")
    run.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    run.add_argument(
        "--fresh", action="store_true", help="run done cells again (old ones are kept aside)"
    )
    run.add_argument(
        "--resume", action="store_true", help="go on where a run stopped (the default)"
    )
    run.add_argument(
        "--no-canary", action="store_true", help="skip the check against random weights"
    )
    run.add_argument(
        "--twin", action="store_true", help="evaluate a random-weight twin of each checkpoint too"
    )
    run.add_argument(
        "--gpus", type=int, metavar="N", help="GPUs to use (default: one, if there is one)"
    )
    run.add_argument(
        "--per-task", type=int, metavar="N", help="GPUs for one task (default: all of --gpus)"
    )
    run.add_argument(
        "--no-lock", action="store_true", help="where the file system has no locks: no second run"
    )
    run.add_argument(
        "--no-room-check", action="store_true", help="start on a disk that is too small, too"
    )
    run.add_argument(
        "--launcher",
        choices=["local", "slurm", "submitit"],
        default="local",
        help="submitit: its local executor",
    )
    run.add_argument(
        "--nodes", type=int, default=1, metavar="N", help="slurm: nodes for heavy tasks"
    )
    run.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="K=V",
        help="submitit's parameters: slurm_partition=gpu",
    )
    run.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="NAME=METHOD [EPOCHS]",
        help="the published row that a checkpoint should reproduce, e.g. 'ckpt=HPM 800'",
    )


def add_request_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` and `plan` share: which benchmarks, which recipe, which machine."""
    what = parser.add_argument_group("what")
    what.add_argument(
        "--profile", choices=PROFILES, help="recipe (default: paper; demo with --demo)"
    )
    what.add_argument(
        "--only", default="", metavar="A,B", help="benchmark ids or groups: knn, linear..."
    )
    what.add_argument(
        "--set", action="append", default=[], metavar="K=V", help="for example knn.k=[20]"
    )
    what.add_argument("--seeds", type=int, default=1, metavar="N")
    what.add_argument("--data", type=Path, metavar="DIR", help="holds imagenet, coco, ade")
    what.add_argument(
        "--out", type=Path, metavar="DIR", help="default: runs (runs/demo with --demo)"
    )
    what.add_argument("--which", metavar="W", help="network in the file: student, teacher, ema")
    what.add_argument("--num-heads", type=int, metavar="N", help="where the format does not say")
    what.add_argument("--benchmarks", type=Path, default=DEFAULT_FILE, metavar="FILE")
    what.add_argument(
        "--own-data",
        action="store_true",
        help="data of your own in these layouts: no published counts, no published rows",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", metavar="D")
    machine.add_argument("--workers", type=int, metavar="N", help="loader processes per process")
    machine.add_argument(
        "--max-batch", type=int, metavar="N", help="images that fit one process at once"
    )
    machine.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="cells at once without a GPU (default: 1; --demo: one for each core, four at most)",
    )
    machine.add_argument("--compile", action="store_true")
    machine.add_argument(
        "--recompute", action="store_true", help="detection: less memory, more time"
    )


def options_of(args: argparse.Namespace) -> Options:
    """Return the options that parsed arguments spell out."""
    if args.seeds < 1:
        raise UserError(f"--seeds is {args.seeds}, expected 1 or more")
    demo = bool(getattr(args, "demo", False))
    return Options(
        profile=args.profile or ("demo" if demo else "paper"),
        only=tuple(name for name in args.only.split(",") if name),
        overrides=parse_overrides(args.set),
        seeds=args.seeds,
        data=args.data,
        own_data=args.own_data,
        out=args.out or (Path("runs/demo") if demo else Path("runs")),
        which=args.which,
        num_heads=args.num_heads,
        device=args.device,
        workers=args.workers,
        max_batch=args.max_batch,
        compile=args.compile,
        recompute=args.recompute,
        side_by_side=_side_by_side(args.jobs, demo=demo),
    )


def _side_by_side(asked: int | None, *, demo: bool) -> int:
    """Return how many cells share the cores: the demo's models are too small for a second core."""
    if asked is not None and asked < 1:
        raise UserError(f"--jobs is {asked}, expected 1 or more")
    return asked or (min(MOST_AT_ONCE, usable_cores()) if demo else 1)


def _cluster(args: argparse.Namespace) -> Cluster | None:
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
    if args.no_lock:
        os.environ[NO_LOCK] = "1"
    options = options_of(args)
    manifest = load_manifest(args.benchmarks)
    checkpoints = [parse_checkpoint(text) for text in args.checkpoints]
    if args.demo:
        checkpoints.insert(0, (NAME, demo_checkpoint(options.out)))
    if not checkpoints:
        raise UserError("name at least one checkpoint, or --demo: ./run_all.sh ckpt.pth")
    return run_suite(
        manifest,
        checkpoints,
        options,
        Running(
            fresh=args.fresh,
            dry_run=args.dry_run,
            canary=not args.no_canary,
            twin=args.twin or args.demo,
            gpus=args.gpus,
            per_task=args.per_task,
            room=not args.no_room_check,
            choice=parse_choices(args.reference),
            benchmarks=args.benchmarks,
            cluster=_cluster(args),
        ),
    )
