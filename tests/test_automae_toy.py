"""AutoMAE's 14th check: one textured square on flat ground; does the generator learn to hide it?"""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mimbench.training.batches import Batch
from mimbench.training.learner import StepInfo
from mimbench.training.optim import set_lr
from pretrain.config import read_config
from pretrain.masks import MaskInput, hide_largest
from pretrain.objectives.adversarial import AdversarialPretraining
from pretrain.viewing.mask_statistics import describe
from tests.support.tiny_pretrain import NETWORK

GRID, PATCH, SQUARE, BATCH, STEPS, RATE = (8, 8), 4, 4, 32, 90, 0.01
TOY = [
    *NETWORK,
    "encoder.patch=4",
    "encoder.depth=1",
    "data.root=/nowhere",
    "objective.predict_loss=none",
    "objective.target=pixels",
    "training.precision=fp32",
    f"training.batch={BATCH}",
    "training.epochs=10",
    "mask.name=adversarial",
]


def squares(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return grey images with a square of noise somewhere, and which patches it covers (b, n)."""
    source = torch.Generator().manual_seed(seed)
    images = torch.full((count, 3, 32, 32), 128, dtype=torch.uint8)
    inside = torch.zeros(count, *GRID, dtype=torch.bool)
    places = torch.randint(0, GRID[0] - SQUARE + 1, (count, 2), generator=source).tolist()
    side = SQUARE * PATCH
    noise = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=source)
    for i, (top, left) in enumerate(places):
        inside[i, top : top + SQUARE, left : left + SQUARE] = True
        y, x = top * PATCH, left * PATCH
        images[i, :, y : y + side, x : x + side] = noise[i]
    return images, inside.flatten(1)


class Toy(AdversarialPretraining):
    """A scorer of two heads, of which one attends to the square and the other to everything."""

    def salience(self, images: Tensor, patches: Tensor) -> Tensor:
        """Return the square's map, which its variance betrays."""
        textured = (patches.var(-1) > 0.1).float()
        flat = torch.full_like(textured, 1 / textured.shape[1])
        return torch.stack([textured / textured.sum(1, keepdim=True), flat], 1)


class Seen(NamedTuple):
    """What masks are like at some moment."""

    hidden_inside: float
    hidden_outside: float
    sampled: float
    """Share of the square among as many sampled patches as it has; a quarter by chance."""
    clumping: float


def look(learner: AdversarialPretraining) -> Seen:
    """Return what masks do to fresh images."""
    images, inside = squares(256, seed=999)
    with torch.no_grad():
        _, patches = learner.prepare(images)
        attention = learner.salience(images, patches)
        chances = learner.student.generator(attention, GRID)
        inp = MaskInput(batch=256, grid=GRID, device=torch.device("cpu"))
        noise, gumbel = learner.strategy.noise(inp, torch.Generator().manual_seed(5))
        draw = learner.strategy.draw(chances, gumbel, noise)
    top = hide_largest(draw.sample, SQUARE**2)
    row = describe("sampled", top.unsqueeze(0), GRID, objects=inside.float(), loss=None)
    return Seen(
        draw.mask[inside].float().mean().item(),
        draw.mask[~inside].float().mean().item(),
        top[inside].float().mean().item(),
        row.clumping,
    )


def train(*changes: str) -> list[Seen]:
    """Return what masks are like before, halfway and after."""
    config = read_config("mae_vit_base_16", [*TOY, *changes])
    torch.manual_seed(0)
    learner = Toy(config, torch.device("cpu"), Path("unused"))
    learner.rate = lambda at: RATE
    set_lr(learner.optimizer, RATE)
    found = [look(learner)]
    for step in range(STEPS):
        at = StepInfo(step=step, steps_per_epoch=1_000, epochs=10, batch=BATCH)
        batch = Batch(torch.arange(BATCH), squares(BATCH, seed=step)[0], ())
        learner.optimizer.zero_grad(set_to_none=True)
        learner.loss(learner.student, batch, at)["loss"].backward()
        learner.optimizer.step()
        if step + 1 in {STEPS // 2, STEPS}:
            found.append(look(learner))
    return found


@pytest.mark.parametrize("change", ["mask.weight=0.2", "mask.reconstruction_gradient=false"])
def test_14_against_the_critic_the_square_is_found(change: str) -> None:
    """Critics know rectangles; the square is the only thing of which the generator can make one."""
    first, half, last = train(change)
    assert abs(first.sampled - 0.25) < 0.03
    assert abs(first.hidden_inside - first.hidden_outside) < 0.02
    assert first.sampled < half.sampled < last.sampled
    assert last.sampled > 0.5
    assert last.hidden_inside - last.hidden_outside > 0.1
    assert last.clumping > first.clumping + 0.5


def test_14_reconstruction_alone_finds_nothing_in_the_same_time() -> None:
    first, _, last = train("mask.weight=0")
    assert abs(last.sampled - first.sampled) < 0.05
    assert abs(last.hidden_inside - last.hidden_outside) < 0.02
