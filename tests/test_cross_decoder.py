"""CrossMAE's decoder: equal to the released code's, forward and backward, and true to what it promises."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mimbench.vit.weights import VitSpec
from pretrain.models.autoencoder import to_patches
from pretrain.models.cross import CrossDecoder, Queries
from pretrain.models.decoders import DecoderConfig
from pretrain.models.reconstruction import normalise_patches, pixel_loss

SPEC = VitSpec(embed_dim=48, depth=3, num_heads=3, mlp_dim=192, patch_size=8, grid=(4, 4))
CASES = ("mixed_full", "mixed_part", "chosen_self")


@pytest.fixture(scope="module")
def stored(golden: Path) -> dict[str, Tensor]:
    with np.load(golden / "crossmae.npz") as file:
        return {key: torch.from_numpy(np.array(file[key])) for key in file.files}


def renamed(name: str) -> str | None:
    """Return the name here of a released tensor; None for those of the queries."""
    if name in {"mask_token", "decoder_pos_embed"}:
        return None
    if name == "wfm.linear.weight":
        return "mix"
    for theirs, ours in (("dec_norms", "norms"), ("decoder_", "")):
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    raise AssertionError(name)


def part(stored: Mapping[str, Tensor], case: str, kind: str) -> dict[str, Tensor]:
    prefix = f"{case}/{kind}/"
    return {n[len(prefix) :]: t for n, t in stored.items() if n.startswith(prefix)}


def build(stored: Mapping[str, Tensor], case: str) -> tuple[CrossDecoder, Queries, list[Tensor]]:
    found = part(stored, case, "feature")
    features = [found[str(i)].clone().requires_grad_() for i in sorted(map(int, found))]
    config = DecoderConfig(
        width=32, depth=2, heads=4, kind="cross", self_attention=case == "chosen_self"
    )
    decoder = CrossDecoder(config, 48, len(features), 192, 1e-6)
    weights = part(stored, case, "weight")
    own = {ours: t for n, t in weights.items() if (ours := renamed(n)) is not None}
    decoder.load_state_dict(own)
    queries = Queries(SPEC, 32)
    queries.load_state_dict(
        {"mask_token": weights["mask_token"], "pos_embed": weights["decoder_pos_embed"]}
    )
    return decoder, queries, features


def places(stored: Mapping[str, Tensor], case: str) -> Tensor:
    predicted = stored[f"{case}/predicted"]
    return predicted.nonzero()[:, 1].view(len(predicted), -1)


@pytest.mark.parametrize("case", CASES)
def test_predictions_loss_and_gradients(stored: dict[str, Tensor], case: str) -> None:
    decoder, queries, features = build(stored, case)
    asked = queries(places(stored, case))
    torch.testing.assert_close(asked, stored[f"{case}/queries"])
    prediction = decoder(asked, torch.stack(features))
    torch.testing.assert_close(prediction, stored[f"{case}/prediction"], atol=1e-5, rtol=1e-4)
    loss = pixel_loss(prediction, stored[f"{case}/target"]).mean()
    torch.testing.assert_close(loss, stored[f"{case}/loss"], atol=1e-5, rtol=1e-5)
    loss.backward()
    gradients = {n: p.grad for n, p in decoder.named_parameters()}
    checked = 0
    for name, expected in part(stored, case, "grad").items():
        ours = renamed(name)
        found = queries.mask_token.grad if ours is None else gradients[ours]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-3)
        checked += 1
    assert checked > 15
    for index, expected in part(stored, case, "grad_feature").items():
        torch.testing.assert_close(features[int(index)].grad, expected, atol=1e-6, rtol=1e-3)


def test_targets_are_normalised_pixels_in_raster_order(stored: dict[str, Tensor]) -> None:
    patches = to_patches(stored["images"], 8)
    wanted = patches.gather(1, places(stored, "mixed_part").unsqueeze(2).expand(-1, -1, 192))
    torch.testing.assert_close(
        normalise_patches(wanted), stored["mixed_part/target"], atol=1e-4, rtol=1e-4
    )


def test_queries_do_not_see_each_other_unless_they_may(stored: dict[str, Tensor]) -> None:
    for case, apart in (("mixed_full", True), ("chosen_self", False)):
        decoder, queries, features = build(stored, case)
        whole = places(stored, case)
        some = whole[:, 1:4]
        alone, together = (decoder(queries(p), torch.stack(features)) for p in (some, whole))
        assert torch.allclose(alone, together[:, 1:4], atol=1e-5) == apart


def test_an_exit_reads_the_queries_after_its_block(stored: dict[str, Tensor]) -> None:
    decoder, queries, features = build(stored, "mixed_full")
    asked = queries(places(stored, "mixed_full"))
    prediction, early = decoder.with_exit(asked, torch.stack(features), torch.nn.Identity(), 1)
    torch.testing.assert_close(prediction, decoder(asked, torch.stack(features)))
    torch.testing.assert_close(early, decoder.run(asked, torch.stack(features), 0, 1))
    assert not torch.allclose(early, asked)
