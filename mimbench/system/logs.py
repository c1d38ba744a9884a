"""Where our log goes; apart from `runtime` because the command line starts without torch."""

import logging
import sys
import warnings

WARNED = "warning: "
"""How a warning begins: the report finds it again in a cell's log."""


class MarkedWarnings(logging.Formatter):
    """Time and message; a warning says that it is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        record.mark = WARNED if record.levelno == logging.WARNING else ""
        return super().format(record)


def configure_logging(*, verbose: bool = False, rank: int = 0) -> None:
    """Send our log to stderr; ranks other than 0 only warn."""
    level = logging.DEBUG if verbose else logging.INFO
    place = "" if rank == 0 else f"[rank {rank}] "
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(MarkedWarnings(f"%(asctime)s {place}%(mark)s%(message)s", "%H:%M:%S"))
    logging.basicConfig(
        level=level if rank == 0 else logging.WARNING, handlers=[handler], force=True
    )
    # which instruction set it tries first, and what a package of the environment will stop doing:
    # nobody who runs this can act on either
    logging.getLogger("faiss").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
