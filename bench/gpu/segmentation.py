"""Part 4: a training step of UperNet on ViT-B at 512 with a batch of 16, and a test window."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from bench.gpu.measure import BenchSetting, forget, part_setting, peak_mib, seconds
from mimbench.system.runtime import Precision, Ranks, autocast
from mimbench.task import Machine
from mimbench.vit.weights import VitSpec, random_weights
from transfer.segmentation import upernet
from transfer.segmentation.backbone import load
from transfer.segmentation.data import DataSource
from transfer.segmentation.loop import settle_batch_norm
from transfer.segmentation.prepare import build_model, set_up

BASE = VitSpec(embed_dim=768, depth=12, num_heads=12, mlp_dim=3072, patch_size=16, grid=(14, 14))
TINY = VitSpec(embed_dim=48, depth=4, num_heads=3, mlp_dim=192, patch_size=16, grid=(4, 4))
CLASSES = 150


def nowhere() -> DataSource:
    """Return a data set of ADE20K's classes; pixels come from memory."""
    names = tuple(f"class {i}" for i in range(CLASSES))
    return DataSource(
        root=Path(),
        folders={"train": ("images", "labels"), "val": ("images", "labels")},
        suffixes={"train": ".jpg", "val": ".jpg"},
        names=names,
        palette=[[i, i, i] for i in range(CLASSES)],
        reduce_zero_label=True,
        ignore_index=255,
    )


def segmentor(setting: BenchSetting, precision: Precision, side: int, batch: int) -> Any:
    """Return the filled model of the paper's recipe, on its device."""
    spec = setting.pick(BASE, TINY)
    config = upernet.Config(
        data=Path(),
        crop=(side, side),
        stride=(2 * side // 3, 2 * side // 3),
        batch=batch,
        precision=precision,
        channels=setting.pick(None, 16),
        machine=Machine(device=str(setting.device), workers=0, max_batch=batch),
    )
    model_recipe = upernet.model_recipe(spec, config)
    setup = set_up(spec, config, model_recipe, Ranks(), nowhere(), dry=True)
    model: Any = build_model(setup)
    weights = random_weights(spec, seed=0)
    load(model.backbone, weights, model_recipe.kind, config.crop, tap_norm=model_recipe.tap_norm)
    return settle_batch_norm(model, synchronised=False).to(setting.device)


def labelled(side: int, batch: int, device: torch.device) -> list[SegDataSample]:
    """Return label maps in blocks of 32 pixels."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(batch):
        coarse = torch.randint(0, CLASSES, (1, side // 32, side // 32), generator=generator)
        truth = coarse.repeat_interleave(32, 1).repeat_interleave(32, 2)
        shape = {"img_shape": (side, side), "ori_shape": (side, side), "pad_shape": (side, side)}
        sample = SegDataSample(metainfo=shape)
        sample.set_data({"gt_sem_seg": PixelData(data=truth.to(device))})
        found.append(sample)
    return found


def measure(setting: BenchSetting, precision: Precision, side: int, batch: int) -> dict[str, Any]:
    """Return images a second of training and testing, and peak memory."""
    forget(setting.device)
    model = segmentor(setting, precision, side, batch).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    images = torch.randn(batch, 3, side, side, device=setting.device)
    samples = labelled(side, batch, setting.device)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(setting.device, precision):
            losses = model.loss(images, samples)
        torch.stack([v for k, v in losses.items() if "loss" in k]).sum().backward()
        optimizer.step()

    repeat, warm = setting.pick(8, 1), setting.pick(3, 1)
    took = seconds(train, setting.device, repeat, warm)
    found = {
        "train_images_per_second": batch / took,
        "train_peak_mib": peak_mib(setting.device),
    }
    forget(setting.device)
    model.eval()

    @torch.no_grad()
    def test() -> None:
        with autocast(setting.device, precision):
            model.encode_decode(images[:1], [samples[0].metainfo])

    found["test_windows_per_second"] = 1 / seconds(test, setting.device, repeat, warm)
    found["test_peak_mib"] = peak_mib(setting.device)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure bf16 first, then fp32."""
    setting = part_setting(argv, __doc__)
    side, batch = setting.pick(512, 64), setting.pick(16, 2)
    found: dict[str, Any] = {"batch": batch, "side": side}
    for precision in setting.pick(("bf16", "fp32"), ("fp32",)):
        found[precision] = measure(setting, precision, side, batch)
        setting.write("segmentation", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
