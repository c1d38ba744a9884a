"""Write a checkpoint's weights as safetensors, or under MAE's, timm's or detectron2's names."""

import argparse
import logging

from mimbench.system.config import merge, parse_overrides
from mimbench.system.errors import UserError
from mimbench.system.options import Parser, add_checkpoint, add_option, add_reading

logger = logging.getLogger(__name__)
LAYOUTS = ("native", "mae", "timm", "detectron2")


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    add_checkpoint(parser)
    parser.add_argument("--to", choices=LAYOUTS, default="native", help="whose tensor names")
    add_option(parser, "--out", required=True, metavar="FILE")
    add_reading(parser)
    parser.rename(heads="--num-heads")
    add_option(
        parser,
        "--set",
        "what the file cannot say: mean=[0.5,0.5,0.5], activation=quick_gelu, norm_eps=1e-5",
    )


def main(args: argparse.Namespace) -> int:
    """Write the file; return 0."""
    from mimbench.checkpoints.export import export
    from mimbench.checkpoints.files import read_weights
    from mimbench.model import mismatches
    from mimbench.networks.kinds import make_weights, spec_from_json

    changes = parse_overrides(args.set or [])
    weights = read_weights(
        args.checkpoint,
        which=args.which,
        num_heads=args.num_heads,
        activation=changes.get("activation"),
    )
    if changes:
        spec = spec_from_json(merge(weights.spec.to_json(), changes))
        if faults := mismatches(spec, weights.tensors):
            raise UserError(f"--set contradicts the tensors: {faults[0]}")
        said = tuple(f"set by hand: {change}" for change in args.set)
        weights = make_weights(
            spec,
            weights.tensors,
            format=weights.format,
            digest=weights.digest,
            name=weights.name,
            which=weights.which,
            origin=weights.origin,
            extras=weights.extras,
            notes=(*weights.notes, *said),
        )
    for note in export(weights, args.to, args.out):
        logger.info("%s", note)
    logger.info("wrote %s: %d tensors from %s", args.out, len(weights.tensors), weights.format)
    return 0
