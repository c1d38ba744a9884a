"""Pictures: what tasks drew, masks, nearest neighbours."""

import importlib.util
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

from mimbench.benchmarks.preflight import child_environment
from mimbench.benchmarks.records import PICTURES, pictures_of
from mimbench.features.cards import embed, read_cards
from mimbench.model import Weights
from mimbench.networks.kinds import build_network
from mimbench.results.record import Result
from mimbench.scores.neighbours import nearest
from mimbench.suite.report.markup import picture

logger = logging.getLogger(__name__)

PRETRAINED = "model.safetensors"
MASKED = 4
MOST, QUERIES, NEIGHBOURS = 8, 6, 5
BROADEST = 1024
"""Pixels across: a task's picture may hold several panels and a legend that should stay readable."""


def pictures_in(folder: Path, result: Result) -> list[str]:
    """Return the pictures that a task made of its run."""
    found = []
    for shown, caption in pictures_of(folder, result):
        if len(found) == MOST:
            break
        if isinstance(shown, Path):
            with Image.open(shown) as image:
                found.append(picture(image, caption, side=BROADEST))
        else:
            found.append(picture(shown.image, caption))
    return found


def drawn_in(folder: Path) -> list[str]:
    """Return the pictures in a folder that no result tells of: pretraining's."""
    found = [*sorted((folder / PICTURES).glob("*.png")), *sorted((folder / PICTURES).glob("*.jpg"))]
    return [picture(Image.open(path), path.stem, side=BROADEST) for path in found[:MOST]]


def masks(checkpoint: Path, weights: Weights, data: Path) -> list[str]:
    """Return masks, predicted loss and reconstructions of a pretraining checkpoint, if it is one.

    The pretraining application draws them, in a process of its own.
    """
    run = checkpoint.parent if (checkpoint.parent / PRETRAINED).is_file() else None
    if run is None and "decoder" not in weights.extras:
        # an encoder alone can fill nothing in, and nobody expects it to
        return []
    files = sorted((data / "val").glob("*/*"))
    images = files[:: max(1, len(files) // MASKED)][:MASKED]
    if not images or importlib.util.find_spec("pretrain.show") is None:
        return []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "masks.png"
        command = [sys.executable, "-m", "pretrain.show", str(run or checkpoint), *map(str, images)]
        done = subprocess.run(
            [*command, "-o", str(out)], env=child_environment(), capture_output=True, check=False
        )
        if done.returncode or not out.is_file():
            logger.info(
                "%s: no masks to show: %s",
                checkpoint,
                done.stderr.decode(errors="replace").strip()[-300:],
            )
            return []
        with Image.open(out) as image:
            return [
                picture(
                    image,
                    "image, predicted loss, masks from easy to hard, reconstruction",
                    side=1400,
                )
            ]


def neighbours(weights: Weights, data: Path, device: torch.device) -> list[str]:
    """Return a few validation images, each followed by its nearest training images."""
    size = weights.spec.image_size[0]
    cards = read_cards(data, size, classes=QUERIES * 4, bank=20, queries=1)
    picked = (
        torch.linspace(0, len(cards.queries) - 1, min(QUERIES, len(cards.queries))).round().long()
    )
    backbone = build_network(weights).to(device)
    bank = embed(backbone, cards.bank, device)["avg"]
    queries = embed(backbone, cards.queries[picked], device)["avg"]
    found = nearest(bank, queries, NEIGHBOURS)[1]
    rows = []
    for query, near in zip(picked, found, strict=True):
        label = cards.query_labels[query]
        right = int((cards.bank_labels[near] == label).sum())
        strip = torch.cat([cards.queries[query], *(cards.bank[i] for i in near)], dim=2)
        image = Image.fromarray(strip.permute(1, 2, 0).numpy())
        rows.append(
            picture(
                image.resize(
                    (image.width * max(1, 96 // size), image.height * max(1, 96 // size)),
                    Image.Resampling.NEAREST,
                ),
                f"query, then its neighbours: {right} of {NEIGHBOURS} of its class",
                side=900,
            )
        )
    return rows
