"""How one cell becomes processes: the command line, the environment, the end of the parent."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mimbench.benchmarks.preflight import child_environment
from mimbench.benchmarks.run_config import CONFIG_FILE, LOG_FILE
from mimbench.system.errors import UserError
from mimbench.system.exit_codes import ExitCode, report_error
from mimbench.system.runtime import usable_cores

PARENT = "MIMBENCH_PARENT"
VISIBLE = "CUDA_VISIBLE_DEVICES"
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A share of the machine: one cell runs in it at a time."""

    gpus: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def make_slots(gpus: int, per_task: int, side_by_side: int = 1) -> list[Slot]:
    """Return the slots of a machine with `gpus` GPUs of which each cell gets `per_task`.

    Without GPUs, `side_by_side` cells share the cores: small models gain little from a second one.
    """
    if not gpus and side_by_side <= 1:
        return [Slot()]
    if not gpus:
        threads = str(max(1, usable_cores() // side_by_side))
        return [Slot(environment={"OMP_NUM_THREADS": threads}) for _ in range(side_by_side)]
    groups = [
        tuple(range(first, first + per_task)) for first in range(0, gpus - per_task + 1, per_task)
    ]
    return [gpu_slot(group) for group in groups]


def gpu_slot(gpus: Sequence[int]) -> Slot:
    """Return a slot that sees these GPUs only."""
    return Slot(gpus=tuple(gpus), environment={VISIBLE: ",".join(map(physical_gpu, gpus))})


def hidden_gpus(slot: Slot) -> Slot:
    """Return the slot on a machine whose GPUs are not to be used."""
    return replace(slot, environment={**slot.environment, VISIBLE: ""})


def physical_gpu(index: int) -> str:
    """Return how the driver calls a GPU that this process knows by its index."""
    allowed = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    if allowed and index >= len(allowed):
        raise UserError(f"there is no GPU {index}: {VISIBLE} allows {', '.join(allowed)}")
    return allowed[index] if allowed else str(index)


def eval_command(
    folder: Path, processes: int = 1, nodes: int = 1, *, endpoint: str = ""
) -> list[str]:
    """Return the command that runs the cell in `folder`; torchrun where several processes share it.

    Args:
        folder: The run's folder.
        processes: Processes on this node.
        nodes: Nodes that share the run; each runs the same command.
        endpoint: host:port of the first node, where there are several.
    """
    target = ["-m", "mimbench", "eval", str(folder / CONFIG_FILE)]
    if processes * nodes <= 1:
        return [sys.executable, *target]
    meeting = ["--standalone"]
    if nodes > 1:
        meeting = ["--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
        meeting += ["--rdzv-id", folder.name]
    launcher = ["-m", "torch.distributed.run", *meeting, "--nproc-per-node", str(processes)]
    return [sys.executable, *launcher, *target]


def start(command: Sequence[str], folder: Path, slot: Slot) -> subprocess.Popen[bytes]:
    """Start a cell's process group; all its output goes to the cell's log."""
    environment = {**child_environment(), **slot.environment, PARENT: str(os.getpid())}
    with (folder / LOG_FILE).open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes], patience: float = 45.0) -> None:
    """Ask a cell's process group to save and end, then insist.

    torchrun, which leads processes outside the group, gives them 30 seconds and must outlive that.
    """
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(timeout=patience)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
        else:
            break
    process.wait()


def follow_parent() -> None:
    """Make this process end when the runner that started it dies, even by kill -9 (Linux)."""
    parent = os.environ.get(PARENT)
    if not parent or not sys.platform.startswith("linux") or "TORCHELASTIC_RUN_ID" in os.environ:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        report_error("the runner that started this process is gone; start it again")
        sys.exit(ExitCode.FAILED)
