"""The device that the GPU tests run on, and how close its numbers must be to the CPU's."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

TOLERANCE = {"fp32": 2e-5, "bf16": 4e-2, "fp16": 6e-3}
"""Largest difference from the CPU's fp32 answer, relative to its largest value; TF32 would be 1e-3."""


def chosen_device() -> torch.device:
    """Return the GPU, or what MIMBENCH_GPU_DEVICE names: `cpu` rehearses the tests without one."""
    name = os.environ.get("MIMBENCH_GPU_DEVICE", "cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA GPU; MIMBENCH_GPU_DEVICE=cpu rehearses these tests")
    return torch.device(name)


def real_gpu(device: torch.device) -> torch.device:
    """Return the device, or skip: a CPU has nothing of the kind to test."""
    if device.type != "cuda":
        pytest.skip("rehearsal on a CPU: this needs the device itself")
    return device


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference relative to the other's largest value."""
    one, other = one.detach().float().cpu(), other.detach().float().cpu()
    return ((one - other).abs().max() / other.abs().max().clamp(min=1e-12)).item()


@contextmanager
def no_blocking_reads(device: torch.device) -> Iterator[None]:
    """Raise where the host waits for the device."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
