"""Attentive pooling equals the published modules: forward, attention, gradients, batch statistics."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.system.errors import UserError
from transfer.classification.heads import StepNorm
from transfer.classification.pooling import (
    CPU_IMAGES,
    AimPooling,
    AttentiveHead,
    EfficientPooling,
    VjepaPooling,
    build_head,
    capi_pooling,
)

Golden = dict[str, np.ndarray]


def close(found: Tensor | None, want: Any, *, atol: float = 1e-6) -> None:
    torch.testing.assert_close(found, torch.as_tensor(want), rtol=1e-5, atol=atol)


@pytest.fixture
def ep(golden: Path) -> Golden:
    return dict(np.load(golden / "ep.npz"))


@pytest.fixture
def others(golden: Path) -> Golden:
    return dict(np.load(golden / "attentive_others.npz"))


def fill(module: nn.Module, values: dict[str, np.ndarray]) -> None:
    module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in values.items()})


@pytest.mark.parametrize(
    ("case", "queries", "reduction", "bias"),
    [("q4", 4, 1, False), ("q8_half", 8, 2, False), ("q4_bias", 4, 1, True)],
)
def test_efficient_probing_equals_the_published_module(
    ep: Golden, case: str, queries: int, reduction: int, bias: bool
) -> None:
    pooling = EfficientPooling(48, queries=queries, reduction=reduction, bias=bias)
    names = {"queries": "cls_token", "value.weight": "v.weight", "value.bias": "v.bias"}
    names = {ours: theirs for ours, theirs in names.items() if bias or ours != "value.bias"}
    fill(pooling, {ours: ep[f"{case}/weight/{theirs}"] for ours, theirs in names.items()})
    tokens = torch.from_numpy(ep["tokens"]).requires_grad_()
    output = pooling(tokens)
    close(output, ep[f"{case}/output"])
    close(pooling.attention(tokens), ep[f"{case}/attention"])
    (output * torch.from_numpy(ep["output_weight"])[:, : output.shape[1]]).sum().backward()
    close(tokens.grad, ep[f"{case}/grad_tokens"], atol=2e-6)
    for ours, parameter in pooling.named_parameters():
        close(parameter.grad, ep[f"{case}/grad/{names[ours]}"], atol=1e-5)


def test_the_whole_head_equals_the_published_one(ep: Golden) -> None:
    head = AttentiveHead(EfficientPooling(48, queries=8), 48, 10, norm=True)
    names = {
        "pooling.queries": "0.cls_token",
        "pooling.value.weight": "0.v.weight",
        "linear.weight": "2.weight",
        "linear.bias": "2.bias",
    }
    for parameter, theirs in zip(
        dict(head.named_parameters()).values(), names.values(), strict=True
    ):
        value = torch.from_numpy(ep[f"head/state_after_one_forward/{theirs}"])
        parameter.data.copy_(value)
    tokens, labels = torch.from_numpy(ep["tokens"]), torch.from_numpy(ep["head/labels"])
    logits = head(tokens)
    close(logits, ep["head/logits_train"])
    loss = F.cross_entropy(logits, labels)
    assert loss.item() == pytest.approx(float(ep["head/loss"]), rel=1e-5)
    loss.backward()
    for name, parameter in head.named_parameters():
        close(parameter.grad, ep[f"head/grad/{names[name]}"])
    head.end_step()
    for ours, theirs in (("mean", "running_mean"), ("variance", "running_var")):
        close(getattr(head.norm, ours), ep[f"head/state_after_one_forward/1.{theirs}"])
    close(head.eval()(tokens), ep["head/logits_eval"], atol=1e-5)


def test_capi_equals_the_published_module(others: Golden) -> None:
    head = AttentiveHead(capi_pooling(128), 128, 10, norm=False)
    weight, bias = (others[f"capi/weight/kv.{kind}"] for kind in ("weight", "bias"))
    fill(
        head,
        {
            "pooling.query": others["capi/weight/query_token"],
            "pooling.key.weight": weight[:128],
            "pooling.value.weight": weight[128:],
            "pooling.key.bias": bias[:128],
            "pooling.value.bias": bias[128:],
            "linear.weight": others["capi/weight/linear.weight"],
            "linear.bias": others["capi/weight/linear.bias"],
        },
    )
    close(head(torch.from_numpy(others["tokens"])), others["capi/logits"])


def test_vjepa_equals_the_published_module_whose_projection_is_not_applied(others: Golden) -> None:
    head = AttentiveHead(VjepaPooling(48, heads=4), 48, 10, norm=False)
    block = "vjepa/weight/pooler.cross_attention_block"
    values = {
        "pooling.query": others["vjepa/weight/pooler.query_tokens"].reshape(48),
        "linear.weight": others["vjepa/weight/linear.weight"],
        "linear.bias": others["vjepa/weight/linear.bias"],
    }
    for kind in ("weight", "bias"):
        kv = others[f"{block}.xattn.kv.{kind}"]
        values |= {f"pooling.key.{kind}": kv[:48], f"pooling.value.{kind}": kv[48:]}
        values[f"pooling.q.{kind}"] = others[f"{block}.xattn.q.{kind}"]
        for ours, theirs in (
            ("norm1", "norm1"),
            ("norm2", "norm2"),
            ("up", "mlp.fc1"),
            ("down", "mlp.fc2"),
        ):
            values[f"pooling.{ours}.{kind}"] = others[f"{block}.{theirs}.{kind}"]
    fill(head, values)
    close(head(torch.from_numpy(others["vjepa/tokens"])), others["vjepa/logits"])


@pytest.mark.parametrize("training", [True, False])
def test_aim_equals_the_published_module(others: Golden, training: bool) -> None:
    pooling = AimPooling(128, heads=4)
    fill(
        pooling,
        {
            "split.query": others["aim/weight/cls_token"].reshape(128),
            "split.key.weight": others["aim/weight/k.weight"],
            "split.value.weight": others["aim/weight/v.weight"],
            "norm.mean": others["aim/weight/bn.running_mean"],
            "norm.variance": others["aim/weight/bn.running_var"],
        },
    )
    pooling.train(training)
    output = pooling(torch.from_numpy(others["tokens"]))
    close(output, others[f"aim/output_{'train' if training else 'eval'}"])


def trained(head: nn.Module) -> int:
    return sum(p.numel() for p in head.parameters())


@pytest.mark.parametrize(("width", "count"), [(384, 544_744), (768, 1_383_400), (1024, 2_106_344)])
def test_parameter_counts_are_the_published_ones(width: int, count: int) -> None:
    assert trained(build_head("ep", width=width, heads=12, classes=1000)) == count


def tokens_of(seed: int = 0) -> Tensor:
    return torch.randn(3, 9, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["ep", "capi", "vjepa", "aim"])
def test_the_order_of_the_tokens_does_not_matter(kind: str) -> None:
    head = build_head(kind, width=64, heads=4, classes=5, queries=8)  # pyright: ignore[reportArgumentType]
    # of the four only efficient probing normalises between pooling and classifier
    assert isinstance(head.norm, StepNorm) is (kind == "ep")
    tokens = tokens_of()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(head(tokens[:, order]), head(tokens))


@pytest.mark.parametrize("kind", ["ep", "capi", "vjepa", "aim"])
def test_stored_halves_are_widened_and_taken_a_few_at_a_time(kind: Any) -> None:
    """A batch that is no multiple of what goes through the cache, in the precision of the bank."""
    head = build_head(kind, width=64, heads=2, classes=5, queries=8).eval()
    stored = torch.randn(4 * CPU_IMAGES + 3, 9, 64).half()
    whole = head(stored)
    one_by_one = torch.cat([head(image[None].float()) for image in stored])
    torch.testing.assert_close(whole, one_by_one, rtol=1e-5, atol=1e-6)


def test_one_query_gives_the_softmax_weighted_mean_of_the_values() -> None:
    pooling = EfficientPooling(64, queries=1)
    tokens = tokens_of()
    weights = pooling.attention(tokens)
    torch.testing.assert_close(pooling(tokens), (weights @ pooling.value(tokens))[:, 0])


def test_a_query_reads_its_own_slice_of_the_channels_only() -> None:
    pooling = EfficientPooling(64, queries=4)
    tokens = tokens_of()
    before = pooling(tokens)
    with torch.no_grad():
        pooling.queries[0, 1] += 1
    changed = (pooling(tokens) != before).any(dim=0)
    assert changed[16:32].all()
    assert not changed[:16].any()
    assert not changed[32:].any()


def test_queries_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UserError, match="width 60 does not divide by 32 queries"):
        EfficientPooling(60)
    with pytest.raises(UserError, match="64 wide; width 96"):
        capi_pooling(96)
