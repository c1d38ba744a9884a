"""What the parts share: where they run, how a part's figures are written, how time is taken."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.stopwatch import Stopwatch
from mimbench.system.files import write_json
from mimbench.system.options import Parser, add_option
from mimbench.system.runtime import fp32_means_fp32
from mimbench.system.source import source_state


@dataclass(frozen=True)
class BenchSetting:
    """Where a part runs and how large."""

    device: torch.device
    rehearse: bool
    out: Path

    def pick(self, real: Any, small: Any) -> Any:
        """Return the real size on a GPU, the small one in a rehearsal."""
        return small if self.rehearse else real

    def write(self, name: str, figures: dict[str, Any]) -> None:
        """Write figures at once, so that a part that is cut off leaves what it has."""
        write_json(self.out / f"{name}.json", figures)


def part_setting(argv: Sequence[str] | None, description: str | None) -> BenchSetting:
    """Parse the arguments that every part takes."""
    parser = Parser(description=(description or "").partition("\n")[0])
    add_option(parser, "--out", "a folder for the figures", required=True, metavar="DIR")
    parser.add_argument("--rehearse", action="store_true", help="small sizes on a CPU")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cpu" if args.rehearse else "cuda")
    fp32_means_fp32()
    return BenchSetting(device=device, rehearse=args.rehearse, out=args.out)


def where() -> dict[str, Any]:
    """Return card, libraries, date and commit: what a figure is worthless without."""
    commit, dirty = source_state()
    libraries = {}
    for name in ("torch", "torchvision", "timm", "detectron2", "sal-detectron2", "onedl-mmengine"):
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            continue
    card = torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.processor()
    return {
        "card": card or "cpu",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "libraries": libraries,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": os.environ.get("MIMBENCH_COMMIT") or commit,
        "changed": dirty,
    }


def seconds(work: Callable[[], object], device: torch.device, repeat: int, warm: int = 3) -> float:
    """Return the median time of `work` after `warm` calls that are thrown away."""
    watch, found = Stopwatch(device), []
    for turn in range(repeat + warm):
        watch.start()
        work()
        watch.mark("work")
        if turn >= warm:
            found.append(watch.read()["work"])
    return median(found)


def peak_mib(device: torch.device) -> float | None:
    """Return the allocator's peak since the last reset, or nothing on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None


def forget(device: torch.device) -> None:
    """Free what the allocator holds and start counting anew."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
