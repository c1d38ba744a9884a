"""The published sizes, and every table that leans on them."""

from typing import Any, get_args, get_type_hints

import pytest
import timm
import torch

from mimbench.vit.sizes import SIZES, Size, model_name, size_of
from pretrain.sections import EncoderConfig, ImagesConfig
from transfer.classification.recipes import RECIPES, recipe_for


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_sizes_are_timms(size: Size) -> None:
    patch = 14 if size.name == "huge" else 16
    with torch.device("meta"):
        model: Any = timm.create_model(f"vit_{size.name}_patch{patch}_224", num_classes=0)
    assert (model.embed_dim, len(model.blocks)) == (size.embed_dim, size.depth)
    assert model.blocks[0].attn.num_heads == size.num_heads
    assert size_of(size.embed_dim, size.depth) is size
    assert model_name(size.embed_dim, size.depth, patch) == f"{size.letter}/{patch}"


def test_another_shape_has_no_name() -> None:
    assert size_of(768, 11) is None
    assert model_name(96, 4, 8) == "96x4/8"


def test_recipes_are_for_published_sizes() -> None:
    letters = {size.letter for size in SIZES.values()}
    assert all(recipes.keys() <= letters for recipes in RECIPES.values())
    assert recipe_for("mae", 1024) is RECIPES["mae"]["L"]
    assert "width 192 is none of S, B, L, H: the recipe of S" in recipe_for("mae", 192).note


def test_an_encoder_is_configured_by_the_same_names() -> None:
    assert set(get_args(get_type_hints(EncoderConfig)["size"])) == set(SIZES)
    spec = EncoderConfig(size="large").spec(ImagesConfig())
    assert (spec.embed_dim, spec.depth, spec.num_heads) == (1024, 24, 16)
