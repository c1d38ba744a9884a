"""The linear head: optional batch norm, dropout, one 1x1 convolution."""

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from transfer.segmentation.framework import MODELS, BaseDecodeHead


@MODELS.register_module()
class LinearHead(BaseDecodeHead):
    """A linear classifier of every patch; logits are enlarged to the labels' size.

    Args:
        norm_cfg: Batch norm before the classifier, or None.
        options: What mmseg's heads take besides.
    """

    def __init__(self, norm_cfg: dict[str, Any] | None = None, **options: Any):
        super().__init__(norm_cfg=norm_cfg, **options)
        self.norm: nn.Module = nn.Identity()
        if norm_cfg:
            self.norm = build_norm_layer(norm_cfg, self.channels)[1]

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Sequence[Tensor]
    ) -> Tensor:
        """Return logits at the patches' resolution."""
        return self.cls_seg(self.norm(self._transform_inputs(inputs)))
