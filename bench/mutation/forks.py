"""A child for each trial: torch and pytest are imported once, the project in the child alone."""

import contextlib
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HEAVY = (
    "torch, torchvision, timm, numpy, PIL.Image, yaml, pytest, pytest_timeout, hypothesis, jaxtyping",
    "torchvision.transforms.v2, timm.models, timm.data, timm.optim, timm.scheduler",
    "sklearn.linear_model, sklearn.neighbors, sklearn.metrics, scipy.stats, scipy.optimize, skimage",
    "faiss",
    "mmengine.model, mmengine.runner, mmseg.models, mmseg.datasets, mmseg.evaluation",
    "detectron2.modeling, detectron2.data, detectron2.evaluation, detectron2.engine, pycocotools",
)
"""What nobody here wrote; a line whose packages are not installed is left out."""


ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def import_heavy() -> None:
    """Import what the project stands on, once, before the first fork."""
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    for line in HEAVY:
        with contextlib.suppress(ImportError):
            for name in line.split(", "):
                importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    gc.collect()
    gc.freeze()  # keeps the pages of these packages shared


class Ended:
    """How a child ended: what it said, its exit code, or that its time was over."""

    def __init__(self, said: Any, code: int | None, log: str, cpu: float) -> None:
        self.said, self.code, self.log, self.cpu = said, code, log, cpu


def in_child(work: Callable[[Path], Any], *, cpu_seconds: float) -> Ended:
    """Run `work(scratch folder)` in a fork; return what it returned, as JSON carries it.

    The limit is on processor time, which a busy machine does not use up; five times as much wall
    time, and a minute, end a child that waits for ever.
    """
    scratch = Path(tempfile.mkdtemp(prefix="mutation-"))
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _work(work, scratch, writer, cpu_seconds)
    os.close(writer)
    try:
        code, cpu = _wait(child, time.monotonic() + 60 + 5 * cpu_seconds)
        with os.fdopen(reader, "rb") as pipe:
            text = pipe.read()
        log = (scratch / "log").read_text(errors="replace") if (scratch / "log").exists() else ""
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        shutil.rmtree(scratch, ignore_errors=True)
    return Ended(json.loads(text) if text.endswith(b"\n") else None, code, log, cpu)


def _work(work: Callable[[Path], Any], scratch: Path, writer: int, cpu_seconds: float) -> None:
    os.setsid()
    os.set_inheritable(writer, False)
    log = os.open(scratch / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    soft = int(cpu_seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (soft, soft + 2))
    code = 1
    try:
        said = work(scratch)
        os.write(writer, json.dumps(said).encode() + b"\n")
        code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int, until: float) -> tuple[int | None, float]:
    """Return (exit code or None where time ran out, processor seconds of the child)."""
    pause = 0.01
    while True:
        pid, status, used = os.wait4(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            out_of_time = code in {-signal.SIGXCPU, -signal.SIGKILL}
            return None if out_of_time else code, used.ru_utime + used.ru_stime
        if time.monotonic() > until:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None, 5 * 60.0
        time.sleep(pause)
        pause = min(pause * 1.3, 0.2)
