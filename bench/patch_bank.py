"""The patch bank: how fast it is written, against the backbone's own forward pass on the same images.

Command: OMP_NUM_THREADS=1 python -m bench.patch_bank [--vit base] [--images 32] [--repeat 5]
Both read the same pictures with the same loader code. `forward` decodes, squashes and runs the blocks;
`bank` is the task's call: the same, and tokens halved, checked, written as shards, with the exact ones
of a few pictures. In turn in one process; a rate of 1 means that keeping tokens costs nothing.
"""

import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.stopwatch import Stopwatch, ratios
from mimbench.data.lists import ImageList, read_folder
from mimbench.data.preprocess import Squash
from mimbench.features.patches import PatchSpec, extract_patches
from mimbench.system.options import Parser, add_option
from mimbench.system.runtime import configure_logging
from mimbench.task import Machine
from mimbench.vit.backbone import build_backbone
from mimbench.vit.sizes import SIZES
from mimbench.vit.weights import VitSpec, VitWeights, random_weights

logger = logging.getLogger(__name__)

SIDE, PATCH = 224, 16
MACHINE = Machine(device="cpu", workers=0, max_batch=16)


def pictures(folder: Path, count: int) -> ImageList:
    """Write noisy pictures of ADE20K's usual size; return their list."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / "train" / str(i % 2) / f"{i:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, size=(32, 43, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((683, 512), Image.Resampling.BICUBIC).save(path)
    return read_folder(folder, "train")


def weights_of(size: str) -> VitWeights:
    """Return random weights of a published size."""
    shape = SIZES[size]
    side = SIDE // PATCH
    spec = VitSpec(
        embed_dim=shape.embed_dim,
        depth=shape.depth,
        num_heads=shape.num_heads,
        mlp_dim=4 * shape.embed_dim,
        patch_size=PATCH,
        grid=(side, side),
    )
    return random_weights(spec, 0)


@torch.no_grad()
def forward(weights: VitWeights, images: ImageList, squash: Squash) -> None:
    """Run the backbone over all images and keep nothing."""
    backbone = build_backbone(weights)
    last = weights.spec.depth - 1
    for start in range(0, len(images), MACHINE.max_batch):
        rows = range(start, min(start + MACHINE.max_batch, len(images)))
        pixels = torch.stack([squash(images.open(row), row) for row in rows])
        backbone.blocks(pixels.float() / 255, [last], norm=False)


def bank(weights: VitWeights, images: ImageList, squash: Squash, root: Path) -> None:
    """Write the bank of all images anew."""
    shutil.rmtree(root, ignore_errors=True)
    grid = (SIDE // PATCH, SIDE // PATCH)
    spec = PatchSpec(preprocess=squash, grid=grid)
    assert not extract_patches(weights, images, spec, MACHINE, root=root).missing()


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds of the work: the process's own on one thread."""
    watch = Stopwatch(torch.device("cpu"))
    watch.start()
    work()
    watch.mark("all")
    return watch.read()["all"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure."""
    parser = Parser(prog="python -m bench.patch_bank", description=__doc__)
    add_option(parser, "--repeat", "default: 5", default=5)
    add_option(parser, "--vit", "default: base", choices=sorted(SIZES), default="base")
    add_option(parser, "--images", "default: 32", default=32)
    args = parser.parse_args(argv)
    configure_logging()
    weights, squash = weights_of(args.vit), Squash(size=SIDE)
    times: dict[str, list[float]] = {"forward": [], "bank": []}
    with tempfile.TemporaryDirectory() as folder:
        images = pictures(Path(folder), args.images)
        root = Path(folder) / "bank"
        works = {
            "forward": lambda: forward(weights, images, squash),
            "bank": lambda: bank(weights, images, squash, root),
        }
        for turn in range(args.repeat + 1):
            for name, work in works.items():
                took = seconds(work)
                # the first turn warms caches and libraries up
                times[name] += [took] if turn else []
            if turn:
                logger.info("forward %.2f s, bank %.2f s", times["forward"][-1], times["bank"][-1])
        size = sum(f.stat().st_size for f in root.rglob("*.safetensors"))
    found = ratios(times["forward"], times["bank"])
    logger.info("ViT %s, %d images, %d threads", args.vit, args.images, torch.get_num_threads())
    logger.info("  bank written at %s of the forward rate, %.1f MiB", found, size / 2**20)
    return 0


if __name__ == "__main__":
    sys.exit(main())
