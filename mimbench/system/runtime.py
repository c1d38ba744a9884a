"""The process we run in: device, precision, ranks and logging, each set up in one place."""

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from mimbench.system.errors import UserError
from mimbench.system.logs import configure_logging as configure_logging

Precision = Literal["fp32", "bf16", "fp16"]

SETTLE = 0.2
"""Seconds in which a group's threads let go of the last collectives' tensors."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Where this process stands among its peers; (0, 1, 0) alone."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def main(self) -> bool:
        """This process writes files and logs."""
        return self.rank == 0


def fp32_means_fp32() -> None:
    """Turn TF32 off for products and convolutions, so that `precision: fp32` is what it says.

    By torch's default convolutions round their inputs to TF32's 11 bits: a frozen patch embedding
    would give other features on a GPU than on a CPU.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def tf32_used(device: torch.device) -> bool:
    """Say whether fp32 products or convolutions on this device are rounded to TF32 now."""
    allowed = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    return device.type == "cuda" and bool(allowed)


@contextmanager
def callers_tf32() -> Iterator[None]:
    """Leave the caller's TF32 switches as they were: they belong to a training script, not to us."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def pick_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """Return the device that the name asks for (auto, cpu, cuda or cuda:N), with TF32 off."""
    fp32_means_fp32()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UserError(
                f"device '{name}' was asked for, but torch finds no CUDA GPU; try --device cpu"
            )
        device = torch.device(name if ":" in name else f"cuda:{local_rank}")
        torch.cuda.set_device(device)
        return device
    return torch.device(name)


@contextmanager
def process_group(device: str = "auto") -> Iterator[Ranks]:
    """Join the group that torchrun announces (nccl on GPUs, gloo on CPUs); alone without torchrun.

    A group that another launcher has made already is used and left as it is.

    Args:
        device: What the run uses: a GPU of this machine that it does not use changes nothing.
    """
    if dist.is_initialized():
        rank = dist.get_rank()
        local = torch.cuda.current_device() if torch.cuda.is_available() else rank
        yield Ranks(rank=rank, world=dist.get_world_size(), local=local)
        return
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Ranks()
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    backend = "nccl" if device != "cpu" and torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        _take_gpu(device, local)
    dist.init_process_group(backend, timeout=timedelta(minutes=30))
    failed = False
    try:
        yield Ranks(rank=dist.get_rank(), world=dist.get_world_size(), local=local)
    except Exception:
        failed = True
        raise
    finally:
        # nccl's end waits for all processes, and the others may be waiting for this one: a process
        # that fails just goes, and its launcher ends the others
        if not (failed and backend == "nccl"):
            dist.destroy_process_group()
            # whoever else holds the group (DDP, detectron2's cache) keeps its threads alive, and one
            # that frees a tensor when Python has begun to end aborts the process, its work all done
            time.sleep(SETTLE)


def _take_gpu(device: str, local: int) -> None:
    count, asked = torch.cuda.device_count(), int(os.environ["WORLD_SIZE"])
    if ":" in device and asked > 1:
        raise UserError(
            f"device '{device}' names one GPU for all {asked} processes; say 'cuda': each takes its own"
        )
    if local >= count:
        raise UserError(
            f"process {local} of this machine finds {count} GPUs: start at most one process for each, "
            "or run on the device 'cpu'"
        )
    torch.cuda.set_device(local)


def all_reduce_sum(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes (the tensor itself when alone)."""
    if not dist.is_initialized():
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value


def all_reduce_mean(value: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes (the tensor itself when alone)."""
    if not dist.is_initialized():
        return value
    return all_reduce_sum(value) / dist.get_world_size()


def all_rows(value: Tensor) -> Tensor:
    """Return the rows of all processes, one process after the other; each has as many."""
    if not dist.is_initialized():
        return value
    found = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(found, value.contiguous())
    return torch.cat(found)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the mixed-precision context; nothing for fp32."""
    if precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)


def usable_cores() -> int:
    """Return how many processors this process may really use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
