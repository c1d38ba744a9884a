"""What reaches the user: mmengine's chatter goes to a file, lack of memory becomes advice."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

from mmengine.logging import MMLogger

from mimbench.system.memory import memory_advice
from mimbench.system.runtime import Ranks
from transfer.segmentation.protocol import SegmentationConfig

REMARKS = (
    "Default ``avg_non_ignore`` is False",
    "torch.meshgrid: in an upcoming release",
    "The shape of value will convert",
)
"""What mmseg and mmengine say about the published setting and their own code, and no user can change."""


@contextlib.contextmanager
def quiet(out: Path, ranks: Ranks) -> Iterator[None]:
    """Send what mmengine prints to a file: stdout belongs to the final table."""
    with (out / f"mmseg-{ranks.rank}.log").open("a", encoding="utf-8") as log:
        _redirect_logger(log)
        with contextlib.redirect_stdout(log), warnings.catch_warnings():
            for message in REMARKS:
                warnings.filterwarnings("ignore", message=message)
            try:
                yield
            finally:
                _redirect_logger(sys.stderr)


def _redirect_logger(stream: TextIO) -> None:
    """Point mmengine's newest logger, which holds a stream of its own, at `stream`."""
    current = MMLogger.get_current_instance()
    current.setLevel(logging.WARNING)
    for handler in current.handlers:
        if type(handler) is logging.StreamHandler:
            handler.stream = stream


def advice(config: SegmentationConfig) -> AbstractContextManager[None]:
    """Turn running out of memory into what to do about it."""
    now = min(config.machine.max_batch, config.batch)
    return memory_advice(
        f"with up to {now} images of {config.crop[0]}x{config.crop[1]} at once",
        f"set machine.max_batch={max(2, now // 2)}: the effective batch stays {config.batch} by "
        "accumulation, batch norm then sees fewer images, and the run goes on from its last state",
    )
