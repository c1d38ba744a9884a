"""A plain Hard Patches Mining step, structured as the released one: what ours is measured against.

Written from the method's description, not from its code, and with what the released structure does
that ours leaves out: patches embedded before most of them are dropped, attention as two products
with a softmax between, a predictor head of as many outputs as a patch has pixel values, a teacher
that runs both decoders over the whole crop, masks image by image on the host, an optimizer and a
moving average that go from tensor to tensor. Names of parameters are the released ones.
"""

import copy
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from bench.stopwatch import Mark, ignore
from mimbench.system.runtime import Precision, autocast
from mimbench.vit.positions import sincos_table
from mimbench.vit.weights import VitSpec
from pretrain.models.autoencoder import DecoderConfig
from pretrain.objectives.learner import parameter_groups


class PlainAttention(nn.Module):
    """Self-attention, the matrix of weights written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what tokens (b, n, d) gather."""
        b, n, width = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, width))


class PlainMlp(nn.Module):
    """Two linear maps around a GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = (
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the mapped tokens."""
        return self.fc2(self.act(self.fc1(x)))


class PlainBlock(nn.Module):
    """A pre-norm block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), PlainAttention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), PlainMlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens after the block."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PlainPatches(nn.Module):
    """The patch embedding as a convolution over whole images."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, size, stride=size)

    def forward(self, images: Tensor) -> Tensor:
        """Return (b, n, d)."""
        return self.proj(images).flatten(2).transpose(1, 2)


def decoder_parts(
    config: DecoderConfig, outputs: int
) -> tuple[nn.ModuleList, nn.Module, nn.Linear]:
    """Return the blocks, norm and head of one decoder."""
    blocks = nn.ModuleList(PlainBlock(config.width, config.heads) for _ in range(config.depth))
    return blocks, nn.LayerNorm(config.width, eps=1e-6), nn.Linear(config.width, outputs)


class PlainHpm(nn.Module):
    """Encoder, reconstruction decoder and loss predictor: a student or a teacher."""

    pos_embed: Tensor
    decoder_pos_embed: Tensor

    def __init__(self, spec: VitSpec, decoder: DecoderConfig) -> None:
        super().__init__()
        width, pixels = spec.embed_dim, 3 * spec.patch_size**2
        self.size = spec.patch_size
        self.patch_embed = PlainPatches(width, spec.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", sincos_table(width, spec.grid, class_row=True))
        self.blocks = nn.ModuleList(PlainBlock(width, spec.num_heads) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, decoder.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.width))
        table = sincos_table(decoder.width, spec.grid, class_row=True)
        self.register_buffer("decoder_pos_embed", table)
        parts = decoder_parts(decoder, pixels)
        self.decoder_blocks, self.decoder_norm, self.decoder_pred = parts
        parts = decoder_parts(decoder, pixels)
        self.decoder_blocks_losspred, self.decoder_norm_losspred, self.decoder_pred_losspred = parts

    def encode(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return class token and visible patches (b, 1 + k, d)."""
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        x = x[~mask].reshape(len(x), -1, x.shape[-1])
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def decode(self, latent: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return pixels (b, n, p) and predicted losses (b, n): visible patches, then hidden ones."""
        x = self.decoder_embed(latent)
        b, _, width = x.shape
        table = self.decoder_pos_embed[:, 1:].expand(b, -1, -1)
        seen = x[:, 1:] + table[~mask].reshape(b, -1, width)
        hidden = self.mask_token + table[mask].reshape(b, -1, width)
        x = torch.cat([x[:, :1] + self.decoder_pos_embed[:, :1], seen, hidden], dim=1)
        pixels, difficulty = x, x
        for block in self.decoder_blocks:
            pixels = block(pixels)
        for block in self.decoder_blocks_losspred:
            difficulty = block(difficulty)
        pixels = self.decoder_pred(self.decoder_norm(pixels))
        difficulty = self.decoder_pred_losspred(self.decoder_norm_losspred(difficulty))
        return pixels[:, 1:], difficulty[:, 1:].mean(dim=-1)

    def targets(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the hidden patches (b, m, p), channel fastest, each normalised."""
        x = images.unfold(2, self.size, self.size).unfold(3, self.size, self.size)
        x = x.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        x = (x - x.mean(dim=-1, keepdim=True)) / (x.var(dim=-1, keepdim=True) + 1e-6) ** 0.5
        return x[mask].reshape(len(x), -1, x.shape[-1])


def order_loss(predicted: Tensor, losses: Tensor) -> Tensor:
    """Return the mean over ordered pairs of unequal loss of -log(probability of the true order)."""
    predicted = predicted.float()
    larger = losses.unsqueeze(2) > losses.unsqueeze(1)
    smaller = losses.unsqueeze(2) < losses.unsqueeze(1)
    p = (predicted.unsqueeze(2) - predicted.unsqueeze(1)).sigmoid()
    total = -(larger * (p + 1e-6).log() + smaller * (1 - p + 1e-6).log())
    return total.sum() / (larger | smaller).sum()


def mark_losses(outputs: Iterable[Tensor | None], mark: Mark) -> None:
    """Mark where the backward pass leaves the losses and enters the decoders."""
    names = iter(["losses"])
    for output in outputs:
        if output is not None:
            # the decoders are left behind one after the other: only the first ends the losses
            output.register_hook(lambda _: mark(next(names, "decoders")))


class PlainStep:
    """One optimizer step after another, as a user of the released structure would take it."""

    def __init__(
        self,
        student: PlainHpm,
        *,
        hidden: int,
        hard: int,
        decay: float,
        precision: Precision = "fp32",
    ) -> None:
        self.student, self.hidden, self.hard, self.decay = student, hidden, hard, decay
        self.precision: Precision = precision
        self.teacher = copy.deepcopy(student).eval().requires_grad_(requires_grad=False)
        groups = parameter_groups(student, 0.05)
        self.optimizer = torch.optim.AdamW(groups, lr=1e-6, betas=(0.9, 0.95), foreach=False)
        self.rng = np.random.default_rng(0)

    def look(self, images: Tensor) -> Tensor:
        """Return the predicted loss of every patch; the pixels that come with it are thrown away."""
        n = self.student.pos_embed.shape[1] - 1
        nothing = torch.zeros(len(images), n, dtype=torch.bool, device=images.device)
        with torch.no_grad():
            _, difficulty = self.teacher.decode(self.teacher.encode(images, nothing), nothing)
        return difficulty

    def choose(self, difficulty: Tensor) -> Tensor:
        """Return the mask, made image by image on the host."""
        rows = []
        for row in difficulty:
            order = row.argsort().cpu().numpy()
            easy = order[: len(order) - self.hard]
            self.rng.shuffle(easy)
            hidden = np.ones(len(order), dtype=bool)
            hidden[order[: len(order) - self.hidden]] = False
            rows.append(torch.from_numpy(hidden).to(row.device))
        return torch.stack(rows)

    def losses(self, images: Tensor, mask: Tensor, mark: Mark = ignore) -> tuple[Tensor, Tensor]:
        """Return reconstruction and loss-prediction loss of the student under a mask."""
        latent = self.student.encode(images, mask)
        mark("encoder")
        pixels, difficulty = self.student.decode(latent, mask)
        pixels, difficulty = pixels[:, -self.hidden :], difficulty[:, -self.hidden :]
        if latent.requires_grad:
            latent.register_hook(lambda _: mark("decoders"))
            mark_losses([pixels, difficulty], mark)
        mark("decoders")
        error = (pixels.float() - self.student.targets(images, mask)).pow(2).mean(dim=-1)
        return error.mean(), order_loss(difficulty, error.detach())

    def __call__(self, images: Tensor, mark: Mark = ignore) -> None:
        """Take one optimizer step on normalised images (b, 3, H, W)."""
        self.optimizer.zero_grad()
        mark("rest")
        with autocast(images.device, self.precision):
            difficulty = self.look(images)
            mark("teacher")
            mask = self.choose(difficulty)
            mark("masks")
            reconstruction, judged = self.losses(images, mask, mark)
            loss = reconstruction + judged
        mark("losses")
        loss.backward()
        mark("encoder")
        nn.utils.clip_grad_norm_(self.student.parameters(), 5.0, foreach=False)
        mark("clip")
        self.optimizer.step()
        mark("optimizer")
        self.follow()
        mark("average")

    @torch.no_grad()
    def follow(self) -> None:
        """Move every tensor of the teacher towards the student's, one after another."""
        own = self.teacher.state_dict()
        for name, tensor in self.student.state_dict().items():
            own[name].copy_(own[name] * self.decay + tensor * (1.0 - self.decay))
