"""Show what a checkpoint holds: format, architecture, tensors, digest, verdict."""  # noqa: A005 (the verb is the module's name)

import argparse
import json
import sys

from mimbench.system.errors import UserError
from mimbench.system.exit_codes import ExitCode
from mimbench.system.options import Parser, add_checkpoint, add_option, add_reading

SHOW_ALL = 1_000_000


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    add_checkpoint(parser)
    add_reading(parser)
    parser.rename(heads="--num-heads")
    parser.add_argument("--all", action="store_true", help="list every fault, not the first few")
    parser.add_argument(
        "--registration",
        action="store_true",
        help="draw where marks in a picture answer in the feature maps, weights drawn anew and trained",
    )
    add_option(parser, "--json")


def main(args: argparse.Namespace) -> int:
    """Print the description; return OK if the checkpoint can be evaluated."""
    from mimbench.checkpoints.files import read_checkpoint
    from mimbench.checkpoints.inspection import describe, refused, text

    try:
        reading = read_checkpoint(args.checkpoint, which=args.which, num_heads=args.num_heads)
        description = describe(reading)
    except UserError as error:
        description = refused(args.checkpoint, str(error))
    if args.json:
        sys.stdout.write(json.dumps(description, indent=2) + "\n")
    else:
        sys.stdout.write(text(description, limit=SHOW_ALL if args.all else 12))
    if description["verdict"] == "refused":
        return ExitCode.FAILED
    return registration(args) if args.registration else ExitCode.OK


def registration(args: argparse.Namespace) -> int:
    """Draw the registration test; return FAILED if the wiring does not pass it."""
    import torch

    from mimbench.checkpoints.files import read_weights
    from mimbench.networks.selftest import lines, trained, wiring

    weights = read_weights(args.checkpoint, which=args.which, num_heads=args.num_heads)
    fresh, own = wiring(weights), trained(weights, torch.device("cpu"))
    text = ["", "registration, weights drawn anew (the wiring)", *lines(fresh, drawn=True)]
    text += ["", "registration, these weights", *lines(own, drawn=True)]
    sys.stdout.write("\n".join(text) + "\n")
    return ExitCode.OK if all(answer.sound for answer in fresh) else ExitCode.FAILED
