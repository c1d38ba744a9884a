"""What a run needs at least of disk and memory, by arithmetic: told before anything is computed.

It takes no measurement, so it costs nothing and runs ahead of every run; `plan` measures instead.
"""

import logging
import math
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mimbench.benchmarks.cells import Cell, finished
from mimbench.features.bank import cache_root
from mimbench.suite.running.launch import physical_gpu
from mimbench.system.errors import UserError
from mimbench.vit.weights import VitSpec, shapes

logger = logging.getLogger(__name__)
MB = 2**20
PROCESS_MB = 1000
"""What a process holds once torch, timm and a framework are imported."""
TRAINED_BYTES = 16
"""For each parameter: itself, its gradient and Adam's two moments, in fp32."""
STATE_BYTES = 2 * 12
"""For each parameter: a saved state without gradients, twice while the newer replaces the older."""
KEPT_BYTES = {"fp32": 68, "bf16": 34, "fp16": 34}
"""Of activations for each token, block and channel (Korthikanti et al. 2022, without the attention
matrix, which a fused kernel does not keep)."""
VECTORS = 2
"""Class token and mean of the patches, of each of the last `BLOCKS` blocks."""
BLOCKS = 4
STORED_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What one cell takes at least, in MB."""

    disk: float = 0.0
    """Under the output folder."""
    cache: float = 0.0
    """Features, in the cache, which cells of a checkpoint share."""
    memory: float = PROCESS_MB


def footprint(cell: Cell) -> Footprint:
    """Return what a cell takes at least."""
    spec, config = cell.candidate.spec, cell.order.config
    if spec is None:
        return Footprint()
    parameters = sum(math.prod(shape) for shape in shapes(spec).values())
    machine = config.get("machine", {})
    fits = int(machine.get("max_batch", 1))
    at_once = min(int(config.get("batch") or fits), fits)
    precision = str(config.get("precision", "fp32"))
    kept = tokens(spec, config) * spec.embed_dim * at_once * KEPT_BYTES.get(precision, 68) / MB
    if "storage" in config:
        # a frozen backbone keeps the activations of one block; linear probes see new views and store none
        trains = "epochs" in config
        size = STORED_BYTES.get(str(config["storage"]), 4)
        bank = 0 if trains else cell.images * VECTORS * min(BLOCKS, spec.depth) * spec.embed_dim
        return Footprint(cache=bank * size / MB, memory=PROCESS_MB + parameters * 4 / MB + kept)
    kept *= 2 if machine.get("recompute") else spec.depth
    return Footprint(
        disk=parameters * STATE_BYTES / MB,
        memory=PROCESS_MB + parameters * TRAINED_BYTES / MB + kept,
    )


def tokens(spec: VitSpec, config: Mapping[str, Any]) -> int:
    """Return how many patches the recipe's images have."""
    size = config.get("crop") if isinstance(config.get("crop"), Sequence) else None
    size = size or config.get("image_size") or spec.image_size
    height, width = size if isinstance(size, Sequence) else (size, size)
    return -(-int(height) // spec.patch_size) * -(-int(width) // spec.patch_size)


def check_room(cells: Sequence[Cell], out: Path, *, side_by_side: int = 1, device: str) -> None:
    """Say what the cells to do need; refuse where the disk cannot hold it, warn about memory."""
    todo = [c for c in cells if not c.problem and not finished(c)]
    needs = [(c, footprint(c)) for c in todo]
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
        largest.order.benchmark,
        gigabytes(free_disk_mb(out)),
        out,
        gigabytes(free),
    )
    _check_disk({out: runs, cache_root(): banks})
    if memory > free:
        logger.warning(
            "%s needs at least %s of memory and %s are free: lower --max-batch, or --recompute for "
            "detection",
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
