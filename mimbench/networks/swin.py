"""Swin as detectors and segmenters run it: pictures of any size, padded before windows are shifted.

timm rolls the map first and pads it afterwards, so that the mask of shifted windows separates the
wrong rows wherever a stage's grid is no multiple of the window. Its published classifiers never
meet that case; detectors at 1024 and segmenters at 512 do in most stages.
"""

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn


class PadFirstBlock(SwinTransformerBlock):
    """timm's block with the order of detectron2 and mmsegmentation: pad, roll, mask."""

    def _attn(self, x: Tensor) -> Tensor:
        _, H, W, C = x.shape
        (rows, columns), (down, right) = self.window_size, self.shift_size
        x = F.pad(x, (0, 0, 0, -W % columns, 0, -H % rows))
        height, width = x.shape[1], x.shape[2]
        shifted = any(self.shift_size)
        if shifted:
            x = torch.roll(x, shifts=(-down, -right), dims=(1, 2))
        mask = self.get_attn_mask(x) if shifted else None
        windows = window_partition(x, self.window_size).flatten(1, 2)
        windows = self.attn(windows, mask=mask).view(-1, rows, columns, C)
        x = window_reverse(windows, self.window_size, height, width)
        if shifted:
            x = torch.roll(x, shifts=(down, right), dims=(1, 2))
        return x[:, :H, :W].contiguous()


def pad_first(model: nn.Module) -> None:
    """Let every block pad before it shifts; parameters and their names stay."""
    for module in model.modules():
        if type(module) is SwinTransformerBlock:
            module.__class__ = PadFirstBlock
