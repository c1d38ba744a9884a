"""Pictures that need the checkpoint and the data: masks, nearest neighbours."""

import importlib.util
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from PIL import Image

from mimbench.benchmarks.preflight import child_environment
from mimbench.benchmarks.run_config import CONFIG_FILE, read_run_config
from mimbench.checkpoints.files import read_weights
from mimbench.checkpoints.names.located import locate, present
from mimbench.features.cards import embed, read_cards
from mimbench.model import Weights
from mimbench.networks.kinds import build_network
from mimbench.results.record import Result
from mimbench.scores.neighbours import nearest
from mimbench.suite.report.gathered import Gathered
from mimbench.suite.report.markup import picture, text
from mimbench.system.runtime import pick_device

logger = logging.getLogger(__name__)

PRETRAINED = "model.safetensors"
MASKED, LARGEST = 4, 4000
POINTS = 92
"""Dots to the inch at which a sheet of masks is shown: its smallest words have 8 points, 10 pixels."""
QUERIES, NEIGHBOURS, CELL = 6, 5, 96
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


def masks(gathered: Gathered) -> list[str]:
    """Return masks, predicted loss and reconstructions of each pretraining checkpoint."""
    found = []
    for label, checkpoint, weights, data in _labelled(gathered):
        folders = dict.fromkeys([data, *(Path(r.data) for _, r in gathered.done if r.data)])
        images = images_to_mask(folders, max(weights.spec.image_size))
        if shown := mask_sheet(checkpoint, weights, images):
            found.append(f'<h3>{text(label)}</h3><div class="wide" tabindex="0">{shown}</div>')
    return found


def neighbours(gathered: Gathered) -> list[str]:
    """Return a few validation images of each checkpoint with their nearest training images."""
    found = []
    for label, _, weights, data in _labelled(gathered):
        strips = neighbour_strips(weights, data, pick_device("auto"))
        found.append(f'<h3>{text(label)}</h3><div class="grid">{"".join(strips)}</div>')
    return found


def _labelled(gathered: Gathered) -> Iterator[tuple[str, Path, Weights, Path]]:
    """Yield label, file, weights, data of each row whose checkpoint and labelled images still exist."""
    for look in gathered.looks.values():
        fit = [(p, r) for p, r in gathered.done if gathered.look(r) == look and _has_classes(r)]
        if not fit:
            continue
        run = read_run_config(fit[0][0] / CONFIG_FILE)
        if not present(run.checkpoint):
            logger.warning(
                "%s is gone: no pictures are computed for %s", run.checkpoint, look.label
            )
            continue
        weights = read_weights(run.checkpoint, which=run.which, num_heads=run.num_heads)
        yield look.label, locate(run.checkpoint).path, weights, Path(fit[0][1].data)


def _has_classes(result: Result) -> bool:
    folder = Path(result.data)
    return (folder / "train").is_dir() and (folder / "val").is_dir()


def images_to_mask(folders: Iterable[Path], least: int) -> list[Path]:
    """Return images as large as the model's own from the first data set that has such, else the largest.

    Args:
        folders: Of data sets, the first preferred.
        least: Pixels of the model's images.
    """
    found = [
        images
        for folder in folders
        for pattern in ("val/*/*", "val2017/*", "images/validation/*")
        if (images := spread(sorted(folder.glob(pattern))))
    ]
    sizes = [_side(images[0]) for images in found]
    for images, size in zip(found, sizes, strict=True):
        if size >= least:
            return images
    return found[sizes.index(max(sizes))] if found else []


def spread(files: list[Path]) -> list[Path]:
    """Return a few images, far apart in the list."""
    images = [path for path in files if path.suffix.lower() in IMAGES]
    return images[:: max(1, len(images) // MASKED)][:MASKED]


def _side(path: Path) -> int:
    with Image.open(path) as image:
        return min(image.size)


def mask_sheet(checkpoint: Path, weights: Weights, images: list[Path]) -> str:
    """Return the sheet of a pretraining checkpoint, '' if it is none.

    The pretraining application draws it, in a process of its own.
    """
    run = checkpoint.parent if (checkpoint.parent / PRETRAINED).is_file() else None
    if run is None and "decoder" not in weights.extras:
        # an encoder alone can fill nothing in, and nobody expects it to
        return ""
    if not images or importlib.util.find_spec("pretrain.show") is None:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "masks.png"
        command = [sys.executable, "-m", "pretrain.show", str(run or checkpoint), *map(str, images)]
        done = subprocess.run(
            [*command, "-o", str(out)], env=child_environment(), capture_output=True, check=False
        )
        if done.returncode or not out.is_file():
            said = done.stderr.decode(errors="replace").strip()[-300:]
            logger.info("%s: no masks to show: %s", checkpoint, said)
            return ""
        caption = "image, predicted loss, masks from easy to hard, reconstruction"
        with Image.open(out) as image:
            dots = float(image.info.get("dpi", (POINTS, POINTS))[0])
            return picture(image, caption, side=LARGEST, density=dots / POINTS)


def neighbour_strips(weights: Weights, data: Path, device: torch.device) -> list[str]:
    """Return a few validation images, each followed by its nearest training images."""
    size = weights.spec.image_size[0]
    cards = read_cards(data, size, classes=QUERIES * 4, bank=20, queries=1)
    count = len(cards.queries)
    picked = torch.linspace(0, count - 1, min(QUERIES, count)).round().long()
    backbone = build_network(weights).to(device)
    bank = embed(backbone, cards.bank, device)["avg"]
    queries = embed(backbone, cards.queries[picked], device)["avg"]
    found = nearest(bank, queries, NEIGHBOURS)[1]
    rows = []
    for query, near in zip(picked, found, strict=True):
        right = int((cards.bank_labels[near] == cards.query_labels[query]).sum())
        strip = torch.cat([cards.queries[query], *(cards.bank[i] for i in near)], dim=2)
        image = Image.fromarray(strip.permute(1, 2, 0).numpy())
        scale = max(1, CELL // size)
        shown = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
        caption = f"query, then its neighbours: {right} of {NEIGHBOURS} of its class"
        rows.append(picture(shown, caption, side=900))
    return rows
