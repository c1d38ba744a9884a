"""Check in a minute that a checkpoint beats random weights and its own rearrangements."""

import argparse
import logging
import math
import time
from typing import TYPE_CHECKING

from mimbench.system.exit_codes import ExitCode
from mimbench.system.options import Parser, add_checkpoint, add_option, add_reading

if TYPE_CHECKING:
    from mimbench.suite.running.canary import CanaryResult

logger = logging.getLogger(__name__)
CPU_SECONDS = 60.0
"""After this long on a CPU the less telling baselines are left out."""


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    add_checkpoint(parser)
    add_option(parser, "--data", "default: the sample data")
    add_option(parser, "--out", "the result as JSON", metavar="FILE")
    add_option(parser, "--device")
    add_reading(parser)


def summary(found: "CanaryResult") -> str:
    """Return one line on how far ahead the checkpoint is."""
    from mimbench.suite.running.baselines import TWIN

    text = f"{found.score:.1f} % in a small k-NN, {TWIN} {found.baselines[TWIN]:.1f} %"
    others = {name: score for name, score in found.baselines.items() if name != TWIN}
    if others:
        best = max(others, key=lambda name: others[name])
        text += f", the best of {len(others)} rearrangements {others[best]:.1f} % ({best})"
    return text


def main(args: argparse.Namespace) -> int:
    """Examine the checkpoint; return FAILED if it has a fault."""
    from mimbench.benchmarks.locations import SAMPLES, locate
    from mimbench.checkpoints.files import read_weights
    from mimbench.features.cards import read_cards
    from mimbench.networks.selftest import trained
    from mimbench.suite.running.canary import examine
    from mimbench.system.config import to_mapping
    from mimbench.system.files import write_json
    from mimbench.system.runtime import pick_device

    weights = read_weights(args.checkpoint, which=args.which, num_heads=args.num_heads)
    sample = args.data is None or args.data.name in SAMPLES.values()
    folder = locate("sample-classification", None) if args.data is None else args.data
    device = pick_device(args.device)
    size = 32 if sample and weights.spec.image_size[0] <= 64 else weights.spec.image_size[0]
    began = time.monotonic()
    cards = read_cards(folder, size)
    found = examine(weights, cards, device, CPU_SECONDS if device.type == "cpu" else math.inf)
    logger.info("canary: %s", summary(found))
    for answer in trained(weights, device):
        if not answer.sound:
            logger.warning("canary: do features sit on their patches? %s", answer.fault)
    if found.not_tried:
        logger.info("canary: no time for %s", "; ".join(found.not_tried))
    for fault in found.faults:
        logger.error("canary: %s", fault)
    logger.info(
        "canary: %s in %.0f s", "FAULTY" if found.faults else "sound", time.monotonic() - began
    )
    if args.out:
        write_json(args.out, {**to_mapping(found), "digest": weights.digest})
    return ExitCode.FAILED if found.faults else ExitCode.OK
