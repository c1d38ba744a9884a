"""The machine and the environment: Python, GPUs, shared memory."""

import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from mimbench.doctor.check import Check, fault, ok, warn
from mimbench.doctor.child import ChildError, try_script

_ROOT = Path(__file__).parents[2]
_SHARED_MEMORY_GIB = 2

_CUDA = """
import torch
if torch.version.cuda is None:
    print("none: this torch was built without CUDA")
elif not torch.cuda.is_available():
    print("none: torch sees no GPU")
else:
    for index in range(torch.cuda.device_count()):
        torch.ones(64, 64, device=f"cuda:{index}").mm(torch.ones(64, 64, device=f"cuda:{index}")).sum().item()
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    gib = [torch.cuda.get_device_properties(index).total_memory >> 30 for index in range(len(names))]
    print(f"CUDA {torch.version.cuda}: " + ", ".join(f"{n} {g} GiB" for n, g in zip(names, gib)))
"""


def fix_environment() -> str:
    """Return the command that makes the environment anew; in seconds where downloads are cached."""
    setup, own = shlex.quote(str(_ROOT / "setup.sh")), _ROOT / ".venv"
    if Path(sys.prefix) == own:
        return f"rm -rf {shlex.quote(str(own))} && {setup}"
    return f"{setup} && {shlex.quote(str(own / 'bin' / 'python'))} -m mimbench doctor"


def check_python() -> Check:
    """Check the version of the Python that runs."""
    version = platform.python_version()
    if (3, 10) <= sys.version_info[:2] <= (3, 13):
        return ok("Python", f"{version} in {sys.prefix}")
    return fault("Python", f"{version}; expected 3.10 to 3.13", fix_environment())


def check_cuda() -> Check:
    """Check that torch can compute on every GPU, or say why it has none."""
    try:
        detail = try_script(_CUDA)
    except ChildError as error:
        return fault("CUDA", str(error), "nvidia-smi")
    if not detail.startswith("none"):
        return ok("CUDA", detail)
    if _driver_has_gpu():
        return fault(
            "CUDA",
            f"{detail}, but the NVIDIA driver has one: the driver is too old for this torch, or "
            "CUDA_VISIBLE_DEVICES hides the GPU",
            "unset CUDA_VISIBLE_DEVICES; nvidia-smi  # its driver must support torch's CUDA version",
        )
    return warn("CUDA", f"{detail}; everything runs on the CPU")


def _driver_has_gpu() -> bool:
    """Return whether the NVIDIA driver lists a GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode == 0 and "GPU" in done.stdout


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Check the memory through which data workers pass images; containers have 64 MB by default."""
    if not folder.is_dir():
        return ok("shared memory", f"no {folder} on this system")
    gib = shutil.disk_usage(folder).total / 2**30
    if gib < _SHARED_MEMORY_GIB:
        return warn(
            "shared memory",
            f"{gib:.2f} GiB in {folder}: data workers may die with a bus error; "
            f"{_SHARED_MEMORY_GIB} GiB or more are wanted",
            "docker run --shm-size=8g ...  # or, as root: mount -o remount,size=8G /dev/shm",
        )
    return ok("shared memory", f"{gib:.1f} GiB")
