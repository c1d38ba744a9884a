"""The prepared run: `bench/gpu/run.sh`. Parts in order of importance, each bounded in time.

Every part is a process of its own and writes its figures at once. `summary.json` and `summary.md` in
the output folder are renewed after each; a part that fails or runs out of time does not stop the next.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.measure import where
from mimbench.system.errors import UserError, did_you_mean
from mimbench.system.exit_codes import ExitCode, run_command
from mimbench.system.files import write_json, write_text
from mimbench.system.options import Parser, add_option


@dataclass(frozen=True)
class BenchPart:
    """One part of the run."""

    name: str
    seconds: int
    """The most it may take on a GPU."""
    needs: tuple[str, ...] = ()
    """Packages without which it is skipped."""


PARTS = (
    BenchPart("tests", 180),
    BenchPart("pretrain", 150),
    BenchPart("detection", 60, ("detectron2",)),
    BenchPart("segmentation", 60, ("mmseg",)),
    BenchPart("classification", 60),
    BenchPart("neighbours", 60),
    BenchPart("demo", 300),
)


def run_part(part: BenchPart, out: Path, limit: float, *, rehearse: bool) -> dict[str, Any]:
    """Run one part; return how it ended."""
    lacking = [name for name in part.needs if importlib.util.find_spec(name) is None]
    if lacking:
        return {"status": f"skipped: {', '.join(lacking)} not installed"}
    command = [sys.executable, "-m", f"bench.gpu.{part.name}", "--out", str(out)]
    command += ["--rehearse"] if rehearse else []
    began = time.monotonic()
    log = out / f"{part.name}.log"
    with log.open("wb") as file:
        try:
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, timeout=limit, check=False
            ).returncode
            status = "done" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            status = f"cut off after {limit:.0f} s"
    found: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - began, 1)}
    figures = out / f"{part.name}.json"
    if figures.is_file():
        found["figures"] = json.loads(figures.read_text(encoding="utf-8"))
    if status != "done":
        found["log_tail"] = log.read_text(encoding="utf-8", errors="replace")[-4000:]
    return found


def summary(header: dict[str, Any], parts: dict[str, Any]) -> str:
    """Return the figures as a page."""
    lines = [f"# GPU run: {header['card']}, {header['date']}, commit {header['commit'][:10]}", ""]
    for name, part in parts.items():
        took = f" ({part['seconds']} s)" if "seconds" in part else ""
        lines += [f"## {name}: {part['status']}{took}", ""]
        lines += ["```", json.dumps(part.get("figures", {}), indent=1)[:20_000], "```", ""]
    return "\n".join(lines)


def chosen_parts(names: str) -> list[BenchPart]:
    """Return the parts that a comma-separated list names, in their own order."""
    known = {part.name: part for part in PARTS}
    asked = [name for name in names.split(",") if name] or list(known)
    for name in asked:
        if name not in known:
            raise UserError(f"no part '{name}'{did_you_mean(name, known)}")
    return [part for part in PARTS if part.name in asked]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 0 only if each was done or skipped."""
    parser = Parser(prog="bench/gpu/run.sh", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    add_option(parser, "--parts", "default: all", nargs=None, default="", metavar="A,B")
    add_option(parser, "--out", "default: runs/gpu", default=Path("runs/gpu"), metavar="DIR")
    parser.add_argument("--rehearse", action="store_true", help="small sizes on a CPU")
    return run_command(measure, parser.parse_args(argv))


def measure(args: argparse.Namespace) -> int:
    """Run the chosen parts one after the other."""
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    header, found = where(), {}
    for part in chosen_parts(args.parts):
        left = end - time.monotonic()
        if left < 5:
            found[part.name] = {"status": "not begun: no time was left"}
        else:
            limit = left if args.rehearse else min(left, part.seconds)
            found[part.name] = run_part(part, args.out, limit, rehearse=args.rehearse)
        sys.stdout.write(f"{part.name}: {found[part.name]['status']}\n")
        sys.stdout.flush()
        write_json(args.out / "summary.json", {**header, "parts": found})
        write_text(args.out / "summary.md", summary(header, found))
    fine = all(p["status"] == "done" or p["status"].startswith("skipped") for p in found.values())
    return ExitCode.OK if fine else ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(main())
