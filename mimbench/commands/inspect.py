"""Show what a checkpoint holds: format, architecture, tensors, digest, verdict."""  # noqa: A005 (the verb is the module's name)

import argparse
import json
import sys
from pathlib import Path

from mimbench.checkpoints.files import read_checkpoint
from mimbench.checkpoints.inspection import describe, refused, text
from mimbench.system.errors import UserError

SHOW_ALL = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument(
        "checkpoint", type=Path, help="file, or a folder as Hugging Face writes them"
    )
    parser.add_argument("--which", help="network of a file with several: student, teacher, ema")
    parser.add_argument(
        "--heads", type=int, metavar="N", help="heads, where no published size says"
    )
    parser.add_argument("--all", action="store_true", help="list every fault, not the first few")
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def main(args: argparse.Namespace) -> int:
    """Print the description; return 0 if the checkpoint can be evaluated."""
    try:
        reading = read_checkpoint(args.checkpoint, which=args.which, num_heads=args.heads)
        description = describe(args.checkpoint, reading)
    except UserError as error:
        description = refused(args.checkpoint, str(error))
    if args.json:
        sys.stdout.write(json.dumps(description, indent=2) + "\n")
    else:
        sys.stdout.write(text(description, limit=SHOW_ALL if args.all else 12))
    return 1 if description["verdict"] == "refused" else 0
