"""Files of other people's code: read exactly where a rule says how, else told what they are."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import VisionTransformer as TorchvisionVit

from mimbench.checkpoints.export import export
from mimbench.checkpoints.files import read_vit, read_weights
from mimbench.networks.frozen import LevelNetwork
from mimbench.networks.levels import LevelWeights
from mimbench.system.errors import UserError
from mimbench.vit.backbone import build_backbone
from mimbench.vit.classifier import build_classifier
from mimbench.vit.weights import VitSpec
from tests.support.abroad_layouts import CLIP, READ, REFUSED, hf_clip, pe, pe_core, prefixed
from tests.support.checkpoint_layouts import TINY, canonical


def spec_of(name: str) -> VitSpec:
    return replace(TINY, **READ[name].changes)


def saved(name: str, folder: Path) -> Path:
    path = folder / "file.pth"
    torch.save(READ[name].write(canonical(spec_of(name))), path)
    return path


@pytest.mark.parametrize("name", READ)
def test_a_file_from_abroad_is_read_exactly(name: str, tmp_path: Path) -> None:
    abroad, path = READ[name], saved(name, tmp_path)
    which = abroad.which[0] if abroad.which else None
    weights = read_vit(path, num_heads=3, which=which)
    assert weights.format == abroad.format
    assert weights.spec == spec_of(name)
    wanted = canonical(spec_of(name))
    assert wanted.keys() == weights.tensors.keys()
    assert all(torch.equal(weights.tensors[n], t) for n, t in wanted.items())
    assert set(abroad.extras) <= weights.extras.keys()
    assert any(abroad.note in note for note in weights.notes) or not abroad.note
    patches = build_backbone(weights)(torch.rand(1, 3, 64, 96)).patches
    assert patches.shape == (1, 4, 6, 48)
    assert torch.isfinite(patches).all()


@pytest.mark.parametrize("name", [n for n, a in READ.items() if a.which])
def test_where_several_could_be_meant_the_user_says(name: str, tmp_path: Path) -> None:
    abroad, path = READ[name], saved(name, tmp_path)
    with pytest.raises(UserError, match=r"holds 2 networks .*say --which (student|teacher) or"):
        read_vit(path, num_heads=3)
    first, second = (read_vit(path, num_heads=3, which=w) for w in abroad.which)
    assert first.digest != second.digest
    assert (first.which, second.which) == abroad.which
    apart = second.tensors["norm.bias"] - first.tensors["norm.bias"]
    torch.testing.assert_close(apart, torch.full_like(apart, 0.01))


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_the_file_is(name: str, tmp_path: Path) -> None:
    write, said = REFUSED[name]
    torch.save(write(canonical(TINY)), tmp_path / "file.pth")
    with pytest.raises(UserError, match=said) as error:
        read_weights(tmp_path / "file.pth", num_heads=3)
    assert str(tmp_path / "file.pth") in str(error.value)
    assert str(error.value).isprintable()


def test_settings_of_omegaconf_are_no_obstacle(tmp_path: Path) -> None:
    """solo-learn and fairseq keep their configuration as its objects; nothing of them is made."""
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create(
        {"backbone": {"name": "vit", "sizes": [1, 2.5, None, True]}}
    )
    top = READ["lightly SimCLR"].write(canonical(TINY)) | {"hyper_parameters": config}
    torch.save(top, tmp_path / "solo.ckpt")
    assert read_vit(tmp_path / "solo.ckpt", num_heads=3).format == "mae"


def test_folders_of_sharded_states_are_told_their_command(tmp_path: Path) -> None:
    dcp = tmp_path / "step 5"
    dcp.mkdir()
    (dcp / ".metadata").write_bytes(b"x")
    (dcp / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(UserError, match=r"format_utils dcp_to_torch '.*step 5' 'step 5\.pth'"):
        read_weights(dcp)
    zero = tmp_path / "zero"
    (zero / "global_step5").mkdir(parents=True)
    whole = zero / "global_step5" / "mp_rank_00_model_states.pt"
    torch.save(READ["DeepSpeed"].write(canonical(TINY)), whole)
    with pytest.raises(UserError, match=r"its weights are whole in .*mp_rank_00_model_states\.pt"):
        read_weights(zero)
    assert read_vit(whole, num_heads=3).format == "mae"
    (zero / "global_step5" / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    with pytest.raises(UserError, match=r"ZeRO-3.*python zero_to_fp32\.py"):
        read_weights(zero)


def test_the_command_makes_a_file_of_a_sharded_state(tmp_path: Path) -> None:
    """The command that a refusal names works on what torch writes."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
    from torch.distributed.checkpoint.state_dict_saver import save

    save(
        {"model": canonical(TINY)}, storage_writer=FileSystemWriter(tmp_path / "dcp"), no_dist=True
    )
    with pytest.raises(UserError, match="a sharded checkpoint of torch"):
        read_weights(tmp_path / "dcp")
    dcp_to_torch_save(str(tmp_path / "dcp"), str(tmp_path / "whole.pth"))
    weights = read_vit(tmp_path / "whole.pth", num_heads=3)
    assert all(torch.equal(weights.tensors[n], t) for n, t in canonical(TINY).items())


def test_a_folder_of_hugging_faces_trainer_is_read(tmp_path: Path) -> None:
    import json

    from tests.support.checkpoint_layouts import LAYOUTS

    layout = LAYOUTS["hf-vit"]
    layout.save(TINY, tmp_path)
    config = {"hidden_size": 48, "num_attention_heads": 3, "image_size": 64, "patch_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "training_args.bin").write_bytes(b"PK")
    (tmp_path / "optimizer.pt").write_bytes(b"PK")
    (tmp_path / "trainer_state.json").write_text("{}")
    assert read_vit(tmp_path).format == "hf-vit"


def test_clip_of_hugging_face_says_its_activation_or_is_asked(tmp_path: Path) -> None:
    import json

    spec = replace(TINY, **CLIP)
    torch.save(hf_clip(canonical(spec)), tmp_path / "pytorch_model.bin")
    file = tmp_path / "pytorch_model.bin"
    with pytest.raises(UserError, match="does not say whether its activation is GELU or QuickGELU"):
        read_vit(file, num_heads=3)
    vision = {"hidden_size": 48, "num_attention_heads": 3, "image_size": 64, "patch_size": 16,
              "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": vision}))
    weights = read_vit(tmp_path)
    assert weights.format == "hf-clip"
    assert weights.spec == spec
    assert all(torch.equal(weights.tensors[n], t) for n, t in canonical(spec).items())
    assert weights.extras["text tower"] == 1


def randomised(model: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        p.data = 0.1 * torch.randn(p.shape, generator=draw) + float(name.endswith("norm.weight"))
    return model.eval()


def normalised(weights: Any, images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (weights.spec.mean, weights.spec.std))
    return (images - mean) / std


@torch.no_grad()
def test_torchvisions_vit_sees_what_torchvision_sees(tmp_path: Path) -> None:
    model: Any = randomised(TorchvisionVit(64, 16, 2, 3, 48, 96, num_classes=5))
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    weights = read_vit(tmp_path / "vit.pth", num_heads=3)
    assert weights.format == "torchvision"
    assert weights.extras == {"classifier head": 2}
    images = torch.rand(2, 3, 64, 64)
    x = model._process_input(normalised(weights, images))
    x = model.encoder(torch.cat([model.class_token.expand(2, -1, -1), x], dim=1))
    torch.testing.assert_close(build_backbone(weights)(images).cls, x[:, 0], atol=1e-5, rtol=0)


PE_ARGUMENTS: dict[str, Any] = {
    "img_size": 64,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
    "ref_feat_shape": (4, 4),
}


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["vit_pe_core_tiny_patch16_384", "vit_pe_spatial_small_patch16_512"]
)
def test_a_perception_encoder_sees_what_timms_sees(name: str, tmp_path: Path) -> None:
    """At the size of training, where timm's rotation and Meta's agree; rows and columns matter."""
    extra: dict[str, Any] = {"attn_pool_num_heads": 3} if "core" in name else {}
    model: Any = randomised(timm.create_model(name, num_classes=0, **PE_ARGUMENTS, **extra))
    state = {n: t for n, t in model.state_dict().items() if not n.startswith("attn_pool")}
    named = pe(state | {"cls_token": state["cls_token"]})
    top = prefixed(named, "visual.") | {"visual.attn_pool.probe": torch.ones(1, 1, 48)}
    torch.save(top if "core" in name else named, tmp_path / "pe.pt")
    weights = read_vit(tmp_path / "pe.pt", num_heads=3)
    assert (weights.format, weights.spec.final_norm) == ("pe", "norm" if "core" in name else "none")
    images = torch.rand(2, 3, 64, 64)
    wanted = model.forward_features(normalised(weights, images))
    found = build_backbone(weights)(images)
    torch.testing.assert_close(found.cls, wanted[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.patches.flatten(1, 2), wanted[:, 1:], atol=1e-5, rtol=0)
    # the step is 1 at any size: a wider picture turns its further columns further
    swapped = build_backbone(weights)(images.transpose(2, 3)).patches.transpose(1, 2)
    assert (swapped - found.patches).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("grid", [(6, 6), (3, 7), (7, 3)])
@pytest.mark.parametrize("token", [True, False])
def test_a_perception_encoder_at_other_sizes(
    grid: tuple[int, int], token: bool, tmp_path: Path
) -> None:
    """Meta's rule at any size: steps of 1 and a table resized bilinearly.

    The reference is timm's own network built for that size, its rotation told that nothing is stretched
    (`ref_feat_shape` is the grid itself); timm's default would stretch it to the grid of training.
    """
    name = "vit_pe_spatial_small_patch16_512"
    shape: dict[str, Any] = {
        "class_token": token,
        "no_embed_class": False,
        "rope_grid_offset": float(token),
    }
    model: Any = randomised(timm.create_model(name, num_classes=0, **PE_ARGUMENTS, **shape))
    # attention sharp enough for positions to matter
    state = {n: t * (6 if "attn.qkv" in n else 1) for n, t in model.state_dict().items()}
    torch.save(pe(state), tmp_path / "pe.pt")
    weights = read_vit(tmp_path / "pe.pt", num_heads=3)
    size = (16 * grid[0], 16 * grid[1])
    arguments: dict[str, Any] = PE_ARGUMENTS | {"img_size": size, "ref_feat_shape": grid} | shape
    there: Any = timm.create_model(name, num_classes=0, **arguments).eval()
    first = int(token)
    table = state["pos_embed"][:, first:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    table = nn.functional.interpolate(table, size=grid, mode="bilinear", align_corners=False)
    resized = torch.cat([state["pos_embed"][:, :first], table.flatten(2).transpose(1, 2)], dim=1)
    there.load_state_dict({**state, "pos_embed": resized})
    images = torch.rand(2, 3, *size)
    wanted = there.forward_features(normalised(weights, images))
    found = build_backbone(weights)(images)
    torch.testing.assert_close(found.patches.flatten(1, 2), wanted[:, first:], atol=1e-5, rtol=0)
    if token:
        torch.testing.assert_close(found.cls, wanted[:, 0], atol=1e-5, rtol=0)
    arguments["ref_feat_shape"] = (4, 4)
    stretched: Any = timm.create_model(name, num_classes=0, **arguments)
    stretched.eval().load_state_dict({**state, "pos_embed": resized})
    other = stretched.forward_features(normalised(weights, images))
    assert (other - wanted).abs().max() > 1e-3


def capi(golden: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    """The golden file with changed frequencies."""
    state = torch.load(golden / "backbone_capi.pth", weights_only=True)
    return {n: change(t) if n.endswith("freqs") else t for n, t in state.items()}


def test_capis_frequencies_are_its_own_or_the_file_is_refused(golden: Path, tmp_path: Path) -> None:
    path = tmp_path / "capi.pth"
    torch.save(capi(golden, lambda f: f.bfloat16().float()), path)
    weights = read_vit(path, num_heads=3)
    assert any("frequencies are stored rounded" in note for note in weights.notes)
    assert weights.extras["predictor"] == 9
    assert weights.extras["rotation (fixed)"] == 3
    torch.save(capi(golden, lambda f: f * 1.1), path)
    with pytest.raises(UserError, match="a rotation that was trained"):
        read_vit(path, num_heads=3)
    with pytest.raises(UserError, match="wrong number of heads"):
        read_vit(golden / "backbone_capi.pth", num_heads=6)
    with pytest.raises(UserError, match="registers are turned too: use --to native"):
        export(weights, "timm", tmp_path / "timm.pth")


def test_capi_is_fine_tuned(golden: Path) -> None:
    weights = read_vit(golden / "backbone_capi.pth", num_heads=3)
    build: dict[str, Any] = {"pool": "avg", "drop_path": 0.1, "init_head": lambda head: None}
    model, dropped = build_classifier(weights, 5, **build)
    model.train()(torch.randn(2, 3, 56, 84)).square().mean().backward()
    assert dropped == ["norm.weight", "norm.bias"]
    learns = {n for n, p in model.named_parameters() if p.grad is not None}
    assert learns == {n for n, _ in model.named_parameters()}
    with pytest.raises(UserError, match="no class token to pool"):
        build_classifier(weights, 5, **{**build, "pool": "cls"})


def test_a_clip_with_a_text_tower_is_no_perception_encoder(tmp_path: Path) -> None:
    from tests.support.checkpoint_layouts import LAYOUTS

    path = LAYOUTS["openclip"].save(TINY, tmp_path)
    assert read_weights(path, num_heads=3, activation="gelu").format == "clip"
    torch.save(pe_core(canonical(spec_of("PE core"))), tmp_path / "pe.pt")
    assert read_vit(tmp_path / "pe.pt", num_heads=3).format == "pe"


SAM: dict[str, Any] = {
    "img_size": 64,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
    "global_attn_indexes": (1,),
    "window_size": 2,
}


@torch.no_grad()
def test_sams_trunk_sees_what_timms_sees(tmp_path: Path) -> None:
    model: Any = randomised(timm.create_model("samvit_base_patch16", num_classes=0, **SAM))
    state = {n.replace("mlp.fc", "mlp.lin"): t for n, t in model.state_dict().items()}
    decoder = {
        "mask_decoder.iou_token.weight": torch.ones(1),
        "prompt_encoder.x.weight": torch.ones(1),
    }
    torch.save(prefixed(state, "image_encoder.") | decoder, tmp_path / "sam.pth")
    weights = read_weights(tmp_path / "sam.pth", num_heads=3)
    assert isinstance(weights, LevelWeights)
    assert weights.format == "sam"
    assert weights.spec.options["global_attn_indexes"] == [1]
    assert weights.extras == {"mask decoder": 1, "prompt encoder": 1}
    images = torch.rand(2, 3, 64, 64)
    network = LevelNetwork(weights)
    x = normalised(weights, images)
    wanted = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(network(images), wanted, atol=1e-5, rtol=0)
    [wanted] = model.forward_intermediates(x, indices=[1], intermediates_only=True, norm=False)
    [found] = network.maps(images)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


ZOO = {
    "hybrid ViT": ("vit_tiny_r_s16_p8_224", {"img_size": 64, "embed_dim": 48, "num_heads": 3}),
    "EfficientNet": ("efficientnet_b0", {}),
    "MViT": ("mvitv2_tiny", {"img_size": 64}),
    "XCiT": ("xcit_nano_12_p16_224", {"img_size": 64}),
    "GAP": ("vit_tiny_patch16_224", {"img_size": 64, "class_token": False, "global_pool": "avg"}),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["hybrid ViT", "EfficientNet"])
def test_whatever_timm_has_is_read_by_its_architecture(kind: str, tmp_path: Path) -> None:
    import json

    name, options = ZOO[kind]
    model: Any = timm.create_model(name, num_classes=7, **options).eval()
    save_file(
        {n: t.contiguous() for n, t in model.state_dict().items()}, tmp_path / "model.safetensors"
    )
    config = {
        "architecture": name, "num_classes": 7, "model_args": options,
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 64, 64]},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = read_weights(tmp_path)
    assert isinstance(weights, LevelWeights)
    assert weights.format == "timm-architecture"
    assert weights.spec.mean == (0.5, 0.5, 0.5)
    assert weights.extras["classifier head"] == 2
    images = torch.rand(2, 3, 64, 64)
    x = normalised(weights, images)
    wanted = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(LevelNetwork(weights)(images), wanted, atol=1e-5, rtol=0)
    # another network's tensors under this name are refused
    other = config | {"architecture": "resnet26d", "model_args": {}}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match="the tensors are not those of timm's resnet26d"):
        read_weights(tmp_path)


@torch.no_grad()
def test_timms_vits_without_a_class_token_see_what_timm_sees(tmp_path: Path) -> None:
    name, options = ZOO["GAP"]
    model: Any = randomised(timm.create_model(name, num_classes=3, **options))
    torch.save(model.state_dict(), tmp_path / "gap.pth")
    weights = read_vit(tmp_path / "gap.pth")
    assert (weights.spec.class_token, weights.spec.pool) == (False, "avg")
    images = torch.rand(2, 3, 64, 64)
    network = build_backbone(weights)
    wanted = model.forward_head(
        model.forward_features(normalised(weights, images)), pre_logits=True
    )
    torch.testing.assert_close(network.pooled(network(images)), wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_siglips_activation_is_approximate(tmp_path: Path) -> None:
    torch.save(READ["SigLIP"].write(canonical(spec_of("SigLIP"))), tmp_path / "siglip.pth")
    weights = read_vit(tmp_path / "siglip.pth", num_heads=3)
    images = torch.rand(1, 3, 64, 64)
    own = build_backbone(weights)(images).patches
    exact = build_backbone(weights.with_spec(activation="gelu"))(images).patches
    assert 1e-5 < (own - exact).abs().max() < 1e-1
