"""Part 5: fine-tuning steps, frozen features, and the rates of a linear and an attentive probe."""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.attentive_probe import CLASSES, make_probe, one_pass
from bench.gpu.measure import BenchSetting, forget, part_setting, peak_mib, seconds
from bench.token_bank import write_bank
from mimbench.data.lists import read_folder
from mimbench.data.preprocess import Decoded, Preprocess
from mimbench.system.runtime import Ranks, autocast
from mimbench.task import Machine
from mimbench.training.batches import Batch
from mimbench.training.learner import StepInfo
from mimbench.training.optim import set_lr
from mimbench.vit.backbone import build_backbone
from mimbench.vit.weights import VitSpec, random_weights
from transfer.classification.tokens import CachedTokens
from transfer.classification.tuner import Config, FineTune

BASE = VitSpec(embed_dim=768, depth=12, num_heads=12, mlp_dim=3072, patch_size=16, grid=(14, 14))
TINY = VitSpec(embed_dim=48, depth=3, num_heads=3, mlp_dim=192, patch_size=16, grid=(4, 4))


def picture_folder(root: Path, count: int) -> Path:
    """Write noisy JPEG files of a photograph's size in two classes."""
    dice = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(count):
            path = root / split / "ab"[i % 2] / f"{i:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = dice.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((500, 375)).save(path, quality=90)
    return root


def fine_tuning(setting: BenchSetting, root: Path) -> dict[str, Any]:
    """Return images a second of a fine-tuning step with every augmentation that acts on a batch."""
    forget(setting.device)
    spec, side = setting.pick(BASE, TINY), setting.pick(224, 64)
    batch, precision = setting.pick(128, 4), setting.pick("bf16", "fp32")
    images = read_folder(root, "train")
    config = Config(
        data=root,
        image_size=side,
        precision=precision,
        machine=Machine(device=str(setting.device), workers=0, max_batch=batch),
    )
    learner = FineTune(random_weights(spec, 0), config, images, Ranks())
    pixels = torch.randn(batch, 3, side, side, device=setting.device)
    labels = torch.arange(batch, device=setting.device) % 2
    data = Batch(torch.arange(batch), [pixels, labels], ())
    at = StepInfo(step=20, steps_per_epoch=10, epochs=100, batch=batch)
    set_lr(learner.optimizer, 1e-5)

    def step() -> None:
        learner.optimizer.zero_grad(set_to_none=True)
        with autocast(setting.device, config.precision):
            loss = learner.loss(learner.model, data, at)["loss"]
        loss.backward()
        learner.optimizer.step()

    took = seconds(step, setting.device, setting.pick(10, 1), setting.pick(3, 1))
    return {"images_per_second": batch / took, "peak_mib": peak_mib(setting.device)}


def probe(setting: BenchSetting) -> dict[str, Any]:
    """Return passes over cached features a second: one linear head of 1000 classes."""
    forget(setting.device)
    rows, width = setting.pick((65_536, 768), (512, 48))
    x = torch.randn(rows, width, device=setting.device)
    labels = torch.randint(0, 1000, (rows,), device=setting.device)
    head = torch.nn.Linear(width, 1000, device=setting.device)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(head(x), labels).backward()
        optimizer.step()

    return {"features_per_second": rows / seconds(step, setting.device, setting.pick(10, 1))}


def attentive(setting: BenchSetting, folder: Path) -> dict[str, Any]:
    """Return images a second of efficient probing's head on cached ViT-B tokens, read from the disk."""
    forget(setting.device)
    count, batch = setting.pick(4096, 16), setting.pick(512, 8)
    tokens = torch.randn(count, 196, 768, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % CLASSES
    bank = write_bank(folder / "bank", tokens)
    head = make_probe(bank, labels, batch, str(setting.device))
    samples = CachedTokens(bank, labels.tolist())
    at = StepInfo(step=1, steps_per_epoch=count // batch, epochs=90, batch=batch)

    def work() -> None:
        one_pass(head, samples, batch, at, setting.pick(8, 0))

    took = seconds(work, setting.device, setting.pick(3, 1), warm=1)
    return {"images_per_second": count / took, "peak_mib": peak_mib(setting.device)}


def frozen(setting: BenchSetting, root: Path) -> dict[str, Any]:
    """Return images a second of frozen features, pixels in memory and from JPEG files."""
    forget(setting.device)
    spec, side = setting.pick(BASE, TINY), setting.pick(224, 64)
    batch = setting.pick(256, 4)
    backbone = build_backbone(random_weights(spec, 0)).to(setting.device)
    images = torch.rand(batch, 3, side, side, device=setting.device)
    found: dict[str, Any] = {}
    for precision in setting.pick(("fp32", "bf16"), ("fp32",)):

        @torch.no_grad()
        def forward(precision: Any = precision) -> None:
            with autocast(setting.device, precision):
                backbone(images)

        took = seconds(forward, setting.device, setting.pick(8, 1))
        found[f"images_per_second_{precision}"] = batch / took
    decoded = Decoded(read_folder(root, "val"), Preprocess(size=side))
    loader: Any = torch.utils.data.DataLoader(
        decoded, batch_size=batch, num_workers=setting.pick(14, 0), pin_memory=not setting.rehearse
    )
    began, seen = time.perf_counter(), 0
    for _, pixels in loader:
        with torch.no_grad(), autocast(setting.device, setting.pick("bf16", "fp32")):
            backbone(pixels.to(setting.device, non_blocking=True).float() / 255)
        seen += len(pixels)
    if setting.device.type == "cuda":
        torch.cuda.synchronize()
    found["images_per_second_from_jpeg"] = seen / (time.perf_counter() - began)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; write after each."""
    setting = part_setting(argv, __doc__)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = picture_folder(Path(folder), setting.pick(2048, 8))
        found["fine-tuning"] = fine_tuning(setting, root)
        setting.write("classification", found)
        found["features"] = frozen(setting, root)
        setting.write("classification", found)
        found["linear probe"] = probe(setting)
        setting.write("classification", found)
        found["attentive probe"] = attentive(setting, Path(folder))
        setting.write("classification", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
