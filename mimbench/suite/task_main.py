"""The command line of one task: the same task, configuration and result as in the suite."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mimbench.benchmarks.cells import Request, finished, make_cells, read_candidate, set_aside
from mimbench.benchmarks.evaluation import evaluate
from mimbench.benchmarks.manifest import DEFAULT_FILE, PROFILES, Manifest, Profile, load_manifest
from mimbench.benchmarks.orders import ORDER_FILE, write_order
from mimbench.results import Result
from mimbench.system.config import parse_overrides
from mimbench.system.errors import UserError
from mimbench.system.lock import NO_LOCK
from mimbench.system.logs import configure_logging
from mimbench.task import Machine

logger = logging.getLogger(__name__)


def task_main(
    task: str,
    argv: Sequence[str] | None = None,
    *,
    extend: Callable[[argparse.ArgumentParser], None] | None = None,
    before: Callable[[argparse.Namespace], int | None] | None = None,
) -> int:
    """Evaluate one checkpoint on one task and show its metrics.

    Args:
        task: Dotted name of the task's module.
        argv: Arguments; by default those of the process.
        extend: Adds the task's own options.
        before: May handle them: an exit code ends the command, None goes on.
    """
    args = _parser(task, extend).parse_args(argv)
    if args.no_lock:
        os.environ[NO_LOCK] = "1"
    rank = int(os.environ.get("RANK", "0"))
    configure_logging(rank=rank)
    try:
        if before and (code := before(args)) is not None:
            return code
        if args.checkpoint is None:
            raise UserError("name a checkpoint, for example: ckpt.pth")
        result = _run(task, args)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if rank == 0:
        lines = [f"{name}\t{value:.4f}\n" for name, value in result.metrics.items()]
        sys.stdout.write("".join(lines))
    return 0


def _parser(
    task: str, extend: Callable[[argparse.ArgumentParser], None] | None
) -> argparse.ArgumentParser:
    program = f"python -m {task}" if task.count(".") > 1 else f"python -m {task.partition('.')[0]}"
    parser = argparse.ArgumentParser(prog=program, description=f"Evaluate a checkpoint on {task}.")
    parser.add_argument("checkpoint", type=Path, nargs="?", metavar="CKPT")
    parser.add_argument("--profile", choices=PROFILES, default="paper")
    parser.add_argument("--benchmark", metavar="ID", help="entry of benchmarks.yaml")
    parser.add_argument("--benchmarks", type=Path, default=DEFAULT_FILE, metavar="FILE")
    parser.add_argument(
        "--set", action="append", default=[], metavar="K=V", help="change the recipe"
    )
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--device", default="auto", metavar="D")
    parser.add_argument("--workers", type=int, metavar="N", help="loader processes per process")
    parser.add_argument(
        "--max-batch", type=int, metavar="N", help="images that fit one process at once"
    )
    parser.add_argument(
        "--recompute", action="store_true", help="detection: less memory, more time"
    )
    parser.add_argument("--which", metavar="W", help="network in the file: student, teacher, ema")
    parser.add_argument("--num-heads", type=int, metavar="N", help="where the format does not say")
    parser.add_argument("--fresh", action="store_true", help="run again even if done")
    parser.add_argument(
        "--no-lock", action="store_true", help="where the file system has no locks: no second run"
    )
    if extend:
        extend(parser)
    return parser


def pick_benchmark(manifest: Manifest, task: str, profile: Profile, name: str | None) -> str:
    """Return the benchmark of a task: the one named, else the profile's own."""
    mine = [n for n, b in manifest.benchmarks.items() if b.task == task and profile in b.profiles]
    if name:
        if name not in mine:
            known = ", ".join(mine) or "none"
            raise UserError(
                f"'{name}' is no benchmark of {task} in profile {profile}; known: {known}"
            )
        return name
    if not mine:
        raise UserError(f"benchmarks.yaml has no benchmark of {task} in profile {profile}")
    usual = [n for n in mine if n in manifest.defaults.get(profile, ())]
    return (usual or mine)[0]


def _run(task: str, args: argparse.Namespace) -> Result:
    manifest = load_manifest(args.benchmarks)
    name = pick_benchmark(manifest, task, args.profile, args.benchmark)
    changed = parse_overrides(args.set)
    usual = Machine()
    request = Request(
        profile=args.profile,
        benchmarks=[name],
        overrides={name: changed} if changed else {},
        first_seed=args.seed,
        data=args.data,
        out=args.out,
        machine=Machine(
            device=args.device,
            workers=usual.workers if args.workers is None else args.workers,
            recompute=args.recompute,
        ),
        max_batch=args.max_batch,
    )
    who = read_candidate(args.checkpoint, which=args.which, num_heads=args.num_heads)
    [cell] = make_cells(manifest, [who], request)
    if cell.problem:
        raise UserError(cell.problem)
    done = None if args.fresh else finished(cell)
    if done:
        logger.info("done before, see %s; --fresh runs it again", cell.folder)
        return done
    if int(os.environ.get("RANK", "0")) == 0:
        set_aside(cell, fresh=args.fresh)
        write_order(cell.folder / ORDER_FILE, cell.order)
    return evaluate(cell.order, cell.folder)
