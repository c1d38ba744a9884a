"""Cells whose child is a small script in place of `mimbench eval`: it writes what its config.yaml says."""

import sys
from pathlib import Path
from typing import Any

from mimbench.benchmarks.cells import Candidate, Cell
from mimbench.benchmarks.run_config import RunConfig
from mimbench.suite.running.cell_job import CellJob
from mimbench.suite.running.launch import Slot

CHILD = """
import sys, time
from pathlib import Path
import yaml
from mimbench.system.files import write_json
out = Path(sys.argv[1]); run = yaml.safe_load((out / "config.yaml").read_text())
config = run["config"]
print(config.get("say", "working"), flush=True)
starts = len((out / "starts").read_text()) if (out / "starts").exists() else 0
(out / "starts").write_text("x" * (starts + 1))
time.sleep(config["seconds"] if not starts else config.get("later", config["seconds"]))
if "leave" in config:
    sys.exit(config["leave"])
if config.get("fail"):
    print("broken on purpose", flush=True); sys.exit(3)
weights = {"name": "a", "digest": run["weights_digest"], "format": "hpm", "which": "", "model": "B/16"}
source = {"commit": "", "dirty": False, "python": "", "libraries": {}, "device": "cpu", "host_cores": 1,
          "seed": 0, "seconds": config["seconds"], "peak_memory_mb": 0.0, "argv": []}
write_json(out / "result.json", {"benchmark": run["benchmark"], "task": run["task"], "version": 1,
  "main_metric": "top1", "profile": "paper", "protocol": "p" + run["benchmark"],
  "metrics": {"top1": config["answer"]}, "config": {}, "weights": weights, "status": "done", "provenance": source})
"""


def command(folder: Path) -> list[str]:
    return [
        sys.executable,
        "-S",
        "-c",
        f"import sys; sys.path[:0] = {sys.path!r}\n{CHILD}",
        str(folder),
    ]


def child(cell: Cell, slot: Slot) -> list[str]:
    return command(cell.folder)


class LightJob(CellJob):
    """What a node runs in the tests of the cluster."""

    def command(self) -> list[str]:
        return command(Path(self.folder))


def cell(
    out: Path, name: str, after: tuple[str, ...] = (), problem: str = "", **config: Any
) -> Cell:
    who = Candidate(
        path=out / "a.pth",
        weights={"name": "a", "digest": "d" * 64, "format": "hpm", "which": "", "model": "B/16"},
    )
    run = RunConfig(
        benchmark=name,
        task="t",
        profile="paper",
        dataset="imagenet",
        checkpoint=who.path,
        config={"seconds": 0.05, "answer": 1.0, "seed": 0, **config},
        weights_digest="d" * 64,
    )
    return Cell(
        run=run,
        folder=out / who.folder / name,
        candidate=who,
        after=after,
        version=1,
        main_metric="top1",
        protocol=f"p{name}",
        problem=problem,
    )
