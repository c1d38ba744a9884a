"""The judge's other half: reads one file after another and says what became of each."""

import json
import os
import resource
import sys
import time
import traceback
from functools import cache
from pathlib import Path

import torch

from mimbench.checkpoints.files import read_checkpoint, read_weights
from mimbench.checkpoints.inspection import describe, text
from mimbench.system.errors import UserError
from tests.support.checkpoint_layouts import LAYOUTS, TINY, canonical

CEILING = 12 << 30
ROUNDING = 0.13
"""What a weight near one loses in the narrowest type, float8; other values differ by far more."""


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def _same(path: Path, layout: str) -> bool:
    """Return whether a file gives the tensors that the layout's files are written with."""
    tensors, wanted = read_weights(path, num_heads=3).tensors, _wanted(layout)
    return tensors.keys() == wanted.keys() and all(
        tensor.shape == wanted[name].shape
        and torch.allclose(tensor, wanted[name], atol=ROUNDING, rtol=0)
        for name, tensor in tensors.items()
    )


@cache
def _wanted(layout: str) -> dict[str, torch.Tensor]:
    return canonical(LAYOUTS[layout].spec(TINY))


def judged(path: Path, layout: str) -> dict[str, object]:
    """Return the verdict on a file."""
    Path("/proc/self/clear_refs").write_text("5")
    before, start = _peak(), time.process_time()
    shown, same = "", False
    try:
        reading = read_checkpoint(path, num_heads=3)
        if reading.faults:
            read_weights(path, num_heads=3)
        shown = text(describe(reading), limit=50)
        outcome, message = "read", ""
    except UserError as error:
        outcome, message, shown = "refused", str(error), str(error)
    except BaseException as error:  # noqa: BLE001 (what gets here is what is being counted)
        outcome, message = "traceback", "".join(traceback.format_exception_only(error))
        shown = ""
    seconds, memory = time.process_time() - start, _peak() - before
    if outcome == "read":
        same = _same(path, layout)
    return {"outcome": outcome, "message": message, "shown": shown, "same": same,
            "seconds": seconds, "memory": memory}  # fmt: skip


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (CEILING, CEILING))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        layout, name = line.split()
        path = Path(os.fsdecode(bytes.fromhex(name)))
        sys.stdout.write(json.dumps(judged(path, layout)) + "\n")
        sys.stdout.flush()
