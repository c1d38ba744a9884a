"""CL-MAE: every number of the released code's two steps; turns, batches and limits of its learner."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mimbench.system.errors import UserError
from mimbench.training.batches import Batch
from mimbench.vit.weights import VitSpec
from pretrain.checkpoints.layouts import from_official
from pretrain.checkpoints.stored import read_model
from pretrain.masks.curriculum import Strategy
from pretrain.models.autoencoder import DecoderConfig, MaskedAutoencoder, split, to_patches
from pretrain.models.encoder import take
from pretrain.models.masker import (
    MaskingNetwork,
    diversity_term,
    gated_losses,
    gauss_term,
    kl_term,
    reconstruction_term,
)
from pretrain.models.reconstruction import normalise_patches, pixel_loss
from pretrain.objectives.curriculum import CurriculumPretraining
from pretrain.objectives.looking import Given
from tests.support.tiny_pretrain import images, look, rng, step_info, tiny

SPEC = VitSpec(embed_dim=32, depth=2, num_heads=4, mlp_dim=128, patch_size=8, grid=(4, 4))


@pytest.fixture(scope="module")
def arrays(golden: Path) -> dict[str, Tensor]:
    return {k: torch.from_numpy(np.array(v)) for k, v in np.load(golden / "clmae.npz").items()}


def part(arrays: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(name): v for k, v in arrays.items() if k.startswith(name)}


@pytest.fixture(scope="module")
def network(arrays: dict[str, Tensor]) -> MaskingNetwork:
    found, rename = MaskingNetwork(SPEC), {"mlp_head.0": "norm", "mlp_head.1": "head"}
    state = {}
    for name, tensor in part(arrays, "weight/masking_net.").items():
        for theirs, ours in rename.items():
            name = name.replace(theirs, ours)
        state[name] = tensor
    # a row of zeros for its own token
    assert not state.pop("pos_embed").any()
    found.load_state_dict(state)
    return found


@pytest.fixture(scope="module")
def student(arrays: dict[str, Tensor]) -> MaskedAutoencoder:
    found = MaskedAutoencoder(
        SPEC, DecoderConfig(width=32, depth=1, heads=4), outputs=None, predictor=False
    )
    state = {n: t for n, t in part(arrays, "weight/").items() if not n.startswith("masking_net")}
    found.load_state_dict(from_official(state))
    return found


def close(found: Tensor, wanted: Tensor, what: str = "") -> None:
    error = (found.detach().double() - wanted.double()).abs().max()
    assert error <= 2e-5 * wanted.double().abs().max().clamp(min=1e-6), (what, error)


def truth(prediction: Tensor, patches: Tensor) -> Tensor:
    return pixel_loss(prediction, normalise_patches(patches))


def test_terms_and_their_gradients(arrays: dict[str, Tensor]) -> None:
    values = arrays["mask_values"].clone().requires_grad_()
    losses = truth(arrays["prediction"], to_patches(arrays["images"], 8))
    strategy = Strategy(kl_images=4)
    assert (strategy.gauss, strategy.kl, strategy.diversity) == (
        arrays["lambda_gauss"],
        arrays["lambda_kl"],
        arrays["lambda_diversity"],
    )
    terms = {
        "reconstruction": reconstruction_term(losses, values),
        "gauss": strategy.gauss * gauss_term(values),
        "kl": strategy.kl * strategy.kl_images * kl_term(values, 0.25),
        "diversity": strategy.diversity * diversity_term(values),
    }
    for name, term in terms.items():
        close(term, arrays[f"loss/{name}"], name)
        (gradient,) = torch.autograd.grad(term, values)
        close(gradient, arrays[f"grad_mask_values/{name}"], name)


def test_the_network_and_its_mask(arrays: dict[str, Tensor], network: MaskingNetwork) -> None:
    keep = network(arrays["tokens"])
    close(keep, arrays["network_values"])
    mask = Strategy()(look(4, grid=(4, 4), keep=keep), rng())
    assert torch.equal(mask, arrays["network_mask"])


def test_the_autoencoders_step(
    arrays: dict[str, Tensor], network: MaskingNetwork, student: MaskedAutoencoder
) -> None:
    patches = to_patches(arrays["images"], 8)
    tokens = student.encoder.embed(patches)[:, 1:]
    close(tokens, arrays["tokens"])
    visible, hidden = split(Strategy()(look(4, grid=(4, 4), keep=network(tokens)), rng()), 12)
    prediction = student(patches, visible, hidden).prediction
    close(truth(prediction, take(patches, hidden)).mean(), arrays["mae_step/loss"])


def released(arrays: dict[str, Tensor], network: Any, student: Any) -> CurriculumPretraining:
    """Return a learner with the released code's networks."""
    config = tiny(
        "mask.name=curriculum",
        "mask.kl_images=4",
        "encoder.width=32",
        "encoder.heads=4",
        "decoder.width=32",
        "decoder.heads=4",
        "objective.predict_loss=none",
    )
    run = CurriculumPretraining(config, torch.device("cpu"), Path("unused"))
    run.masker.load_state_dict(network.state_dict())
    run.student.load_state_dict(student.state_dict())
    # given as the network sees them
    run.prepare = lambda images: (images, to_patches(images, 8))
    run.patch_losses = lambda prediction, patches, images, hidden, views: truth(
        prediction, take(patches, hidden)
    )
    return run


@pytest.mark.parametrize("factor", [1.0, -0.5])
@pytest.mark.parametrize("parts", [(4,), (1, 3)])
def test_the_masking_step(
    factor: float,
    parts: tuple[int, ...],
    arrays: dict[str, Tensor],
    network: MaskingNetwork,
    student: MaskedAutoencoder,
) -> None:
    """Its terms and all gradients; in one batch, and in two of different sizes."""
    run = released(arrays, network, student)
    before = {n: p.clone() for n, p in run.student.named_parameters()}
    chunks = arrays["images"].split(parts)
    terms = run.learn([Given(chunk, torch.arange(len(chunk))) for chunk in chunks], factor)
    for name, value in terms.items():
        assert value == pytest.approx(float(arrays[f"mask_step/{name}"]), rel=2e-5), name
    rename = {"norm": "mlp_head.0", "head": "mlp_head.1"}
    for name, parameter in run.masker.named_parameters():
        first, _, rest = name.partition(".")
        theirs = f"{rename[first]}.{rest}" if first in rename else name
        assert parameter.grad is not None
        wanted = arrays[f"mask_step_{factor}/grad/{theirs}"]
        # the keys' bias has no gradient but rounding
        scale = wanted.norm().clamp(min=1e-4)
        assert (parameter.grad - wanted).norm() / scale < 1e-3, name
    assert all(p.grad is None for p in run.student.parameters())
    assert all(torch.equal(p, before[n]) for n, p in run.student.named_parameters())
    assert all(p.requires_grad for p in run.student.parameters())


def test_the_factor_turns_from_partner_to_adversary(arrays: dict[str, Tensor]) -> None:
    found = [Strategy().factor(epoch, 10) for epoch in range(10)]
    np.testing.assert_allclose(found, arrays["curriculum_10_epochs"], atol=1e-12)
    assert 0 not in [Strategy().factor(epoch, 7) for epoch in range(7)]


def learner(*changes: str) -> CurriculumPretraining:
    torch.manual_seed(0)
    config = tiny("mask.name=curriculum", "objective.predict_loss=none", *changes)
    return CurriculumPretraining(config, torch.device("cpu"), Path("unused"))


def take_step(run: CurriculumPretraining, parts: list[Batch], first: int = 0) -> None:
    run.optimizer.zero_grad()
    for batch in parts:
        loss = run.loss(run.student, batch, step_info(first=first))["loss"]
        (loss * len(batch.indices) / 4).backward()
        first += len(batch.indices)
    run.optimizer.step()
    run.after_update(moved())


def moved() -> Any:
    info = step_info()
    return type(info)(step=info.step + 1, steps_per_epoch=10, epochs=200, batch=4)


def test_each_step_moves_its_own_network() -> None:
    run = learner()
    networks = {"student": run.student, "masker": run.masker}
    before = {k: [p.clone() for p in n.parameters()] for k, n in networks.items()}
    moves: dict[str, list[bool]] = {}
    after = run.learn

    def between(*arguments: Any) -> Any:
        moves["student"] = [
            not torch.equal(p, q)
            for p, q in zip(run.student.parameters(), before["student"], strict=True)
        ]
        assert all(map(torch.equal, run.masker.parameters(), before["masker"]))
        before["student"] = [p.clone() for p in run.student.parameters()]
        return after(*arguments)

    run.learn = between  # type: ignore[method-assign]
    take_step(run, [images()])
    assert sum(moves["student"]) > 20
    assert all(map(torch.equal, run.student.parameters(), before["student"]))
    assert not any(map(torch.equal, run.masker.parameters(), before["masker"]))
    assert not run.kept


def test_micro_batches_change_nothing() -> None:
    whole, parts = learner(), learner()
    batch = images()
    halves = [Batch(batch.indices[a : a + 2], batch.data[a : a + 2], ()) for a in (0, 2)]
    take_step(whole, [batch])
    take_step(parts, halves)
    for one, other in zip(whole.masker.parameters(), parts.masker.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-3)


def test_one_image_has_no_diversity() -> None:
    assert diversity_term(torch.rand(1, 16)) == 0
    found = learner().learn([Given(images(1).data, torch.arange(1))], 1.0)
    assert found["diversity"] == 0
    assert np.isfinite(list(found.values())).all()


def test_the_network_is_exported_and_read_back(tmp_path: Path) -> None:
    run = learner()
    run.out = tmp_path
    take_step(run, [images()])
    run.saved(tmp_path / "last.pt", moved())
    stored = read_model(tmp_path)
    model, _ = stored.build()
    assert torch.equal(model.encoder.cls_token, run.student.encoder.cls_token)
    assert torch.equal(stored.student["masker.head.weight"], run.masker.head.weight)
    again = learner()
    again.restore(run.state())
    assert torch.equal(again.masker.head.weight, run.masker.head.weight)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(UserError, match="bf16 or fp32"):
        learner("training.precision=fp16")
    with pytest.raises(UserError, match="learned masks go with"):
        learner("objective.share=0.5")


def test_losses_of_gated_patches_reach_the_gates(student: MaskedAutoencoder) -> None:
    patches = torch.randn(2, 16, 192, generator=rng())
    keep = torch.full((2, 16), 0.5, requires_grad=True)
    losses = gated_losses(student, patches, keep, lambda p, places: pixel_loss(p, patches))
    assert losses.shape == (2, 16)
    losses.sum().backward()
    assert keep.grad is not None
    assert (keep.grad != 0).all()
