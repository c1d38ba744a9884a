"""Sliding windows spread evenly over a picture, rather than by a fixed stride."""

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor

from transfer.segmentation.framework import MODELS, EncoderDecoder


def starts(length: int, window: int) -> list[int]:
    """Return where the fewest windows that cover a length begin, evenly spread."""
    count = -(-length // window)
    rest = max(0, length - window)
    return [0] if count < 2 else [round(i * rest / (count - 1)) for i in range(count)]


@MODELS.register_module()
class EvenWindows(EncoderDecoder):
    """mmseg's segmentor, whose test windows are as few as cover the picture; logits are averaged."""

    def slide_inference(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Return logits (b, classes, H, W)."""
        height, width = inputs.shape[2:]
        side: tuple[int, int] = cast(Any, self.test_cfg).crop_size
        total = inputs.new_zeros((len(inputs), self.out_channels, height, width))
        count = inputs.new_zeros((1, 1, height, width))
        for top in starts(height, side[0]):
            for left in starts(width, side[1]):
                part = inputs[:, :, top : top + side[0], left : left + side[1]]
                batch_img_metas[0]["img_shape"] = part.shape[2:]
                logits = self.encode_decode(part, batch_img_metas)
                h, w = part.shape[2:]
                total += F.pad(logits, (left, width - left - w, top, height - top - h))
                count[:, :, top : top + h, left : left + w] += 1
        return total / count
