"""CLIP's activation: read from what says it, asked for where nothing does, never guessed."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mimbench.__main__ import main
from mimbench.checkpoints.files import read_vit
from mimbench.system.errors import UserError
from mimbench.vit.backbone import build_backbone
from tests.support.checkpoint_layouts import LAYOUTS, TINY, canonical, openai_clip

SPEC = LAYOUTS["openai-clip"].spec(TINY)


def state() -> dict[str, Any]:
    """Return OpenAI's tensors as `clip.load(...)[0].state_dict()` has them: without the scalars."""
    scalars = ("input_resolution", "context_length", "vocab_size")
    return {n: t for n, t in openai_clip(canonical(SPEC)).items() if n not in scalars}


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_state_dict_that_does_not_say_its_activation_is_refused_with_a_way_that_works(
    activation: str, tmp_path: Path
) -> None:
    """It was read with GELU, in silence but for a note; OpenAI's weights have QuickGELU."""
    path, ours = tmp_path / "clip.pth", tmp_path / "OURS.safetensors"
    torch.save(state(), path)
    with pytest.raises(UserError, match=r"clip\.pth.*GELU or QuickGELU") as error:
        read_vit(path, num_heads=3)
    assert str(error.value).isprintable()
    ways = re.findall(r"--set activation=\w+", str(error.value))
    assert f"--set activation={activation}" in ways
    route = ["export", str(path), "--to", "native", "-o", str(ours), "--num-heads", "3"]
    assert main([*route, "--set", f"activation={activation}"]) == 0
    weights = read_vit(ours)
    assert weights.spec == replace(SPEC, activation=activation)


def test_the_two_activations_give_other_features(tmp_path: Path) -> None:
    weights = read_vit(LAYOUTS["openai-clip"].save(TINY, tmp_path), num_heads=3)
    assert weights.spec.activation == "quick_gelu"
    images = torch.rand(1, 3, 64, 64)
    mistaken = replace(weights, spec=replace(weights.spec, activation="gelu"))
    right, wrong = (build_backbone(w)(images).cls for w in (weights, mistaken))
    assert not torch.allclose(right, wrong, atol=1e-3)


@pytest.mark.parametrize(
    ("model", "activation"),
    [({"quick_gelu": True}, "quick_gelu"), ({"quick_gelu": False}, "gelu"), ({}, "gelu")],
)
def test_a_folder_of_openclip_says_it(
    model: dict[str, Any], activation: str, tmp_path: Path
) -> None:
    torch.save(state(), tmp_path / "open_clip_pytorch_model.bin")
    images = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    said = {"model_cfg": {"embed_dim": 4, **model}, "preprocess_cfg": images}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(said))
    spec = read_vit(tmp_path, num_heads=3).spec
    assert (spec.activation, spec.mean, spec.std) == (activation, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"model_cfg": {"quick_gelu": "yes"}}, "quick_gelu is neither true nor false"),
        ({"model_cfg": []}, "model_cfg or preprocess_cfg is not an object"),
        ({}, "GELU or QuickGELU"),
        (
            {"model_cfg": {}, "preprocess_cfg": {"mean": [0.5], "std": [0.5]}},
            "open_clip_config.json: image_mean is a list of 1",
        ),
    ],
)
def test_odd_values_in_openclips_configuration(
    said: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    torch.save(state(), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=reason):
        read_vit(tmp_path, num_heads=3)


def test_the_documented_conversion_of_openais_archive_is_read_as_it_was_trained(
    tmp_path: Path,
) -> None:
    """`torch.jit.load(...).state_dict()`, as the refusal and docs/checkpoints.md say."""

    class Archive(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, tensor in openai_clip(canonical(SPEC)).items():
                self._add(name.split("."), tensor)

        def _add(self, names: list[str], tensor: torch.Tensor) -> None:
            place: torch.nn.Module = self
            for name in names[:-1]:
                if name not in dict(place.named_children()):
                    place.add_module(name, torch.nn.Module())
                place = place.get_submodule(name)
            place.register_buffer(names[-1], tensor)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.save(torch.jit.trace(Archive(), torch.ones(1)), tmp_path / "ViT.pt")
    with pytest.raises(UserError, match="TorchScript archive") as error:
        read_vit(tmp_path / "ViT.pt", num_heads=3)
    [code] = re.findall(r'python -c "(.*?)"', str(error.value))
    converted = tmp_path / "weights.pth"
    exec(
        code.replace("FILE", str(tmp_path / "ViT.pt")).replace(
            "'weights.pth'", repr(str(converted))
        )
    )
    assert read_vit(converted, num_heads=3).spec == SPEC


def test_timms_names_for_clip_say_as_little(tmp_path: Path) -> None:
    """`vit_base_patch16_clip_224` and its quickgelu twin have the same tensors."""
    torch.save(canonical(SPEC), tmp_path / "timm.pth")
    with pytest.raises(UserError, match=r"timm\.pth.*GELU or QuickGELU.*its config\.json"):
        read_vit(tmp_path / "timm.pth", num_heads=3)
    folder = tmp_path / "hub"
    folder.mkdir()
    torch.save(canonical(SPEC), folder / "pytorch_model.bin")
    for middle, activation in (("", "gelu"), ("quickgelu_", "quick_gelu")):
        said = {"architecture": f"vit_base_patch16_clip_{middle}224"}
        (folder / "config.json").write_text(json.dumps(said))
        assert read_vit(folder, num_heads=3).spec.activation == activation
