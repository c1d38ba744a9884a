"""Where our log goes; apart from `runtime` because the command line starts without torch."""

import logging
import sys


def configure_logging(*, verbose: bool = False, rank: int = 0) -> None:
    """Send our log to stderr; ranks other than 0 only warn."""
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(
        level=level if rank == 0 else logging.WARNING,
        format="%(asctime)s %(message)s" if rank == 0 else f"%(asctime)s [rank {rank}] %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
