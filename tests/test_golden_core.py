"""The shared rules against the reference implementations' tensors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mimbench.training.optim import Lars, Schedule, layer_decay_groups
from mimbench.vit.backbone import build_backbone
from mimbench.vit.network import build_vit, load_encoder
from mimbench.vit.positions import resize_table, sincos_table
from mimbench.vit.weights import VitSpec, VitWeights


def stored_vit(path: Path, spec: VitSpec) -> tuple[VitWeights, dict[str, Tensor]]:
    with np.load(path) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file}
    tensors = {k.removeprefix("weight/"): v for k, v in arrays.items() if k.startswith("weight/")}
    head = {k: tensors.pop(k) for k in ("head.weight", "head.bias")}
    weights = VitWeights(spec=spec, tensors=tensors, format="golden", digest="")
    return weights, {**arrays, **head}


def test_sincos_table_matches_the_reference(golden: Path) -> None:
    with np.load(golden / "pos_embed.npz") as file:
        small = sincos_table(48, (4, 4), class_row=True)[0]
        large = sincos_table(768, (14, 14), class_row=True)[0]
        np.testing.assert_allclose(small, file["sincos_48_4x4_cls"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(large[5], file["sincos_768_14x14_cls_row5"], rtol=0, atol=1e-6)


def test_resizing_a_table_matches_the_reference(golden: Path) -> None:
    with np.load(golden / "pos_embed.npz") as file:
        before = torch.from_numpy(file["before_4x4"])
        after = resize_table(before, grid=(4, 4), to=(7, 7), prefix=1, rule="bicubic")
        np.testing.assert_allclose(after, file["after_7x7"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "norm", "pool"), [("avg", "fc_norm", "avg"), ("cls", "norm", "cls")]
)
def test_features_and_logits_match_the_reference(
    golden: Path, tiny_spec: VitSpec, kind: str, norm: str, pool: str
) -> None:
    spec = VitSpec.from_json({**tiny_spec.to_json(), "final_norm": norm, "pool": pool})
    weights, stored = stored_vit(golden / f"vit_{kind}_pool.npz", spec)
    backbone = build_backbone(weights)
    normalised = stored["images"]
    features = backbone.pooled(backbone(backbone.normalise.inverse(normalised)))
    torch.testing.assert_close(features, stored["features"], rtol=1e-5, atol=1e-5)

    classifier = build_vit(spec, num_classes=7, pool="avg" if pool == "avg" else "token").eval()
    load_encoder(classifier, weights, fresh=frozenset({"head.weight", "head.bias"}))
    classifier.get_submodule("head").load_state_dict(
        {"weight": stored["head.weight"], "bias": stored["head.bias"]}
    )
    torch.testing.assert_close(classifier(normalised), stored["logits"], rtol=1e-5, atol=1e-5)


def test_schedule_matches_the_reference(golden: Path) -> None:
    stored = json.loads((golden / "schedules.json").read_text())["cosine"]
    schedule = Schedule(
        peak=stored["lr"],
        epochs=stored["epochs"],
        warmup=stored["warmup_epochs"],
        floor=stored["min_lr"],
    )
    rates = [schedule(epoch) for epoch in stored["at_epoch"]]
    np.testing.assert_allclose(rates, stored["lr_at"], rtol=1e-9, atol=1e-12)


def test_layer_decay_matches_the_reference(golden: Path) -> None:
    stored = json.loads((golden / "schedules.json").read_text())["layer_decay_vit_base"]
    spec = VitSpec(
        embed_dim=768,
        depth=12,
        num_heads=12,
        mlp_dim=3072,
        patch_size=16,
        grid=(14, 14),
        final_norm="fc_norm",
    )
    with torch.device("meta"):
        model = build_vit(spec, num_classes=10, pool="avg")
    groups = layer_decay_groups(
        model.named_parameters(),
        spec=spec,
        decay=stored["layer_decay"],
        weight_decay=stored["weight_decay"],
    )
    table = {n: [g["lr_scale"], g["weight_decay"]] for g in groups for n in g["names"]}  # pyright: ignore[reportGeneralTypeIssues]
    expected = stored["lr_scale_and_weight_decay_by_parameter"]
    assert table.keys() == expected.keys()
    for name, (scale, decay) in expected.items():
        assert table[name] == pytest.approx([scale, decay], rel=1e-9), name


def test_lars_follows_the_reference(golden: Path) -> None:
    with np.load(golden / "lars.npz") as file:
        stored = {name: torch.from_numpy(file[name]) for name in file}
    weight, bias = nn.Parameter(stored["w0"]), nn.Parameter(stored["b0"])
    optimizer = Lars(
        [weight, bias], float(stored["lr"]), weight_decay=float(stored["weight_decay"])
    )
    for grad_w, grad_b in zip(stored["grads_w"], stored["grads_b"], strict=True):
        weight.grad, bias.grad = grad_w, grad_b
        optimizer.step()
    torch.testing.assert_close(weight.data, stored["w10"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(bias.data, stored["b10"], rtol=1e-6, atol=1e-7)
