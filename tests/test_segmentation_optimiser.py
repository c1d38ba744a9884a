"""The optimiser: who gets which learning rate and weight decay, the schedule, batch norm, precision."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import amp
from mmseg.registry import MODELS
from torch import nn

from mimbench.sample import generate
from mimbench.training.optim import plan_batch
from mimbench.vit.weights import VitSpec
from transfer.segmentation import upernet
from transfer.segmentation.data import DataSource, open_source
from transfer.segmentation.loop import settle_batch_norm, synchronises
from transfer.segmentation.recipe import full_config

TINY = VitSpec(embed_dim=24, depth=4, num_heads=3, mlp_dim=96, patch_size=16, grid=(4, 4))
SMALL = {"crop": (64, 64), "precision": "fp32", "channels": 16}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    root = tmp_path_factory.mktemp("sample")
    generate(root, train_per_class=1, val_per_class=1, train_scenes=4, val_scenes=2)
    return open_source(upernet.Config(data=root / "ade"))


def whole(spec: VitSpec, source: DataSource, **fields: object) -> Config:
    config = upernet.Config(data=source.root, **(SMALL | fields))  # pyright: ignore[reportArgumentType]
    plan = plan_batch(config.batch, world=8, at_most=64)
    return full_config(spec, config, upernet.model_recipe(spec, config), source, plan)


def tiny_groups(source: DataSource, **fields: object) -> tuple[dict[str, tuple[float, float]], int]:
    """Return name -> (learning-rate factor, weight decay), and how many parameters there are."""
    spec = fields.pop("spec", TINY)
    cfg = whole(spec, source, **fields)  # pyright: ignore[reportArgumentType]
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in wrapper.optimizer.param_groups
        for parameter in group["params"]
    }
    return found, len(names)


def test_published_decay_reaches_tables_and_tokens(
    source: DataSource, capfd: pytest.CaptureFixture[str]
) -> None:
    groups, count = tiny_groups(source)
    assert len(groups) == count
    decay = 0.65
    assert groups["backbone.pos_embed"] == (pytest.approx(decay**5), 0.05)
    assert groups["backbone.cls_token"] == (pytest.approx(decay**5), 0.05)
    bias = "attn.relative_position_bias_table"
    assert groups[f"backbone.layers.0.{bias}"] == (pytest.approx(decay**4), 0.05)
    assert groups[f"backbone.layers.3.{bias}"] == (pytest.approx(decay), 0.05)
    assert groups["backbone.layers.3.attn.qkv.weight"] == (pytest.approx(decay), 0.05)
    assert groups["backbone.layers.3.attn.qkv.bias"] == (pytest.approx(decay), 0.0)
    assert groups["backbone.layers.2.gamma_1"] == (pytest.approx(decay**2), 0.0)
    assert groups["backbone.patch_embed.projection.weight"] == (pytest.approx(decay**5), 0.05)
    assert groups["decode_head.conv_seg.weight"] == (1.0, 0.05)
    assert groups["neck.upsample_4x.0.weight"] == (1.0, 0.05)


def test_spared_variant_moves_only_tables_and_tokens(
    source: DataSource, capfd: pytest.CaptureFixture[str]
) -> None:
    published, _ = tiny_groups(source)
    spared, _ = tiny_groups(source, published_decay=False)
    changed = {name for name in published if published[name] != pytest.approx(spared[name])}
    tables = {f"backbone.layers.{i}.attn.relative_position_bias_table" for i in range(4)}
    assert changed == {"backbone.pos_embed", "backbone.cls_token", *tables}
    assert all(spared[name][1] == 0 for name in changed)
    assert all(spared[name][0] == pytest.approx(published[name][0]) for name in changed)


def test_registers_learn_as_slowly_as_the_class_token(
    source: DataSource, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = replace(TINY, register_tokens=2)
    for published in (True, False):
        groups, _ = tiny_groups(source, spec=spec, published_decay=published)
        assert groups["backbone.reg_token"][0] == pytest.approx(0.65**5)
        assert groups["backbone.layers.1.norm1.weight"] == (pytest.approx(0.65**3), 0.0)


def test_schedule_warms_up_then_falls_to_zero(
    source: DataSource, capfd: pytest.CaptureFixture[str]
) -> None:
    cfg = whole(TINY, source, iterations=40, warmup=10)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-4)
    schedules = [PARAM_SCHEDULERS.build({**s, "optimizer": optimizer}) for s in cfg.param_scheduler]
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for schedule in schedules:
            schedule.step()
    assert rates[0] == pytest.approx(1e-10)
    assert max(rates) == rates[9] == pytest.approx(1e-4)
    assert rates[39] == pytest.approx(0, abs=1e-12)
    assert rates[25] == pytest.approx(1e-4 * (1 - 15 / 29))


def test_batch_norm_is_synchronised_where_there_are_peers_on_gpus(source: DataSource) -> None:
    """No GPU is used: what is shown is which layers such a run keeps, not what they compute."""
    assert synchronises(torch.device("cuda"), 2)
    assert not synchronises(torch.device("cuda"), 1)
    assert not synchronises(torch.device("cpu"), 2)
    model = MODELS.build(whole(TINY, source).model)
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def kinds(model: nn.Module) -> set[str]:
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert len(norms) == 14
        return {type(norm).__name__ for norm in norms}

    assert kinds(settle_batch_norm(model, synchronised=True)) == {"SyncBatchNorm"}
    plain = settle_batch_norm(model, synchronised=False)
    assert "SyncBatchNorm" not in kinds(plain)
    assert plain.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())


def test_float16_goes_through_mmengines_wrapper(
    source: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mmengine is made to believe in a GPU: shown is what it asks torch for, nothing is computed."""
    asked: list[dict[str, Any]] = []

    @contextmanager
    def note(**options: Any) -> Iterator[None]:
        asked.append(options)
        yield

    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    model = MODELS.build(whole(TINY, source).model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that its scaler is off without a GPU
        wrapper = build_optim_wrapper(model, whole(TINY, source, precision="fp16").optim_wrapper)
    monkeypatch.setattr(amp, "get_device", lambda: "cuda")
    monkeypatch.setattr(torch, "autocast", note)
    with wrapper.optim_context(model):
        pass
    assert type(wrapper) is AmpOptimWrapper
    assert (asked[0]["device_type"], asked[0]["dtype"]) == ("cuda", torch.float16)
    assert asked[0]["enabled"]
