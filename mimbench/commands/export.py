"""Write a checkpoint's weights as safetensors, or under MAE's, timm's or detectron2's names."""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from mimbench.checkpoints.export import TARGETS, export
from mimbench.checkpoints.files import read_weights
from mimbench.system.config import merge, parse_overrides
from mimbench.system.errors import UserError
from mimbench.vit.weights import VitSpec, mismatches

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument(
        "checkpoint", type=Path, help="file, or a folder as Hugging Face writes them"
    )
    parser.add_argument("--to", choices=["native", *TARGETS], default="native", help="whose names")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--which", help="network of a file with several: student, teacher, ema")
    parser.add_argument(
        "--heads", type=int, metavar="N", help="heads, where no published size says"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
        help="correct what the file cannot say: mean=[0.5,0.5,0.5], activation=quick_gelu, norm_eps=1e-5",
    )  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Write the file; return 0."""
    weights = read_weights(args.checkpoint, which=args.which, num_heads=args.heads)
    if args.changes:
        spec = VitSpec.from_json(merge(weights.spec.to_json(), parse_overrides(args.changes)))
        if faults := mismatches(spec, weights.tensors):
            raise UserError(f"--set contradicts the tensors: {faults[0]}")
        said = tuple(f"set by hand: {change}" for change in args.changes)
        weights = replace(weights, spec=spec, notes=(*weights.notes, *said))
    for note in export(weights, args.to, args.out):
        logger.info("%s", note)
    logger.info("wrote %s: %d tensors from %s", args.out, len(weights.tensors), weights.format)
    return 0
