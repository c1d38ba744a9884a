"""The command line: the task of the suite, and what only detection offers.

Not in `__main__`, which the processes that detectron2's launcher starts could not import. Functions
import torch and detectron2 themselves: `--help` and a wrong option need neither.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mimbench.suite.task_main import task_main, task_parser
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.system.exit_codes import ExitCode, run_command
from mimbench.system.options import Parser, add_option

TASK = "transfer.detection.vitdet"
PROGRAM = "python -m transfer.detection"


def add_options(parser: Parser) -> None:
    """Add what only detection understands."""
    add_option(parser, "--eval-only", "RUN is its folder")
    add_option(parser, "--show", "detections beside ground truth, in RUN/pictures")
    parser.add_argument(
        "--threshold", type=float, default=0.5, metavar="T", help="lowest score that --show draws"
    )
    group = parser.add_argument_group("several GPUs without torchrun (detectron2's launcher)")
    add_option(group, "--gpus", default=1)
    add_option(group, "--nodes", default=1)
    group.add_argument(
        "--node-rank", type=int, default=0, metavar="K", help="which machine this is, from 0 on"
    )
    group.add_argument(
        "--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of machine 0"
    )
    parser.rename(num_gpus="--gpus", num_machines="--nodes", machine_rank="--node-rank")


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
    from mimbench.checkpoints.files import read_weights  # noqa: PLC0415
    from mimbench.system.runtime import process_group  # noqa: PLC0415
    from transfer.detection.again import again  # noqa: PLC0415

    weights = read_weights(args.checkpoint, which=args.which, num_heads=args.num_heads)
    with process_group(args.device or "auto") as ranks:
        found = again(weights, args.eval_only, data_root=args.data, device=args.device)
        if not ranks.main:
            return 0
    sys.stdout.write("".join(f"{name}\t{value:.4f}\n" for name, value in found.metrics.items()))
    if args.show is not None:
        draw(args.eval_only, args.show, args.data, threshold=args.threshold)
    return 0


def draw(run: Path, count: int, data: Path | None, *, threshold: float) -> list[Path]:
    """Write pictures of a run's detections."""
    from mimbench.training.identity import RUN_FILE, read_identity  # noqa: PLC0415
    from transfer.detection.show import show  # noqa: PLC0415
    from transfer.detection.vitdet import DETECTIONS, Config  # noqa: PLC0415

    mapping = dict(read_identity(run)["config"])
    if data is not None:
        mapping["data"] = data
    config = from_mapping(Config, mapping, str(run / RUN_FILE))
    return show(run / "pictures", run / DETECTIONS, config, count=count, threshold=threshold)


def main(argv: Sequence[str] | None = None) -> int:
    """Run in this process, or start one for each GPU."""
    parser = task_parser(TASK, PROGRAM, add_options)
    given = parser.current(argv)
    args = parser.parse_args(given)
    if args.gpus * args.nodes == 1:
        return _command(given)
    return run_command(_launch, args, given)


def _command(argv: Sequence[str]) -> int:
    return task_main(TASK, argv, program=PROGRAM, extend=add_options, before=before)


def _launch(args: argparse.Namespace, argv: list[str]) -> int:
    """Start one process for each GPU; return how they ended."""
    from detectron2.engine import launch  # noqa: PLC0415
    from torch.multiprocessing.spawn import ProcessExitedException  # noqa: PLC0415

    _check_launch(args)
    try:
        launch(
            _worker,
            args.gpus,
            num_machines=args.nodes,
            machine_rank=args.node_rank,
            dist_url=args.dist_url,
            args=(argv,),
        )
    except ProcessExitedException as error:
        # the process has reported what was wrong
        return error.exit_code or ExitCode.FAILED
    return ExitCode.OK


def _worker(argv: list[str]) -> None:
    from detectron2.utils import comm  # noqa: PLC0415

    # the suite learns the rank from the environment, as torchrun sets it
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(comm.get_rank()), str(comm.get_world_size())
    sys.exit(_command(argv))


def _check_launch(args: argparse.Namespace) -> None:
    """Refuse options of the launcher that contradict each other or the machine."""
    for name in ("gpus", "nodes"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}, expected 1 or more")
    if not 0 <= args.node_rank < args.nodes:
        raise UserError(f"--node-rank is {args.node_rank}, expected 0 to {args.nodes - 1}")
    if args.nodes > 1 and args.dist_url == "auto":
        raise UserError(f"--nodes {args.nodes} needs --dist-url tcp://HOST:PORT of machine 0")
    import torch  # noqa: PLC0415

    found = torch.cuda.device_count()
    if torch.cuda.is_available() and args.gpus > found:
        raise UserError(f"--gpus is {args.gpus}, but this machine has {found}")
