"""What every masking strategy promises, found by looking into the folder: a new file is tested too."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mimbench.system.errors import UserError
from mimbench.training.batches import Batch
from mimbench.training.learner import StepInfo
from mimbench.vit.weights import VitSpec
from pretrain import masks
from pretrain.config import read_config
from pretrain.masks import Amount, MaskInput, MaskStrategy
from pretrain.models.autoencoder import DecoderConfig, MaskedAutoencoder, split
from pretrain.objectives.learner import Pretraining

NAMES = sorted(masks.available())
TENSORS = ("difficulty", "attention", "images", "log_probability", "salience", "labels", "keep")
GRIDS = [(14, 14), (4, 4), (6, 10), (12, 4)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def look(batch: int, grid: tuple[int, int] = (14, 14), seed: int = 9, **more: Any) -> MaskInput:
    """Return an input with everything that any strategy may need."""
    n = grid[0] * grid[1]
    source = rng(seed)
    return MaskInput(
        batch=batch,
        grid=grid,
        device=torch.device("cpu"),
        difficulty=torch.randn(batch, n, generator=source),
        attention=torch.rand(batch, n, generator=source).softmax(1),
        images=torch.randn(batch, 3, 16 * grid[0], 16 * grid[1], generator=source),
        log_probability=torch.randn(batch, n, generator=source).log_softmax(1),
        salience=torch.rand(batch, n, generator=source),
        labels=torch.randint(0, 4, (batch, 2 * grid[0], 2 * grid[1]), generator=source).byte(),
        keep=torch.rand(batch, n, generator=source),
        trial=lambda mask: (mask * torch.linspace(0, 1, n)).sum(1),
        **more,
    )


def rows(inp: MaskInput, first: int, last: int) -> MaskInput:
    """Return a part of a batch as another process would see it."""
    tensors = {
        name: value[first:last]
        for name in TENSORS
        if isinstance(value := getattr(inp, name), Tensor)
    }
    return replace(inp, batch=last - first, first=first, whole=inp.batch, **tensors)


@pytest.fixture(params=NAMES)
def strategy(request: pytest.FixtureRequest) -> MaskStrategy:
    return masks.build({"name": request.param})


def test_the_published_strategies_are_there() -> None:
    assert {"random", "block", "grid", "hard", "attention", "adversarial"} <= set(NAMES)
    assert {"boxes", "segments", "curriculum"} <= set(NAMES)
    assert {"colour", "rolled", "multiblock", "even", "salience", "harder", "contrast"} <= set(
        NAMES
    )
    assert all(isinstance(masks.build({"name": name}), MaskStrategy) for name in NAMES)


@pytest.mark.parametrize("grid", GRIDS)
def test_exact_counts_on_any_grid(strategy: MaskStrategy, grid: tuple[int, int]) -> None:
    mask = strategy(look(5, grid), rng())
    n = grid[0] * grid[1]
    assert mask.shape == (5, n)
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [strategy.count(n)] * 5
    assert 0 < strategy.count(n) < n


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    ratio=st.floats(0.05, 0.95),
    grid=st.tuples(st.integers(2, 8), st.integers(2, 8)).map(lambda g: (2 * g[0], 2 * g[1])),
    batch=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_exact_counts_at_any_ratio(
    name: str, ratio: float, grid: tuple[int, int], batch: int, seed: int
) -> None:
    strategy = masks.build({"name": name, "ratio": ratio})
    patches = grid[0] * grid[1]
    hidden = patches - int(patches * (1 - ratio) + 1e-9)
    if name == "grid":
        hidden = 4 * math.ceil(patches / 4 * ratio - 1e-9)
    if not 0 < hidden < patches:
        with pytest.raises(UserError, match="mask ratio"):
            strategy.count(patches)
        return
    count = strategy.count(patches)
    assert count == hidden
    mask = strategy(look(batch, grid, seed), rng(seed))
    assert mask.sum(1).tolist() == [count] * batch


def test_the_same_seed_gives_the_same_masks(strategy: MaskStrategy) -> None:
    inp = look(6)
    assert torch.equal(strategy(inp, rng(3)), strategy(inp, rng(3)))


def test_the_division_into_processes_changes_nothing(strategy: MaskStrategy) -> None:
    inp = look(6)
    whole = strategy(inp, rng(3))
    parts = [strategy(rows(inp, a, b), rng(3)) for a, b in ((0, 2), (2, 6))]
    assert torch.equal(torch.cat(parts), whole)


def test_a_batch_of_one(strategy: MaskStrategy) -> None:
    assert strategy(look(1), rng()).sum() == strategy.count(196)


def test_images_steps_and_seeds_differ(strategy: MaskStrategy) -> None:
    mask = strategy(look(8), rng(1))
    assert len({tuple(row.tolist()) for row in mask}) == 8
    # what a teacher's attention or a masking network decides alone has nothing to draw
    if not strategy.needs & {"attention", "masker"}:
        assert not torch.equal(mask, strategy(look(8), rng(2)))


def test_half_precision_inputs(strategy: MaskStrategy) -> None:
    inp = look(3)
    names = ("difficulty", "attention", "log_probability", "salience", "keep")
    half = replace(inp, **{name: getattr(inp, name).half() for name in names})
    assert strategy(half, rng()).sum(1).tolist() == [strategy.count(196)] * 3


def test_what_is_not_needed_is_not_looked_at(strategy: MaskStrategy) -> None:
    inp = look(4)
    fields = {
        "difficulty": "difficulty",
        "attention": "attention",
        "images": "images",
        "generator": "log_probability",
        "salience": "salience",
        "trial": "trial",
        "labels": "labels",
        "masker": "keep",
    }
    absent = {field: None for need, field in fields.items() if need not in strategy.needs}
    assert torch.equal(strategy(replace(inp, **absent), rng()), strategy(inp, rng()))


def test_no_hidden_pixel_reaches_the_encoder(strategy: MaskStrategy) -> None:
    torch.manual_seed(0)
    spec = VitSpec(embed_dim=16, depth=1, num_heads=2, mlp_dim=32, patch_size=2, grid=(14, 14))
    shape = DecoderConfig(width=16, depth=1, heads=2)
    model = MaskedAutoencoder(spec, shape, outputs=None, predictor=False)
    mask = strategy(look(2), rng())
    visible, hidden = split(mask, strategy.count(196))
    patches = torch.randn(2, 196, 12)
    latent = model(patches, visible, hidden).latent
    changed = torch.where(mask.unsqueeze(-1), 99.0, patches)
    assert torch.equal(model(changed, visible, hidden).latent, latent)
    assert not torch.equal(
        model(torch.where(mask.unsqueeze(-1), patches, 99.0), visible, hidden).latent, latent
    )


def test_training_draws_anew_at_every_step_of_every_epoch(tmp_path: Path) -> None:
    """The same images again and again: no mask comes back, and a seed brings all of them back."""
    tiny = ["encoder.width=24", "encoder.depth=1", "encoder.heads=2", "training.batch=2"]
    tiny += ["decoder.width=16", "decoder.depth=1", "decoder.heads=2", "encoder.patch=4"]

    def masks_of(seed: int) -> list[Tensor]:
        config = read_config(
            "demo", [*tiny, "mask.name=random", f"training.seed={seed}", "machine.device=cpu"]
        )
        learner, seen = Pretraining(config, torch.device("cpu"), tmp_path), []
        batch = Batch(torch.arange(2), torch.zeros(2, 3, 32, 32, dtype=torch.uint8), ())
        learner.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
        for step in range(6):
            at = StepInfo(step=step, steps_per_epoch=2, epochs=3, batch=2)
            learner.loss(learner.student, batch, at)
        return seen

    first, again, other = masks_of(0), masks_of(0), masks_of(1)
    assert all(map(torch.equal, first, again))
    rows = [tuple(row.tolist()) for hidden in [*first, *other] for row in hidden]
    assert len(set(rows)) == len(rows) == 24


@pytest.mark.parametrize("name", ["random", "block", "grid", "attention"])
def test_an_objective_may_draw_how_much_is_hidden(name: str) -> None:
    strategy = masks.build({"name": name})
    share = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.0])
    amount = Amount(share=share, again=0.3)
    mask = strategy(look(5, amount=amount), rng())
    hidden = mask.sum(1)
    wanted = (share * 196 + 1e-4).long()
    assert (hidden[share == 0] == 0).all()
    assert (hidden <= wanted).all()
    if name in {"random", "attention"}:
        assert torch.equal(hidden, wanted)
    else:
        assert (hidden[1:4] > 0).all()


def test_an_unknown_name_is_answered_with_the_nearest_and_with_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"unknown mask.name 'atention'.*attention"):
        masks.build({"name": "atention"})
    with pytest.raises(UserError, match="SemMAE"):
        masks.build({"name": "semantic"})
