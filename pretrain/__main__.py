"""`python -m pretrain CONFIG`: pretrain a vision transformer by masked image modelling.

CONFIG is a YAML file or the name of one in pretrain/configs or pretrain/objectives/distill/configs. The same command continues a run that
was interrupted. Under torchrun all processes share one run. Exit code 75 means: told to leave by
SIGTERM or SIGUSR1, state saved, run the command again.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mimbench.system.errors import UserError
from mimbench.system.logs import configure_logging
from mimbench.system.runtime import process_group
from pretrain.recipes import read_recipe
from pretrain.train import train

logger = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    out = argparse.ArgumentParser(
        prog="python -m pretrain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("config", metavar="CONFIG", help="a YAML file or the name of a recipe")
    out.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value: mask.name=random",
    )
    out.add_argument("--data", metavar="DIR", help="where the images lie (data.root)")
    out.add_argument("--out", type=Path, help="the run's folder; default runs/pretrain/CONFIG")
    out.add_argument("--fresh", action="store_true", help="start over, whatever the folder holds")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = parser().parse_args(arguments)
    configure_logging(rank=int(os.environ.get("RANK", "0")))
    try:
        overrides = [*args.set, *([f"data.root={args.data}"] if args.data else [])]
        config = read_recipe(args.config, overrides)
        out = args.out or Path("runs") / "pretrain" / Path(args.config).stem
        with process_group(config.machine.device) as ranks:
            encoder = train(config, out, ranks=ranks, fresh=args.fresh)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if ranks.main:
        logger.info("done: %s", encoder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
