"""Out of memory: try again with half as many images at a time, at the same effective batch."""

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist

from mimbench.system.errors import UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")

PHRASES = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out: CUDA's own, or the CPU allocator's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(p in str(error).lower() for p in PHRASES)


@dataclass(kw_only=True)
class Halving:
    """How many images fit at once, learned by running out of memory."""

    size: int
    """Images at a time; halved after each failure."""
    asked: int = field(init=False)

    def __post_init__(self) -> None:
        self.asked = self.size

    @property
    def halved(self) -> bool:
        """Memory ran out at least once."""
        return self.size < self.asked

    def shrink(self, error: BaseException) -> None:
        """Halve the size after `error`; raise it again unless memory is what ran out."""
        if not is_out_of_memory(error):
            raise error
        if self.size <= 1:
            raise UserError(
                "out of memory with a single image; use a smaller image_size or model, "
                "or a device with more memory"
            ) from error
        self.size //= 2
        logger.warning("out of memory: going on with %d images at a time", self.size)
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()

    def attempt(self, work: Callable[[int], T]) -> T:
        """Return `work(size)`, called again with half the size for as long as memory runs out."""
        while True:
            try:
                return work(self.size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                fault = error
            # outside the handler, so that the failed attempt's frames are free
            fault.__traceback__ = None
            self.shrink(fault)

    def agree(self, work: Callable[[int], object], device: torch.device) -> None:
        """Halve the size on every process, together, until `work(size)` fits on all of them."""
        while True:
            fault: BaseException | None = None
            try:
                work(self.size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                fault = error
            if fault is not None:
                fault.__traceback__ = None
            failed = torch.tensor(0.0 if fault is None else 1.0, device=device)
            dist.all_reduce(failed, op=dist.ReduceOp.MAX)
            if not failed.item():
                return
            self.shrink(fault or MemoryError("another process ran out of memory"))
