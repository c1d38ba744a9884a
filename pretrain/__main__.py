"""`python -m pretrain CONFIG`: pretrain a vision transformer by masked image modelling.

CONFIG is a YAML file or the name of one in pretrain/configs or pretrain/objectives/distill/configs. The same command continues a run that
was interrupted. Under torchrun all processes share one run. Exit code 75 means that SIGTERM or
SIGUSR1 asked it to leave and its state is saved: run the command again.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mimbench.system.exit_codes import ExitCode, run_command
from mimbench.system.logs import configure_logging
from mimbench.system.options import Parser, add_option

logger = logging.getLogger(__name__)


def parser() -> Parser:
    """Return the command line."""
    out = Parser(prog="python -m pretrain", description=__doc__)
    out.add_argument("config", metavar="CONFIG", help="a YAML file or the name of a recipe")
    add_option(out, "--set", "for example mask.name=random")
    add_option(out, "--data", "the same as --set data.root=DIR")
    add_option(out, "--out", "default: runs/pretrain/CONFIG", metavar="DIR")
    add_option(out, "--fresh", "whatever the folder holds")
    add_option(out, "--no-lock")
    add_option(out, "--track")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = parser().parse_args(arguments)
    configure_logging(rank=int(os.environ.get("RANK", "0")))
    return run_command(_pretrain, args)


def _pretrain(args: argparse.Namespace) -> int:
    # not before the options are read: --help and a wrong option need no torch
    from mimbench.suite.tracking.session import require_client  # noqa: PLC0415
    from mimbench.system.config import parse_overrides  # noqa: PLC0415
    from mimbench.system.lock import work_without_locks  # noqa: PLC0415
    from mimbench.system.runtime import process_group  # noqa: PLC0415
    from pretrain.objectives.recipes import read_recipe  # noqa: PLC0415
    from pretrain.train import train  # noqa: PLC0415

    require_client(args.track)
    if args.no_lock:
        work_without_locks()
    overrides = [*args.set, *([f"data.root={args.data}"] if args.data else [])]
    parse_overrides(overrides)  # one person said all of them: two values for one key are an error
    config = read_recipe(args.config, overrides)
    out = args.out or Path("runs") / "pretrain" / Path(args.config).stem
    with process_group(config.machine.device) as ranks:
        encoder = train(config, out, ranks=ranks, fresh=args.fresh, track=args.track)
    if ranks.main:
        logger.info("done: %s", encoder)
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
