"""Peak memory of a piece of work, alone in a fresh process.

On a GPU it is what the allocator held, on a CPU how much the process grew.
"""

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from mimbench.system.memory import peak_memory


def peak_bytes(work: Callable[..., object], *arguments: Any) -> int:
    """Return the peak of work(*arguments), a module's function with arguments that pickle."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, work, arguments, torch.get_num_threads()).result()


def _measure(work: Callable[..., object], arguments: tuple[Any, ...], threads: int) -> int:
    torch.set_num_threads(threads)
    before = _resident()
    work(*arguments)
    held = max(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())), default=0)
    return held or _largest() - before


def _resident() -> int:
    pages = Path("/proc/self/statm")
    if not pages.exists():
        return _largest()
    return int(pages.read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def _largest() -> int:
    return peak_memory(torch.device("cpu"))
