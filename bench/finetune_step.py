"""A fine-tuning step of ours against timm's own training step with the same settings.

Command: OMP_NUM_THREADS=2 python -m bench.finetune_step [--steps 6] [--batch 16] [--device cpu]
Both train the same ViT with the same mixed images, layer-wise rates, precision and AdamW; timm's
step is what its train.py does for each batch: forward, loss, backward, optimizer step, its scheduler's
update. Ours is the step of the training loop. They take turns; a ratio below 1 means that ours needs
less time. Data is in memory for both.
"""

import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler

from mimbench.data.lists import ImageList, read_folder
from mimbench.system.options import Parser, add_option
from mimbench.system.runtime import Ranks, autocast, configure_logging
from mimbench.task import Machine
from mimbench.training.batches import Batch
from mimbench.training.learner import LoopConfig, RunContext
from mimbench.training.loop import _Run
from mimbench.vit.weights import VitSpec, random_weights
from transfer.classification.training import TrainImages
from transfer.classification.tuner import Config, FineTune

logger = logging.getLogger(__name__)


def learner(images: ImageList, device: str, precision: Any) -> FineTune:
    """Return the fine-tuning of a small ViT on 64-pixel images."""
    spec = VitSpec(embed_dim=192, depth=12, num_heads=3, mlp_dim=768, patch_size=8, grid=(8, 8))
    config = Config(
        data=Path(images.where),
        image_size=64,
        resize=None,
        precision=precision,
        machine=Machine(device=device, workers=0),
    )
    return FineTune(random_weights(spec, 0), config, images, Ranks())


def our_step(one: FineTune, images: ImageList, batch: Batch, out: Path, precision: Any) -> Any:
    """Return a function that takes one step of the loop."""
    size = len(batch.indices)
    loop = LoopConfig(epochs=100, batch=size, precision=precision, tensorboard=False)
    context = RunContext(out=out, digest="bench", machine=Machine(max_batch=size, workers=0))
    run = _Run(one, TrainImages(images, np.asarray), loop, context)

    def step() -> None:
        run._update(iter([batch]))

    return step


def timms_step(one: FineTune, batch: Batch, precision: Any) -> Any:
    """Return a function that takes one of timm's training steps."""
    model = one.model
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=1e-4, weight_decay=0.05, layer_decay=0.65
    )
    scheduler = CosineLRScheduler(optimizer, t_initial=1000, warmup_t=10, t_in_epochs=False)
    count = 0

    def step() -> None:
        nonlocal count
        images, labels = batch.data
        assert one.mix is not None
        # the part of timm's own step that ours wraps
        images, labels = one.mix.mix(images, labels)
        one.depth.draw(range(len(images)), one.device)
        with autocast(one.device, precision):
            loss = one.criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        count += 1
        scheduler.step_update(count)

    return step


def main(argv: Sequence[str] | None = None) -> int:
    """Measure."""
    parser = Parser(prog="python -m bench.finetune_step", description=__doc__)
    add_option(parser, "--steps", "default: 6", default=6)
    add_option(parser, "--batch", "default: 16", default=16)
    add_option(parser, "--device", "default: cpu", default="cpu")
    add_option(parser, "--precision", "default: fp32", default="fp32")
    args = parser.parse_args(argv)
    configure_logging()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for split in ("train", "val"):
            for name in ("a", "b"):
                (root / split / name).mkdir(parents=True)
                for i in range(args.batch):
                    Image.new("RGB", (64, 64), (i, i, i)).save(root / split / name / f"{i}.png")
        images = read_folder(root, "train")
        device = torch.device(args.device)
        pixels = torch.randn(args.batch, 3, 64, 64, device=device)
        labels = torch.arange(args.batch, device=device) % 2
        batch = Batch(torch.arange(args.batch), [pixels, labels], ())
        mine, theirs = (learner(images, args.device, args.precision) for _ in range(2))
        ours = our_step(mine, images, batch, root / "out", args.precision)
        timms = timms_step(theirs, batch, args.precision)
        ratios = []
        for i in range(args.steps + 2):
            took = []
            for step in (ours, timms):
                began = time.perf_counter()
                step()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                took.append(time.perf_counter() - began)
            # the first steps make optimizer states and start threads
            if i >= 2:
                ratios.append(took[0] / took[1])
                logger.info("ours %.3f s, timm %.3f s", *took)
    logger.info("batch %d, %s, %d threads: ours over timm %.2f (%.2f to %.2f)",
                args.batch, args.precision, torch.get_num_threads(),
                statistics.median(ratios), min(ratios), max(ratios))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
