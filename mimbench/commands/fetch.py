"""Download checkpoints by name into the local caches: timm:NAME, hf:ORG/NAME.

The only verb that uses the network.
"""

import argparse
import logging
import sys

from mimbench.system.errors import UserError
from mimbench.system.exit_codes import ExitCode, report_error
from mimbench.system.options import Parser

logger = logging.getLogger(__name__)


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="timm:NAME[.TAG], hf:ORG/NAME, hf:ORG/NAME/FILE, each with @REVISION if not main",
    )


def main(args: argparse.Namespace) -> int:
    """Fetch every name; those that fail do not stop the others."""
    from mimbench.checkpoints.names.hub import fetch

    failed = 0
    for name in args.names:
        try:
            found = fetch(name)
        except UserError as error:
            report_error(str(error))
            failed += 1
            continue
        for note in found.notes:
            logger.warning("%s", note)
        at = f" at {found.revision[:12]}" if found.revision else ""
        said = f"; licence: {found.license}" if found.license else "; no licence stated"
        logger.info("%s%s%s", found.name, at, said)
        sys.stdout.write(f"{found.path}\n")
    return ExitCode.FAILED if failed else ExitCode.OK
