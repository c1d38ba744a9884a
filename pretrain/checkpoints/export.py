"""`python -m pretrain.checkpoints.export RUN -o FILE --to mae|hpm`: a run's model for other tools.

The checkpoint has the names that MAE's or HPM's released code, and everything that reads theirs, can load.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mimbench.system.exit_codes import ExitCode, run_command
from mimbench.system.logs import configure_logging
from mimbench.system.options import Parser, add_option


def parser() -> Parser:
    """Return the command line."""
    out = Parser(prog="python -m pretrain.checkpoints.export", description=__doc__)
    out.add_argument(
        "model", type=Path, metavar="RUN", help="a run's folder, a state or export of it"
    )
    out.add_argument("--to", choices=["mae", "hpm"], default="hpm", help="whose tensor names")
    add_option(out, "--out", required=True, metavar="FILE")
    out.rename(output="--out", layout="--to")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = parser().parse_args(arguments)
    configure_logging()
    return run_command(_export, args)


def _export(args: argparse.Namespace) -> int:
    # not before the options are read: --help and a wrong option need no torch
    from pretrain.checkpoints.handover import write_released  # noqa: PLC0415
    from pretrain.checkpoints.stored import read_model  # noqa: PLC0415

    write_released(args.out, read_model(args.model), args.to)
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
