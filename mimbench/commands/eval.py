"""Run one cell again from its config.yaml, in this process; the result goes beside it."""

import argparse
import logging
from pathlib import Path

from mimbench.system.exit_codes import ExitCode
from mimbench.system.options import Parser, add_option

logger = logging.getLogger(__name__)


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument(
        "config", type=Path, metavar="config.yaml", help="the file that a run wrote"
    )
    add_option(parser, "--gap", "of the finished run, which stays as it is")


def main(args: argparse.Namespace) -> int:
    """Evaluate the run."""
    from mimbench.benchmarks.evaluation import evaluate
    from mimbench.benchmarks.nearby import measure_gap
    from mimbench.benchmarks.run_config import LEFT_FILE, read_run_config
    from mimbench.suite.running.launch import follow_parent

    follow_parent()
    if args.gap:
        if measure_gap(args.config.parent) is None:
            logger.warning("the task declares no neighbouring settings: there is no gap to measure")
        return 0
    try:
        result = evaluate(read_run_config(args.config), args.config.parent)
    except SystemExit as left:
        if left.code == ExitCode.PREEMPTED:
            logger.warning("interrupted, the state is saved: the same command goes on")
            (args.config.parent / LEFT_FILE).touch()
        raise
    for name, value in result.metrics.items():
        logger.info("%s %.4f", name, value)
    return 0
