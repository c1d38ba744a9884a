"""The command line: the task of the suite, and what only detection offers.

Not in `__main__`, which the processes that detectron2's launcher starts could not import.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException

from mimbench.checkpoints.files import read_weights
from mimbench.suite.task_main import task_main
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.system.runtime import process_group
from mimbench.training.identity import RUN_FILE, read_identity
from transfer.detection.again import again
from transfer.detection.show import show
from transfer.detection.vitdet import DETECTIONS, TASK, Config


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what only detection understands."""
    parser.add_argument(
        "--eval-only", type=Path, metavar="RUN", help="score the trained detector in RUN again"
    )
    parser.add_argument(
        "--show",
        type=int,
        metavar="N",
        help="with --eval-only: write N pictures of detections beside ground truth into RUN/pictures",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, metavar="T", help="lowest score that --show draws"
    )
    group = parser.add_argument_group("several GPUs without torchrun (detectron2's launcher)")
    group.add_argument("--num-gpus", type=int, default=1, metavar="N", help="on each machine")
    group.add_argument("--num-machines", type=int, default=1, metavar="N")
    group.add_argument("--machine-rank", type=int, default=0, metavar="K")
    group.add_argument("--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT")


def before(args: argparse.Namespace) -> int | None:
    """Handle `--eval-only` and `--show`; leave the rest to the suite."""
    if args.eval_only is None:
        if args.show is not None:
            raise UserError(
                "--show needs --eval-only RUN: it draws the detections of a finished run"
            )
        return None
    if args.checkpoint is None:
        raise UserError("--eval-only needs the checkpoint that the run started from")
    weights = read_weights(args.checkpoint, which=args.which, num_heads=args.num_heads)
    with process_group(args.device or "auto") as ranks:
        scores = again(weights, args.eval_only, data_root=args.data, device=args.device)
        if not ranks.main:
            return 0
    sys.stdout.write("".join(f"{name}\t{value:.4f}\n" for name, value in scores.items()))
    if args.show is not None:
        draw(args.eval_only, args.show, args.data, threshold=args.threshold)
    return 0


def draw(run: Path, count: int, data: Path | None, *, threshold: float) -> list[Path]:
    """Write pictures of a run's detections."""
    mapping = dict(read_identity(run)["config"])
    if data is not None:
        mapping["data"] = data
    config = from_mapping(Config, mapping, str(run / RUN_FILE))
    return show(run / "pictures", run / DETECTIONS, config, count=count, threshold=threshold)


def main(argv: Sequence[str] | None = None) -> int:
    """Run in this process, or start one for each GPU."""
    args, _ = _launch_parser().parse_known_args(argv)
    if fault := _launch_fault(args):
        sys.stderr.write(f"error: {fault}\n")
        return 2
    if args.num_gpus * args.num_machines == 1:
        return task_main(TASK, argv, extend=add_options, before=before)
    try:
        launch(
            _worker,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(list(sys.argv[1:] if argv is None else argv),),
        )
    except ProcessExitedException as error:
        # the process has said itself what was wrong
        return error.exit_code or 1
    return 0


def _worker(argv: list[str]) -> None:
    # the suite learns the rank from the environment, as torchrun sets it
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(comm.get_rank()), str(comm.get_world_size())
    sys.exit(task_main(TASK, argv, extend=add_options, before=before))


def _launch_fault(args: argparse.Namespace) -> str:
    """Return what is wrong with the launcher's options, or nothing."""
    for name in ("num_gpus", "num_machines"):
        if getattr(args, name) < 1:
            return f"--{name.replace('_', '-')} is {getattr(args, name)}, expected 1 or more"
    if not 0 <= args.machine_rank < args.num_machines:
        return f"--machine-rank is {args.machine_rank}, expected 0 to {args.num_machines - 1}"
    if args.num_machines > 1 and args.dist_url == "auto":
        return f"--num-machines {args.num_machines} needs --dist-url tcp://HOST:PORT of machine 0"
    gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and args.num_gpus > gpus:
        return f"--num-gpus is {args.num_gpus}, but this machine has {gpus}"
    return ""


def _launch_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    add_options(parser)
    return parser
