"""Is there room for a run: what its cells take at least, against what is free, before anything starts.

It takes no measurement, so it costs nothing and runs ahead of every run; `plan` measures instead.
"""

import logging
import math
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from mimbench.benchmarks.cells import Cell
from mimbench.benchmarks.lifecycle import finished
from mimbench.features.bank import cache_root
from mimbench.suite.running.launch import physical_gpu
from mimbench.system.errors import UserError
from mimbench.vit.footprint import MB, Footprint

logger = logging.getLogger(__name__)


def check_room(cells: Sequence[Cell], out: Path, *, side_by_side: int = 1, device: str) -> None:
    """Say what the cells to do need; refuse where the disk cannot hold it, warn about memory."""
    todo = [c for c in cells if not c.problem and not finished(c)]
    needs = [(c, c.footprint) for c in todo]
    if not needs:
        return
    runs, banks = sum(need.disk for _, need in needs), features_mb(needs)
    largest, most = max(needs, key=lambda pair: pair[1].memory)
    memory = sum(sorted((n.memory for _, n in needs), reverse=True)[:side_by_side])
    free = free_memory_mb(device)
    logger.info(
        "room: at least %s of disk for runs and %s for features, %s of memory (most for %s); "
        "free: %s in %s, %s of memory",
        gigabytes(runs),
        gigabytes(banks),
        gigabytes(memory),
        largest.run.benchmark,
        gigabytes(free_disk_mb(out)),
        out,
        gigabytes(free),
    )
    _check_disk({out: runs, cache_root(): banks})
    if memory > free:
        logger.warning(
            "%s needs at least %s of memory and %s are free: lower --max-batch, or --recompute where "
            "the backbone is trained",
            largest.label,
            gigabytes(most.memory),
            gigabytes(free),
        )


def features_mb(needs: Iterable[tuple[Cell, Footprint]]) -> float:
    """Return what the features of all cells take in the cache: those of a checkpoint share theirs."""
    banks: dict[str, float] = {}
    for cell, need in needs:
        banks[cell.candidate.folder] = max(banks.get(cell.candidate.folder, 0.0), need.cache)
    return sum(banks.values())


def _check_disk(needs: Mapping[Path, float]) -> None:
    disks: dict[int, list[tuple[Path, float]]] = {}
    for folder, need in needs.items():
        disks.setdefault(existing(folder).stat().st_dev, []).append((folder, need))
    for parts in disks.values():
        need, free = sum(n for _, n in parts), free_disk_mb(parts[0][0])
        if need > free:
            where = ", ".join(f"{gigabytes(n)} in {folder}" for folder, n in parts)
            raise UserError(
                f"the disk has {gigabytes(free)} free, the run needs at least {gigabytes(need)} "
                f"({where}); free some, choose another --out, or set MIMBENCH_CACHE to a folder on a "
                "larger disk; --no-room-check runs anyway"
            )


def existing(folder: Path) -> Path:
    """Return the nearest folder above that exists."""
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    return folder


def free_disk_mb(folder: Path) -> float:
    """Return the free space of the disk that holds a folder, whether the folder exists or not."""
    return shutil.disk_usage(existing(folder)).free / MB


def free_memory_mb(device: str) -> float:
    """Return the free memory of the device: of a GPU, else of this machine."""
    if device != "cpu" and torch.cuda.device_count():
        return _free_gpu_mb(int(device.partition(":")[2] or 0))
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    found = [int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable")]
    return found[0] if found else math.inf


def _free_gpu_mb(index: int) -> float:
    # asked of the driver: to ask torch would hold memory on the GPU for as long as the run takes
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(
            [*command, "-i", physical_gpu(index)], capture_output=True, text=True, check=True
        )
        return float(said.stdout)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return math.inf


def gigabytes(mb: float) -> str:
    """Return an amount as a person reads it."""
    return f"{mb / 1024:.1f} GB" if mb >= 1024 else f"{mb:.0f} MB"
