"""Multi-scale and flip test, one view at a time: memory for one view's logits, however many there are."""

from typing import Any, cast

import torch
from mmengine.structures import PixelData
from torch import Tensor
from typing_extensions import override

from transfer.segmentation.framework import SegTTAModel


class StreamingTTA(SegTTAModel):
    """mmseg's mean of softmax over views, without keeping every view's full-size logits.

    mmseg predicts all views first and averages afterwards: 12 views of a 2000 x 1500 picture with 150
    classes are 20 GiB. The sum is taken here in the same order, so the labels are the same.
    """

    @override
    def test_step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, data: dict[str, list[Any]]
    ) -> list[Any]:
        """Return the merged prediction of each picture in a batch of views."""
        views = len(next(iter(data.values())))
        sums: list[Tensor] = []
        first: list[Any] = []
        merged: list[Any] = []
        for view in range(views):
            samples = cast(Any, self.module).test_step({k: v[view] for k, v in data.items()})
            scores = [sample.seg_logits.data.softmax(dim=0) for sample in samples]
            if view == 0:
                sums = [torch.zeros_like(score) for score in scores]
                first = [(s.gt_sem_seg if "gt_sem_seg" in s else None, s.img_path) for s in samples]
            for total, score in zip(sums, scores, strict=True):
                total += score
            for sample in samples:
                del sample.seg_logits
            merged = samples
        for sample, total, (truth, path) in zip(merged, sums, first, strict=True):
            total /= views
            sample.set_data({"pred_sem_seg": PixelData(data=total.argmax(dim=0))})
            if truth is not None:
                sample.set_data({"gt_sem_seg": truth})
            sample.set_metainfo({"img_path": path})
        return merged
