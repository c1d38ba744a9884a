"""The process we run in: how it joins a group, and how it leaves one."""

import os
import subprocess
import sys
from pathlib import Path

from tests.processes import free_port

ROOT = Path(__file__).parents[1]
LEAVE = """
import sys
import torch
import torch.distributed as dist
from mimbench.runtime import process_group
sys.setswitchinterval(1000.0)
with process_group() as ranks:
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
