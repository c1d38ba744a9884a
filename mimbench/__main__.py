"""The command line: `mimbench VERB ...`, or `python -m mimbench VERB ...`."""

import sys
from collections.abc import Sequence

from mimbench.dispatch import dispatch
from mimbench.system.exit_codes import run_command
from mimbench.system.logs import configure_logging


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; return its exit code."""
    configure_logging()
    return run_command(lambda: dispatch(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    sys.exit(main())
