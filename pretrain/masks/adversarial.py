"""AutoMAE: a small network learns where to mask, against a critic that knows what masks look like.

The generator turns a frozen ViT's attention into a probability for each patch; as many patches as
stay visible are sampled from it and raised in a random ranking, the lowest stay visible. Networks
and step are in pretrain/models/generator.py and pretrain/objectives/adversarial.py; this file draws the masks.
Written from the method's published numbers and rules, not from its code.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from pretrain.masks import MaskInput, Need, hidden_count, hide_largest


class MaskSample(NamedTuple):
    """One draw of masks."""

    sample: Tensor
    """(b, n) Gumbel-softmax sample, sums to 1; differentiable."""
    scores: Tensor
    """(b, n) random ranking in which sampled patches are raised; differentiable."""
    mask: Tensor
    """(b, n) True = hidden."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """AutoMAE (Chen et al., PRCV 2023)."""

    ratio: float = 0.75
    scorer: Path | None = None
    """A checkpoint of a ViT that stays as it is and says what is salient; any that mimbench reads.
    Without one the teacher, the student's own moving average, takes its place."""
    boost: float = 0.5
    """How far a sampled patch rises in the ranking; from 0.4 on all of them are hidden, 0 is MAE."""
    weight: float = 0.2
    """Weight of the critic's judgement beside the reconstruction; 0 leaves the critic out."""
    reconstruction_gradient: bool = True
    """Whether the reconstruction loss reaches the generator, through the visible patches' ranking."""
    maps: Literal["raw", "log", "standard"] = "raw"
    """What the critic sees: maps as they are, their logarithm, or standardised; as they are, it can
    tell them apart by their range alone."""
    generator_from: Path | None = None
    """A run whose generator is taken over."""
    train_generator: bool = True
    """False: the generator stays as `generator_from` left it, the second of two stages."""

    needs: ClassVar[frozenset[Need]] = frozenset({"generator"})

    def __post_init__(self) -> None:
        if self.boost < 0 or self.weight < 0:
            raise ValueError(
                f"boost is {self.boost} and weight {self.weight}, expected 0 or more of each"
            )

    @property
    def trains(self) -> bool:
        """Whether any gradient reaches the generator."""
        return self.train_generator and (self.weight > 0 or self.reconstruction_gradient)

    def count(self, patches: int) -> int:
        """Return the number of hidden patches."""
        return hidden_count(patches, self.ratio)

    def idle(self, inp: MaskInput) -> bool:
        """Tell whether sampled patches are not raised at all."""
        del inp
        return self.boost == 0

    def __call__(self, inp: MaskInput, rng: torch.Generator) -> Tensor:
        """Return the mask; without a generator's probabilities it is random."""
        noise, gumbel = self.noise(inp, rng)
        if inp.log_probability is None:
            return hide_largest(noise, self.count(inp.patches))
        return self.draw(inp.log_probability, gumbel, noise).mask

    def noise(self, inp: MaskInput, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return uniform and Gumbel noise (b, n)."""
        noise = inp.uniform(rng, inp.patches)
        gumbel = -(-inp.uniform(rng, inp.patches).clamp(min=1e-12).log()).clamp(min=1e-12).log()
        return noise, gumbel

    def draw(self, log_probability: Tensor, gumbel: Tensor, noise: Tensor) -> MaskSample:
        """Return a sample and the mask that follows from it; gradients pass straight through."""
        hidden = self.count(log_probability.shape[1])
        sample = (log_probability.float() + gumbel).softmax(dim=1)
        fixed = sample.detach()
        chosen = hide_largest(fixed, log_probability.shape[1] - hidden).float()
        scores = noise + self.boost * (chosen - fixed + sample)
        return MaskSample(sample, scores, hide_largest(scores.detach(), hidden))
