"""Send the canary ahead of a run: one child process for each checkpoint, before anything expensive."""

import json
import logging
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from mimbench.benchmarks.cells import Candidate, Cell
from mimbench.benchmarks.lifecycle import finished
from mimbench.benchmarks.preflight import child_environment
from mimbench.system.errors import UserError

logger = logging.getLogger(__name__)
CANARY_FILE = "canary.json"


def check_checkpoints(cells: Sequence[Cell], device: str, unasked: Collection[str] = ()) -> None:
    """Refuse to go on if a checkpoint with work to do has a fault; what it found is kept beside results.

    Args:
        cells: What is to run.
        device: Where the k-NN computes.
        unasked: Names of checkpoints that are not checked.
    """
    faulty = []
    for who in {cell.candidate.folder: cell.candidate for cell in cells}.values():
        mine = [c for c in cells if c.candidate.folder == who.folder]
        left = [c for c in mine if not c.problem and not finished(c)]
        labelled = [c for c in mine if c.labelled_images and not c.problem]
        if who.twin or not left or who.weights["name"] in unasked:
            continue
        if not labelled:
            logger.warning(
                "canary: no labelled images among the data sets, %s is not checked",
                who.weights["name"],
            )
        elif not _sound(who, mine[0].folder.parent / CANARY_FILE, labelled[0], device):
            faulty.append(who.weights["name"])
    if faulty:
        raise UserError(
            f"the canary found faults in {', '.join(faulty)} (see above); look at it with `python -m "
            "mimbench inspect`, or run with --no-canary if the weights are meant to be like that"
        )


def _sound(who: Candidate, kept: Path, cell: Cell, device: str) -> bool:
    if kept.is_file():
        found = json.loads(kept.read_text())
        if found["digest"] == who.weights["digest"] and not found["faults"]:
            logger.info("canary: %s was found sound before", who.weights["name"])
            return True
    command = [sys.executable, "-m", "mimbench", "canary", str(who.path), "--out", str(kept)]
    command += ["--data", str(cell.run.config["data"]), "--device", device]
    command += ["--which", who.which] if who.which else []
    command += ["--num-heads", str(who.num_heads)] if who.num_heads else []
    done = subprocess.run(command, env=child_environment(), stdout=2, check=False)
    if not kept.is_file():
        raise UserError(
            f"the canary did not finish (exit code {done.returncode}); --no-canary skips it"
        )
    return done.returncode == 0
