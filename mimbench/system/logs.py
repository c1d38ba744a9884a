"""Where our log goes; apart from `runtime` because the command line starts without torch."""

import logging
import sys
import warnings


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
    # which instruction set it tries first, and what a package of the environment will stop doing:
    # nobody who runs this can act on either
    logging.getLogger("faiss").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
