"""Part 1: the GPU tests (`pytest -m gpu`), or their rehearsal on a CPU."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence

from bench.gpu.measure import part_setting

QUICK = ["tests/test_gpu_networks.py", "tests/test_gpu_pretraining.py"]
"""What a rehearsal runs: the tasks are tested on a CPU anyway."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tests; their output goes to the log, their counts to the figures."""
    setting = part_setting(argv, __doc__)
    environment = dict(os.environ)
    if setting.rehearse:
        environment["MIMBENCH_GPU_DEVICE"] = "cpu"
    chosen = setting.pick(["tests"], QUICK)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *chosen, "--durations=10"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    sys.stdout.write(done.stdout[-60_000:] + done.stderr[-5_000:])
    counts = {
        name: int(count)
        for count, name in re.findall(
            r"(\d+) (passed|failed|skipped|error)", done.stdout.splitlines()[-1]
        )
    }
    setting.write("tests", {"exit_code": done.returncode, **counts})
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
