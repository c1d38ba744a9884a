"""Check environment, GPUs and data; say for each fault what fixes it.

Exit code 1 if something has to be fixed. Without --data only the environment is checked.
"""

import argparse
import logging
import sys
from pathlib import Path

from mimbench.doctor.check import as_json, as_table, has_fault
from mimbench.doctor.environment import check_cuda, check_python, check_shared_memory
from mimbench.doctor.frameworks import check_frameworks
from mimbench.system.errors import UserError
from mimbench.system.exit_codes import ExitCode
from mimbench.system.options import Parser, add_option

logger = logging.getLogger(__name__)


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    add_option(
        parser, "--data", "imagenet/, coco/, ade/ and voc/, or one of these, or the sample data"
    )
    parser.add_argument(
        "--decode",
        action="store_true",
        help="also decode every image below --data; goes on where it was interrupted",
    )
    add_option(parser, "--jobs", "decoders; default: one for each core", default=0)
    add_option(parser, "--fresh", "decode all images again")
    add_option(parser, "--json")


def _data(args: argparse.Namespace) -> Path:
    if args.data is None:
        raise UserError("--decode needs the images' folder: say --data DIR")
    return args.data


def main(args: argparse.Namespace) -> int:
    """Check, show the findings; return 1 if one has to be fixed."""
    logger.info("trying every framework in a process of its own")
    checks = [check_python(), *check_frameworks(), check_cuda(), check_shared_memory()]
    # numpy, Pillow and torch are needed for data alone
    if args.data is not None:
        from mimbench.doctor.data import check_data

        checks += check_data(args.data)
    if args.decode:
        from mimbench.doctor.decode import check_images
        from mimbench.system.runtime import usable_cores

        checks.append(check_images(_data(args), args.jobs or usable_cores(), fresh=args.fresh))
    sys.stdout.write(as_json(checks) if args.json else as_table(checks))
    return ExitCode.FAILED if has_fault(checks) else ExitCode.OK
