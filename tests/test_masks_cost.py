"""A strategy pays for what it asks for and for nothing else: matrix products, counted."""

from pathlib import Path

import pytest
import torch

from bench.mask_cost import pictures, step_info, take_step, within_ibot
from bench.pretrain_flops import block, decoder, encoder, executed
from mimbench.training.learner import Learner, StepInfo
from mimbench.vit.weights import VitSpec
from pretrain import masks
from pretrain.config import read_config
from pretrain.masks import MaskInput
from pretrain.models.masker import DEPTH
from pretrain.objectives.learner import Pretraining
from pretrain.train import build_learner

SMALL = (
    "encoder.patch=16",
    "encoder.width=96",
    "encoder.depth=4",
    "encoder.heads=3",
    "decoder.width=64",
    "decoder.depth=1",
    "decoder.heads=2",
    "data.image_size=128",
    "data.root=/nowhere",
    "training.precision=fp32",
    "training.batch=1",
    "training.epochs=100",
    "machine.device=cpu",
)
PLAIN = ("objective.predict_loss=none",)


def flops(learner: Learner, data: object, at: StepInfo) -> int:
    """Return what a step executes; a first one builds what is built once."""
    take_step(learner, data, at, "fp32", 5.0)
    return executed(lambda: take_step(learner, data, at, "fp32", 5.0))


def of_reconstruction(*changes: str, at: StepInfo | None = None) -> tuple[int, Pretraining]:
    """Return a step's FLOPs for one image of 64 patches."""
    config = read_config("mae_vit_base_16", [*SMALL, *PLAIN, "mask.ratio=0.75", *changes])
    learner = build_learner(config, torch.device("cpu"), Path("unused"))
    return flops(learner, pictures(1, 3, 128, 128), step_info(1) if at is None else at), learner


def one_look(spec: VitSpec) -> int:
    """Return what the class token's row over a whole image needs: all blocks but one, then one row."""
    n = spec.grid[0] * spec.grid[1]
    embedding, blocks = encoder(spec, n)
    keys = 2 * (n + 1) * spec.embed_dim**2
    query, scores = 2 * spec.embed_dim**2, 2 * (n + 1) * spec.embed_dim
    return embedding + blocks - block(n + 1, spec.embed_dim) + keys + query + scores


@pytest.fixture(scope="module")
def mae() -> int:
    return of_reconstruction("mask.name=random")[0]


@pytest.mark.parametrize("name", ["grid", "block"])
def test_what_asks_for_nothing_costs_nothing(name: str, mae: int) -> None:
    found, learner = of_reconstruction(f"mask.name={name}")
    assert found == mae
    assert learner.teacher is None


@pytest.mark.parametrize("order", ["high", "hint", "low"])
def test_attention_costs_one_row_of_the_teacher(order: str, mae: int) -> None:
    found, learner = of_reconstruction("mask.name=attention", f"mask.order={order}")
    assert found - mae == one_look(learner.spec)


def test_what_follows_no_attention_asks_no_teacher(mae: int) -> None:
    assert of_reconstruction("mask.name=attention", "mask.probability=0")[0] == mae


def test_hard_masks_ask_nobody_before_they_choose() -> None:
    both = ("objective.predict_loss=relative",)
    early = StepInfo(step=0, steps_per_epoch=10, epochs=100, batch=1)
    plain, _ = of_reconstruction("mask.name=random", *both)
    assert of_reconstruction("mask.name=hard", *both, at=early)[0] == plain
    late, learner = of_reconstruction("mask.name=hard", *both)
    assert late > plain + sum(encoder(learner.spec, 64))


def test_learned_masks_cost_one_row_and_two_small_networks(mae: int) -> None:
    """AutoMAE's overhead: the scorer sees the whole image, generator and critic hardly count."""
    whole, learner = of_reconstruction("mask.name=adversarial")
    look = one_look(learner.spec)
    alone, _ = of_reconstruction("mask.name=adversarial", "mask.weight=0")
    assert mae + look < alone < whole
    assert whole - mae - look < 0.02 * mae


def test_a_curriculum_costs_a_network_and_the_student_on_all_patches(mae: int) -> None:
    """CL-MAE: the network forward twice and backward once, the student once forward and back."""
    found, learner = of_reconstruction("mask.name=curriculum")
    spec, shape, n = learner.spec, learner.config.decoder, 64
    width = spec.embed_dim
    embedding, blocks = encoder(spec, n)
    network = DEPTH * block(n + 1, width) + 2 * width * n
    neck = 2 * width * shape.width * (n + 1)
    student = blocks + neck + decoder(shape, n, n, 768)
    # weights of the student take no gradient in the network's turn
    needed = 2 * embedding + 4 * network + 2 * student
    # PyTorch counts a fifth product in attention's backward pass, which recomputes its weights
    assert 1 < (found - mae) / needed < 1.08


def test_oracles_cost_nothing() -> None:
    labels = torch.randint(0, 3, (2, 32, 32)).byte()
    inp = MaskInput(batch=2, grid=(8, 8), device=torch.device("cpu"), labels=labels)
    for fields in ({"name": "boxes"}, {"name": "segments", "order": "whole"}):
        strategy = masks.build(fields)
        assert executed(lambda s=strategy: s(inp, torch.Generator())) == 0


def test_attention_within_ibot_costs_less_than_two_percent() -> None:
    steps = within_ibot("tiny", 1, torch.device("cpu"), "fp32")
    counted = {name: executed(step) for name, step in steps.items()}
    assert counted["block"] == counted["random"]
    for order in ("high", "hint"):
        assert 1 < counted[f"attention {order}"] / counted["random"] < 1.02
