"""The demo's checkpoint: sample data and a tiny HPM pretraining, made at first use."""

import logging
import subprocess
import sys
from pathlib import Path

from mimbench.benchmarks.preflight import child_environment
from mimbench.checkpoints.files import write_weights
from mimbench.sample import sample_root
from mimbench.system.errors import UserError
from mimbench.system.source import ROOT
from mimbench.vit.weights import VitSpec, random_weights

logger = logging.getLogger(__name__)
RECIPE = ROOT / "pretrain" / "configs" / "demo.yaml"
ENCODER = "encoder.safetensors"
NAME = "hpm-demo"


def demo_checkpoint(out: Path, *, track: str = "") -> Path:
    """Return the checkpoint that the demo evaluates; pretrains it if it is not there yet."""
    logger.info("sample data: %s", sample_root())
    folder = out / "pretrain"
    return pretrain_demo(folder, track=track) if RECIPE.is_file() else _stand_in(folder)


def farewell(out: Path) -> str:
    """Return what stands below the demo's table: where the report is, and what to type next."""
    lines = [
        f"The report: {out / 'report.html'}",
        "Your checkpoint, what it would cost first and then the run:",
        "  ./run_all.sh ckpt.pth --data DATA --dry-run",
        "  ./run_all.sh ckpt.pth --data DATA",
    ]
    return "\n" + "\n".join(lines) + "\n"


def pretrain_demo(folder: Path, *, seed: int = 0, track: str = "") -> Path:
    """Return the encoder of the demo's pretraining in a folder, made if it is not there yet."""
    done = folder / ENCODER
    if done.is_file():
        logger.info("pretraining: done before, %s", done)
        return done
    logger.info("pretraining a tiny HPM into %s", folder)
    command = [sys.executable, "-m", "pretrain", str(RECIPE), "--out", str(folder)]
    command += ["--set", f"training.seed={seed}"] if seed else []
    command += ["--track", track] if track else []
    # too small for a second thread, and so the weights are the same however many cores there are
    environment = {**child_environment(), "OMP_NUM_THREADS": "1"}
    code = subprocess.run(command, env=environment, stdout=2, check=False).returncode
    if code or not done.is_file():
        raise UserError(f"the demo's pretraining ended with exit code {code}; see the lines above")
    return done


def _stand_in(folder: Path) -> Path:
    """Write random weights of the demo's shape, where there is no pretraining recipe."""
    logger.warning("no %s here: the demo evaluates random weights in its place", RECIPE.name)
    spec = VitSpec(embed_dim=96, depth=4, num_heads=3, mlp_dim=384, patch_size=8, grid=(4, 4))
    path = folder / "untrained.safetensors"
    write_weights(path, random_weights(spec, seed=1))
    return path.resolve()
