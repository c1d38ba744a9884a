"""Part 7: the whole demo on the device: pretraining, twin, every task that is installed, table."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec

from bench.gpu.measure import part_setting

NEEDS = {"coco-vitdet-12": "detectron2", "ade-upernet-160": "mmseg", "in-knn": "faiss"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo, leaving out by name what this machine lacks."""
    setting = part_setting(argv, __doc__)
    left_out = [name for name, package in NEEDS.items() if find_spec(package) is None]
    kept = [
        "in-knn", "in-lin-mae", "in-logreg", "in-ft-hpm", "in-shot-5", "coco-vitdet-12",
        "ade-upernet-160",
    ]  # fmt: skip
    kept = [name for name in kept if name not in left_out]
    command = [
        sys.executable,
        "-m",
        "mimbench",
        "run",
        "--demo",
        "--out",
        str(setting.out / "demo"),
    ]
    if setting.rehearse:
        # the demo itself is tested elsewhere: here only that the command is right
        command = [sys.executable, "-m", "mimbench", "run", "--help"]
    else:
        command += ["--only", ",".join(kept)]
    began = time.perf_counter()
    done = subprocess.run(
        command, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    sys.stdout.write(done.stderr[-20_000:] + done.stdout[-10_000:])
    figures = {
        "exit_code": done.returncode,
        "seconds": time.perf_counter() - began,
        "left_out": left_out,
        "table": [] if setting.rehearse else done.stdout.splitlines(),
    }
    setting.write("demo", figures)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
