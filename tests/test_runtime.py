"""The process we run in: how it joins a group, and how it leaves one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mimbench.system.errors import UserError
from mimbench.system.runtime import callers_tf32, pick_device, process_group, tf32_used
from tests.support.processes import free_port

ROOT = Path(__file__).parents[1]
LEAVE = """
import sys
import torch
import torch.distributed as dist
from mimbench.system.runtime import process_group
sys.setswitchinterval(1000.0)
with process_group("cpu") as ranks:
    held = dist.group.WORLD
    for _ in range(50):
        dist.all_gather([torch.zeros(1)], torch.ones(1), async_op=True)
"""


def test_a_process_ends_well_while_its_group_is_held_elsewhere() -> None:
    """A thread of the group that frees a tensor while Python ends took the process down with 134.

    With so long an interval it never gets the interpreter's lock before the main thread waits.
    """
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LEAVE],
        cwd=ROOT,
        env={**os.environ, **group, "MASTER_PORT": str(free_port())},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


class JoinedError(Exception):
    """Says with which backend a group would have been joined."""


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pretend to be the second of two processes on a machine with one GPU; return the GPUs taken."""
    taken: list[int] = []
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)

    def join(backend: str, **_: Any) -> None:
        raise JoinedError(backend)

    monkeypatch.setattr(dist, "init_process_group", join)
    return taken


def test_a_run_on_the_cpu_takes_no_gpu_that_happens_to_be_there(one_gpu: list[int]) -> None:
    with pytest.raises(JoinedError, match="gloo"), process_group("cpu"):
        pass
    assert one_gpu == []


def test_more_processes_than_gpus_say_so(
    one_gpu: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="process 1 of this machine finds 1 GPUs"), process_group():
        pass
    with (
        pytest.raises(UserError, match="'cuda:0' names one GPU for all 2"),
        process_group("cuda:0"),
    ):
        pass
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(JoinedError, match="nccl"), process_group("cuda"):
        pass
    assert one_gpu == [0]


@pytest.mark.parametrize(
    ("error", "leaves"), [(None, True), (RuntimeError("mine alone"), False), (SystemExit(75), True)]
)
def test_a_process_that_fails_alone_does_not_wait_for_the_others(
    error: BaseException | None, leaves: bool, one_gpu: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """nccl's end is collective: the launcher would never see that this process is gone."""
    left: list[bool] = []
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append(True))

    def work() -> None:
        with process_group():
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    assert bool(left) == leaves


def test_picking_a_device_turns_tf32_off() -> None:
    """torch's default is TF32 for convolutions: fp32 features of a GPU would not be the CPU's."""
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    pick_device("cpu")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("convolution", [False, True])
def test_a_callers_tf32_comes_back(product: bool, convolution: bool) -> None:
    """`mimbench.evaluate` in a training script must not make the rest of the training slower."""
    with callers_tf32():
        torch.backends.cuda.matmul.allow_tf32 = product
        torch.backends.cudnn.allow_tf32 = convolution
        with callers_tf32():
            pick_device("cpu")
        assert torch.backends.cuda.matmul.allow_tf32 == product
        assert torch.backends.cudnn.allow_tf32 == convolution
        assert tf32_used(torch.device("cuda")) == (product or convolution)
        assert not tf32_used(torch.device("cpu"))
