"""The command line: the tasks of the suite, and what only segmentation offers.

Functions import torch and mmsegmentation themselves: `--help` and a wrong option need neither.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mimbench.benchmarks.manifest import load_manifest
from mimbench.suite.task_main import pick_benchmark, task_main, task_parser
from mimbench.system.config import from_mapping, merge, parse_overrides
from mimbench.system.errors import UserError
from mimbench.system.options import Parser, add_option

PROGRAM = "python -m transfer.segmentation"
TASKS = {
    "upernet": "transfer.segmentation.upernet",
    "ft-linear": "transfer.segmentation.finetune_linear",
    "linear": "transfer.segmentation.linear",
}


def add_options(parser: Parser) -> None:
    """Add what only segmentation understands."""
    parser.add_argument(
        "--head",
        choices=TASKS,
        default="upernet",
        help="UperNet, or a linear head on frozen features",
    )
    add_option(parser, "--eval-only", "RUN is its folder")
    add_option(parser, "--show", "image, prediction and ground truth, in RUN/pictures")
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the whole mmengine configuration and stop",
    )


def before(args: argparse.Namespace) -> int | None:
    """Handle what the suite does not know; leave the rest to it."""
    if args.print_config:
        sys.stdout.write(printed_config(args))
        return 0
    if args.eval_only is not None:
        from transfer.segmentation.again import again  # noqa: PLC0415

        found = again(args.eval_only, data=args.data, device=args.device, pictures=args.show)
        sys.stdout.write("".join(f"{name}\t{value:.4f}\n" for name, value in found.metrics.items()))
        return 0
    if args.show is not None:
        raise UserError("--show needs --eval-only RUN: it draws what a finished run predicts")
    return None


def printed_config(args: argparse.Namespace) -> str:
    """Return the mmengine configuration that the other arguments ask for."""
    if args.checkpoint is None:
        raise UserError("--print-config needs a checkpoint: the recipe depends on its architecture")
    from mimbench.checkpoints.files import read_weights  # noqa: PLC0415
    from mimbench.system.runtime import Ranks  # noqa: PLC0415
    from transfer.segmentation.data import ade20k, open_source  # noqa: PLC0415
    from transfer.segmentation.prepare import set_up  # noqa: PLC0415

    task: Any = importlib.import_module(TASKS[args.head])
    manifest = load_manifest(args.benchmarks)
    name = pick_benchmark(manifest, TASKS[args.head], args.profile, args.benchmark)
    _, recipe = manifest.recipe(name, args.profile, {})
    mapping = merge(recipe, parse_overrides(args.set))
    config = from_mapping(task.Config, {**mapping, "data": args.data or Path("ADE20K")}, name)
    source = open_source(config) if args.data else ade20k(config)
    spec = read_weights(args.checkpoint, which=args.which, num_heads=args.num_heads).spec
    config = replace(config, machine=replace(config.machine, device=args.device))
    model_recipe = task.model_recipe(spec, config)
    return set_up(spec, config, model_recipe, Ranks(), source, dry=True).cfg.pretty_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the task whose head is asked for."""
    parser = task_parser(TASKS["upernet"], PROGRAM, add_options)
    given = parser.current(argv)
    task = TASKS[parser.parse_args(given).head]
    return task_main(task, given, program=PROGRAM, extend=add_options, before=before)
