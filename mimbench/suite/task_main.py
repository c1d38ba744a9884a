"""The command line of one task: the same task, configuration and result as in the suite.

A task's module ends up here before it imports anything: `--help` and a wrong option need no torch.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mimbench.benchmarks.manifest import DEFAULT_FILE, PROFILES, Manifest, Profile, load_manifest
from mimbench.system.config import parse_overrides
from mimbench.system.errors import UserError
from mimbench.system.exit_codes import ExitCode, run_command
from mimbench.system.lock import work_without_locks
from mimbench.system.logs import configure_logging
from mimbench.system.options import Parser, add_checkpoint, add_option, add_reading

if TYPE_CHECKING:
    from mimbench.results.record import Result

logger = logging.getLogger(__name__)


def task_main(
    task: str,
    argv: Sequence[str] | None = None,
    *,
    program: str = "",
    extend: Callable[[Parser], None] | None = None,
    before: Callable[[argparse.Namespace], int | None] | None = None,
) -> int:
    """Evaluate one checkpoint on one task and show its metrics.

    Args:
        task: Dotted name of the task's module.
        argv: Arguments; by default those of the process.
        program: How users start it; by default `python -m TASK`.
        extend: Adds the task's own options.
        before: May handle them: an exit code ends the command, None goes on.
    """
    args = task_parser(task, program, extend).parse_args(argv)
    configure_logging(rank=int(os.environ.get("RANK", "0")))
    return run_command(_evaluate, task, args, before)


def _evaluate(
    task: str,
    args: argparse.Namespace,
    before: Callable[[argparse.Namespace], int | None] | None,
) -> int:
    if args.no_lock:
        work_without_locks()
    if before and (code := before(args)) is not None:
        return code
    if args.checkpoint is None:
        raise UserError("name a checkpoint, for example: ckpt.pth")
    result = _run(task, args)
    if int(os.environ.get("RANK", "0")) == 0:
        lines = [f"{name}\t{value:.4f}\n" for name, value in result.metrics.items()]
        if result.gap:
            lines += [f"gap: {n.setting}\t{n.value:.4f}\n" for n in result.gap.settings]
        sys.stdout.write("".join(lines))
    return ExitCode.OK


def task_parser(
    task: str, program: str = "", extend: Callable[[Parser], None] | None = None
) -> Parser:
    """Return the options of a task's command, its own included."""
    program = program or f"python -m {task}"
    parser = Parser(prog=program, description=f"Evaluate a checkpoint on {task}.")
    add_checkpoint(parser, nargs="?")
    add_option(parser, "--profile", "default: paper", choices=PROFILES, default="paper")
    parser.add_argument(
        "--benchmark", metavar="ID", help="entry of the manifest; default: the profile's own"
    )
    add_option(parser, "--benchmarks", default=DEFAULT_FILE)
    add_option(parser, "--set", "for example k=[20]")
    add_option(parser, "--data", "holds imagenet/, coco/, ade/, voc/, or is one of these")
    add_option(parser, "--out", "default: runs", default=Path("runs"), metavar="DIR")
    add_option(parser, "--seed")
    add_option(parser, "--device")
    add_option(parser, "--workers")
    add_option(parser, "--max-batch")
    add_option(parser, "--recompute")
    add_option(parser, "--no-lock")
    add_option(parser, "--track")
    add_reading(parser)
    add_option(parser, "--fresh", "old results are kept aside")
    add_option(parser, "--gap", "where the task is cheap")
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


def _run(task: str, args: argparse.Namespace) -> "Result":
    from mimbench.benchmarks.cells import Request, make_cells, read_candidate  # noqa: PLC0415
    from mimbench.benchmarks.lifecycle import run_here  # noqa: PLC0415
    from mimbench.benchmarks.nearby import measure_gap  # noqa: PLC0415
    from mimbench.suite.tracking.session import (  # noqa: PLC0415
        TRACKING_LOG,
        require_client,
        tracked,
        tracked_cell,
    )
    from mimbench.task import Machine  # noqa: PLC0415

    if args.gap and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--gap takes one process; run the cell on several first, then --gap on one")
    require_client(args.track)
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
    with tracked(args.track, [tracked_cell(cell)], args.out / TRACKING_LOG):
        result = run_here(cell, fresh=args.fresh)
    if args.gap and cell.nearby:
        return replace(result, gap=measure_gap(cell.folder))
    return result
