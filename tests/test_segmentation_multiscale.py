"""The multi-scale test: the same labels as mmseg's, with one view's logits in memory at a time."""

import gc
from typing import Any
from weakref import WeakSet

import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from transfer.segmentation.framework import SegTTAModel
from transfer.segmentation.multiscale import StreamingTTA

VIEWS, BATCH, CLASSES, SIDE = 6, 2, 5, 12


class Noisy(nn.Module):
    """A segmentor whose logits are noise; it counts how many of them are alive at once."""

    out_channels = CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.rng = torch.Generator().manual_seed(0)
        self.alive: WeakSet[Tensor] = WeakSet()
        self.most = 0

    def test_step(self, data: dict[str, list[Any]]) -> list[SegDataSample]:
        gc.collect()
        found = []
        for sample in data["data_samples"]:
            logits = torch.randn(CLASSES, SIDE, SIDE, generator=self.rng)
            self.alive.add(logits)
            out = SegDataSample(metainfo={"img_path": sample.img_path})
            out.set_data({"seg_logits": PixelData(data=logits), "gt_sem_seg": sample.gt_sem_seg})
            found.append(out)
            del logits
        self.most = max(self.most, len(self.alive))
        return found


def views() -> dict[str, list[Any]]:
    def sample(picture: int) -> SegDataSample:
        truth = torch.full((1, SIDE, SIDE), picture)
        out = SegDataSample(metainfo={"img_path": f"{picture}.jpg"})
        out.set_data({"gt_sem_seg": PixelData(data=truth)})
        return out

    return {
        "inputs": [[torch.zeros(3, SIDE, SIDE)] * BATCH for _ in range(VIEWS)],
        "data_samples": [[sample(i) for i in range(BATCH)] for _ in range(VIEWS)],
    }


def test_labels_equal_mmsegs_own_merge() -> None:
    theirs: list[Any] = list(SegTTAModel(Noisy()).test_step(views()))
    ours: list[Any] = StreamingTTA(Noisy()).test_step(views())
    assert len(ours) == len(theirs) == BATCH
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.pred_sem_seg.data, b.pred_sem_seg.data)
        assert torch.equal(a.gt_sem_seg.data, b.gt_sem_seg.data)
        assert a.img_path == b.img_path


def test_only_one_views_logits_are_alive_at_once() -> None:
    model, theirs = Noisy(), Noisy()
    StreamingTTA(model).test_step(views())
    SegTTAModel(theirs).test_step(views())
    # the view before may still be bound while the next one is computed
    assert model.most <= 2 * BATCH
    assert theirs.most == VIEWS * BATCH
