"""Write eval results and a model card as the Hugging Face Hub reads them; nothing is sent."""

import argparse
import re
import sys
from pathlib import Path

from mimbench.benchmarks.manifest import DEFAULT_FILE
from mimbench.suite.sharing.hub_files import BUNDLE
from mimbench.suite.sharing.publishing import CARD, EVAL_FILE, write_publication
from mimbench.system.errors import UserError, printable
from mimbench.system.exit_codes import ExitCode
from mimbench.system.options import Parser, add_option

REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
TASK = re.compile(rf"([\w.-]+)=((?:{REPO.pattern}:)?[\w.-]+)", re.ASCII)


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="folder that a run wrote, or one checkpoint's in it"
    )
    add_option(
        parser, "--out", "default: hub/NAME; a README.md there keeps its text", metavar="DIR"
    )
    add_option(parser, "--benchmarks", default=DEFAULT_FILE)
    parser.add_argument(
        "--repo",
        default="",
        metavar="ORG/NAME",
        help="the model's repository; numbers then link to it",
    )
    parser.add_argument(
        "--hub-task",
        action="append",
        default=[],
        metavar="ID=TASK",
        help="a benchmark's task on the Hub, as TASK or ORG/DATASET:TASK; default: its own id",
    )
    parser.add_argument(
        "--sign", type=Path, metavar="KEY", help="SSH key to sign with, such as ~/.ssh/id_ed25519"
    )


def main(args: argparse.Namespace) -> int:
    """Write the folder, and print how to upload it."""
    if args.repo and not REPO.fullmatch(args.repo):
        raise UserError(f"--repo {args.repo} is not of the form ORG/NAME")
    tasks = {}
    for item in args.hub_task:
        found = TASK.fullmatch(item)
        if not found:
            raise UserError(f"--hub-task {item} is not of the form ID=TASK or ID=ORG/DATASET:TASK")
        tasks[found[1]] = found[2]
    out, written = write_publication(
        args.run, args.out, args.benchmarks, repo=args.repo, tasks=tasks, key=args.sign
    )
    for reason in written.left_out:
        sys.stderr.write(f"left out: {printable(reason)}\n")
    where = printable(str(out))
    sys.stdout.write(
        f"{where}/{CARD}: {written.numbers} numbers, {written.indexed} of them in model-index\n"
        f"{where}/{EVAL_FILE}: {written.entries or 'not written, no'} entries\n"
        f"{where}/{BUNDLE}: digest {written.digest}\n"
        f"nothing was sent; to upload: hf upload {args.repo or 'ORG/NAME'} {where} .\n"
    )
    return ExitCode.OK
