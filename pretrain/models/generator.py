"""AutoMAE's networks: the mask generator, its critic, the critic's rectangles, and the joint model."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.system.errors import UserError
from mimbench.vit.weights import VitSpec
from pretrain.masks import MaskInput
from pretrain.masks.adversarial import MaskSample, Strategy
from pretrain.models.autoencoder import DecoderConfig, MaskedAutoencoder, Outputs, split

AREA, EXTENT = (40 / 196, 160 / 196), (4 / 14, 10 / 14)
"""Rectangles' area and horizontal extent, as shares of the published 14 x 14 grid's."""
INSIDE = 0.5


class Generator(nn.Module):
    """Two small convolutions over all heads' attention: the log-probability of each patch."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        half = max(1, heads // 2)
        self.net = nn.Sequential(
            nn.Conv2d(heads, half, 3, padding=1), nn.ReLU(), nn.Conv2d(half, 1, 3, padding=1)
        )

    def forward(self, attention: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return log-probabilities (b, n) for attention (b, heads, n)."""
        return self.net(attention.unflatten(2, grid)).flatten(1).float().log_softmax(dim=1)


class SpectralConv(nn.Conv2d):
    """A convolution without bias whose matrix is divided by an estimate of its largest singular value.

    The estimate improves by one power step on request, not in each forward: so it depends on how
    many optimizer steps there were and not on how a batch was divided.
    """

    left: Tensor
    right: Tensor

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], *, stride: int, padding: int
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        flat = self.weight.detach().flatten(1)
        self.register_buffer("left", F.normalize(torch.randn(flat.shape[0]), dim=0))
        self.register_buffer("right", F.normalize(torch.randn(flat.shape[1]), dim=0))
        for _ in range(15):
            self.power_step()

    @torch.no_grad()
    def power_step(self) -> None:
        """Turn both vectors towards the largest singular value's."""
        flat = self.weight.flatten(1)
        with torch.autocast(flat.device.type, enabled=False):
            self.right.copy_(F.normalize(flat.T @ self.left, dim=0))
            self.left.copy_(F.normalize(flat @ self.right, dim=0))

    def normalised(self) -> Tensor:
        """Return the weight divided by the estimate."""
        # copies: a power step between a forward and its backward must not change what was used
        left, right = self.left.clone(), self.right.clone()
        return self.weight / (left @ self.weight.flatten(1) @ right)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the convolution with the normalised weight."""
        return F.conv2d(input, self.normalised(), None, self.stride, self.padding)


class Discriminator(nn.Module):
    """The critic: one number for a map, near 1 for a rectangle's, near 0 for a generator's."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        if min(grid) < 4:
            raise UserError(
                f"adversarial masks need a grid of at least 4 x 4 patches, this one is "
                f"{grid[0]} x {grid[1]}"
            )
        self.grid = grid
        self.first = SpectralConv(1, 16, (4, 4), stride=2, padding=1)
        self.second = SpectralConv(16, 32, (4, 4), stride=2, padding=1)
        self.third = SpectralConv(32, 1, (grid[0] // 4, grid[1] // 4), stride=1, padding=0)

    def forward(self, maps: Tensor) -> Tensor:
        """Return (b,) for maps (b, n)."""
        x = maps.float().reshape(-1, 1, *self.grid)
        x = F.leaky_relu(self.first(x), 0.2)
        x = F.leaky_relu(self.second(x), 0.2)
        return self.third(x).flatten()

    def power_step(self) -> None:
        """Improve every layer's estimate of its largest singular value."""
        for layer in (self.first, self.second, self.third):
            layer.power_step()


def rectangles(inp: MaskInput, rng: torch.Generator) -> Tensor:
    """Return maps (b, n) of one random rectangle each: raised inside, noisy, summing to 1."""
    shape, noise = inp.uniform(rng, 4), inp.uniform(rng, inp.patches)
    inside = lay_rectangles(inp.grid, shape)
    return (INSIDE * inside.flatten(1) + noise).softmax(dim=1)


def lay_rectangles(grid: tuple[int, int], draws: Tensor) -> Tensor:
    """Return rectangles (b, rows, columns) for numbers from [0, 1) (b, 4)."""
    rows, columns = grid
    low, high = (round(share * rows * columns) for share in AREA)
    narrow, wide = (round(share * columns) for share in EXTENT)
    area = low + (draws[:, 0] * (high - low + 1)).floor()
    width = narrow + (draws[:, 1] * (wide - narrow + 1)).floor()
    height = (area / width).ceil().clamp(max=rows)
    top = (draws[:, 2] * (rows - height + 1)).floor()
    left = (draws[:, 3] * (columns - width + 1)).floor()
    y = torch.arange(rows, device=draws.device).view(1, -1, 1)
    x = torch.arange(columns, device=draws.device).view(1, 1, -1)
    top, left, height, width = (v.view(-1, 1, 1) for v in (top, left, height, width))
    return (y >= top) & (y < top + height) & (x >= left) & (x < left + width)


def shown(maps: Tensor, how: Literal["raw", "log", "standard"]) -> Tensor:
    """Return maps (b, n) as the critic is to see them."""
    if how == "raw":
        return maps
    maps = maps.clamp(min=1e-12).log()
    if how == "log":
        return maps
    return (maps - maps.mean(1, keepdim=True)) / maps.std(1, keepdim=True)


class AdversarialOutputs(NamedTuple):
    """What student and generator say about one batch."""

    outputs: Outputs
    draw: MaskSample
    hidden: Tensor
    """Indices (b, m) of the hidden patches, raster order."""


class AdversarialAutoencoder(MaskedAutoencoder):
    """A student with its mask generator: one module, one optimizer."""

    def __init__(
        self,
        spec: VitSpec,
        decoder: DecoderConfig,
        strategy: Strategy,
        *,
        heads: int,
        outputs: int | None,
        predictor: bool,
    ) -> None:
        super().__init__(spec, decoder, outputs=outputs, predictor=predictor)
        self.strategy = strategy
        self.generator = Generator(heads)
        self.generator.requires_grad_(requires_grad=strategy.trains)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, patches: Tensor, attention: Tensor, gumbel: Tensor, noise: Tensor
    ) -> AdversarialOutputs:
        """Return predictions for the patches that the generator hides.

        Args:
            patches: All patches (b, n, size * size * 3).
            attention: The scorer's (b, heads, n).
            gumbel: Gumbel noise (b, n) that samples from the generator's probabilities.
            noise: Uniform noise (b, n) that ranks the patches.
        """
        draw = self.strategy.draw(self.generator(attention, self.spec.grid), gumbel, noise)
        visible, hidden = split(draw.mask, self.strategy.count(draw.mask.shape[1]))
        tokens = self.encoder.embed(patches, visible)
        scores = draw.scores.gather(1, visible).unsqueeze(-1).to(tokens.dtype)
        if not self.strategy.reconstruction_gradient:
            scores = scores.detach()
        seen = tokens[:, 1:]
        # the value stays; a visible patch's gradient tells its score whether more of it would help
        carried = scores * seen + (1 - scores).detach() * seen
        latent = self.encoder.norm(self.encoder.run(torch.cat([tokens[:, :1], carried], dim=1)))
        return AdversarialOutputs(self.decode(latent, visible, hidden), draw, hidden)
