"""Memory: how much was used at most, whether it ran out, and what to do then."""

import gc
import logging
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def peak_memory(device: torch.device) -> int:
    """Return the most bytes used so far: on a GPU what torch held, on a CPU what this process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # kilobytes on Linux, bytes on macOS
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


@contextmanager
def memory_advice(doing: str, remedy: str) -> Iterator[None]:
    """Turn running out of memory into an error that says what was measured and what to set.

    Args:
        doing: What did not fit, as in "out of memory {doing}".
        remedy: What to set.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"out of memory {doing} ({_peak_text(error)}): {first}\n{remedy}"
        ) from error


def _peak_text(error: BaseException) -> str:
    """Return how much was used where memory ran out: the CPU's can run out beside a GPU."""
    of_cpu = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
    if of_cpu or not torch.cuda.is_initialized():
        return f"peak {peak_memory(torch.device('cpu')) / 2**30:.1f} GiB of this process"
    card = torch.device("cuda", torch.cuda.current_device())
    whole = torch.cuda.get_device_properties(card).total_memory
    return f"peak {peak_memory(card) / 2**30:.1f} of {whole / 2**30:.1f} GiB on {card}"


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
