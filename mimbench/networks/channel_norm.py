"""A norm for maps that lie channels first."""

from torch import Tensor, nn
from typing_extensions import override


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map (b, c, h, w)."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        """Return the normed map."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()
