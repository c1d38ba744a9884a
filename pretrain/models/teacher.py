"""The teacher: a moving average of the student's encoder and loss predictor, never trained itself.

It looks at whole images, or at a random quarter of their patches. The released code also keeps and
runs an average of the reconstruction decoder; nothing ever uses it, so it is not here.
"""

import copy
import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mimbench.system.errors import UserError
from pretrain.models.attention import class_attention
from pretrain.models.autoencoder import MaskedAutoencoder, from_patches, to_patches
from pretrain.models.blocks import Block, run_blocks
from pretrain.models.cross import CrossDecoder
from pretrain.models.cross_autoencoder import CrossAutoencoder
from pretrain.models.decoders import Decoder


class Views(NamedTuple):
    """What the teacher says about whole images."""

    features: Tensor
    """(b, n, d): patch tokens after the final norm."""
    difficulty: Tensor | None
    """(b, n), float32: predicted loss of every patch."""
    attention: Tensor | None = None
    """(b, heads, n), float32: what the class token attends to in the last block."""


class Trunk(nn.Module):
    """The blocks of a reconstruction decoder that a loss predictor shares."""

    def __init__(self, decoder: Decoder, depth: int) -> None:
        super().__init__()
        self.blocks = copy.deepcopy(decoder.blocks[:depth])

    def forward(self, x: Tensor, last: int) -> Tensor:
        """Return the last tokens after these blocks."""
        return run_blocks(self.blocks, x, last, recompute=False)


class Teacher(nn.Module):
    """The average; its parameters take no gradient."""

    def __init__(self, student: MaskedAutoencoder) -> None:
        super().__init__()
        self.spec, self.leave = student.spec, student.leave
        self.encoder = copy.deepcopy(student.encoder)
        self.neck = copy.deepcopy(student.neck)
        self.predictor = copy.deepcopy(student.predictor)
        self.reconstructor = None
        if self.predictor is not None and self.leave is not None:
            self.reconstructor = self.trunk(student, self.leave)
        self.encoder.recompute = False
        if self.predictor is not None:
            self.predictor.recompute = False
        self.requires_grad_(requires_grad=False).eval()
        self.mine: list[Tensor] = list(self.parameters())
        names = dict(student.named_parameters())
        self.theirs = [names[name] for name, _ in self.named_parameters()]

    @torch.no_grad()
    def forward(
        self,
        patches: Tensor,
        *,
        difficulty: bool,
        attention: bool = False,
        grid: tuple[int, int] | None = None,
    ) -> Views:
        """Return what it sees in all patches (b, n, size * size * 3), nothing hidden."""
        attended = None
        if attention:
            before, attended = self._until_last(patches, grid)
            tokens = self.encoder.norm(self.encoder.blocks[-1](before))
        else:
            tokens = self.encoder(patches, grid=grid)
        seen = tokens[:, self.spec.class_tokens :]
        if not difficulty:
            return Views(seen, None, attended)
        predicted = self._judge(self.neck(tokens, grid=grid), patches.shape[1])
        return Views(seen, predicted, attended)

    def trunk(self, student: MaskedAutoencoder, leave: int) -> nn.Module:
        """Return the part of the reconstruction decoder that the predictor shares."""
        return Trunk(student.reconstructor, leave)

    def _judge(self, x: Tensor, last: int) -> Tensor:
        """Return the predicted loss (b, last) of the last of a decoder's tokens."""
        if self.predictor is None:
            raise RuntimeError("this teacher has no loss predictor")
        if self.reconstructor is not None:
            return self.predictor(self.reconstructor(x, last)).squeeze(-1).float()
        return self.predictor(x, last).squeeze(-1).float()

    @torch.no_grad()
    def sample(self, patches: Tensor, keys: Tensor, share: float = 0.25) -> Tensor:
        """Return the predicted loss (b, n) of every patch when few are seen, at full resolution.

        This is what the predictor was trained for: hidden places beside a few visible ones.

        Args:
            patches: All patches (b, n, size * size * 3).
            keys: Numbers (b, n); where they are smallest the teacher looks.
            share: Of the patches that it sees.
        """
        n = patches.shape[1]
        seen = max(1, round(n * share))
        order = keys.argsort(dim=1, stable=True)
        visible, hidden = order[:, :seen].sort(1).values, order[:, seen:].sort(1).values
        x = self.neck(self.encoder(patches, visible), visible, hidden)
        found = self._judge(x, n)
        places = torch.cat([visible, hidden], dim=1)
        return torch.empty_like(found).scatter_(1, places, found)

    @torch.no_grad()
    def attend(self, patches: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Return the attention (b, heads, n) alone: nothing after its softmax is computed."""
        return self._until_last(patches, grid)[1]

    def _until_last(self, patches: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        before = self.encoder.run(self.encoder.embed(patches, grid=grid), self.spec.depth - 1)
        last = cast(Block, self.encoder.blocks[-1])
        row = class_attention(last.attn.qkv, last.norm1(before), self.spec.num_heads)
        return before, row[:, :, self.spec.class_tokens :]

    @torch.no_grad()
    def glance(self, patches: Tensor, share: float) -> Tensor:
        """Return the predicted loss (b, n) that a smaller image of about `share` n patches gives."""
        size, (rows, columns) = self.spec.patch_size, self.spec.grid
        grid = (
            max(1, round(rows * math.sqrt(share))),
            max(1, round(columns * math.sqrt(share))),
        )
        images = from_patches(patches, size, self.spec.grid)
        small = F.interpolate(
            images, size=(grid[0] * size, grid[1] * size), mode="bilinear", antialias=True
        )
        found = self(to_patches(small, size), difficulty=True, grid=grid).difficulty
        assert found is not None
        wide = F.interpolate(found.reshape(-1, 1, *grid), size=self.spec.grid, mode="bilinear")
        return wide.flatten(1)

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move every tensor towards the student's: decay x own + (1 - decay) x the student's."""
        get_ema_multi_avg_fn(decay)(self.mine, [p.detach() for p in self.theirs], None)


class CrossTeacher(Teacher):
    """The average of a student with a cross decoder: every place is asked for, whatever is seen."""

    def __init__(self, student: CrossAutoencoder) -> None:
        super().__init__(student)
        self.sources = student.sources

    def trunk(self, student: MaskedAutoencoder, leave: int) -> nn.Module:
        """Return the blocks of the reconstruction decoder that the predictor shares."""
        assert isinstance(student.reconstructor, CrossDecoder)
        shared = copy.deepcopy(student.reconstructor)
        shared.blocks, shared.norms = shared.blocks[:leave], shared.norms[:leave]
        del shared.norm, shared.pred
        return shared

    @torch.no_grad()
    def forward(
        self,
        patches: Tensor,
        *,
        difficulty: bool,
        attention: bool = False,
        grid: tuple[int, int] | None = None,
    ) -> Views:
        """Return what it sees in all patches, nothing hidden."""
        if grid is not None and grid != self.spec.grid:
            raise UserError(
                f"a cross decoder asks for the places of its own grid, {self.spec.grid}, and not of "
                f"{grid}; look at images of the run's own size"
            )
        outputs = self.encoder.outputs(patches)
        predicted = self._answers(outputs) if difficulty else None
        seen = outputs[-1][:, self.spec.class_tokens :]
        return Views(seen, predicted, self.attend(patches) if attention else None)

    @torch.no_grad()
    def sample(self, patches: Tensor, keys: Tensor, share: float = 0.25) -> Tensor:
        """Return the predicted loss (b, n) of every patch when few are seen."""
        seen = max(1, round(patches.shape[1] * share))
        visible = keys.argsort(dim=1, stable=True)[:, :seen].sort(1).values
        return self._answers(self.encoder.outputs(patches, visible))

    def _answers(self, outputs: list[Tensor]) -> Tensor:
        if self.predictor is None:
            raise RuntimeError("this teacher has no loss predictor")
        features = torch.stack([outputs[i] for i in self.sources])
        places = torch.arange(self.spec.grid[0] * self.spec.grid[1], device=features.device)
        asked = self.neck(places.expand(features.shape[1], -1))
        if isinstance(self.reconstructor, CrossDecoder):
            found = self.predictor(self.reconstructor.run(asked, features))
        else:
            found = self.predictor(asked, features)
        return found.squeeze(-1).float()


def build_teacher(student: MaskedAutoencoder) -> Teacher:
    """Return the average of a student, whichever kind its decoder is."""
    return CrossTeacher(student) if isinstance(student, CrossAutoencoder) else Teacher(student)
