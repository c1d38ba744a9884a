"""Build timm's VisionTransformer from a specification, and fill it strictly from weights."""

from functools import partial
from typing import Any, Literal, TypeVar

import torch
from timm.layers.mlp import GluMlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mimbench.system.errors import UserError
from mimbench.system.listing import first_few
from mimbench.vit.positions import resize_table
from mimbench.vit.weights import VitSpec, VitWeights, mismatches


class Vit(VisionTransformer):
    """timm's ViT for images of any size: the position table follows the family's own rule."""

    spec: VitSpec

    def _pos_embed(self, x: Tensor) -> Tensor:
        table = self.pos_embed
        if table is None:
            raise RuntimeError("this model has no absolute position table")
        grid = (x.shape[1], x.shape[2])
        table = resize_table(
            table,
            grid=self.spec.grid,
            to=grid,
            prefix=self.spec.position_prefix,
            rule=self.spec.position_rule,
        )
        x = x.flatten(1, 2)
        prefix = [
            t.expand(len(x), -1, -1) for t in (self.cls_token, self.reg_token) if t is not None
        ]
        if self.no_embed_class:
            x = torch.cat([*prefix, x + table], dim=1)
        else:
            x = torch.cat([*prefix, x], dim=1) + table
        return self.pos_drop(x)

    def embed(self, images: Tensor) -> Tensor:
        """Return the tokens that enter the first block."""
        return self.norm_pre(self._pos_embed(self.patch_embed(images)))

    def run_block(self, index: int, x: Tensor, grid: tuple[int, int]) -> Tensor:  # noqa: ARG002
        """Return the tokens after one block; `grid` is for positions that act in attention."""
        return self.get_submodule(f"blocks.{index}")(x)


def build_vit(
    spec: VitSpec,
    *,
    drop_path: float = 0.0,
    num_classes: int = 0,
    pool: Literal["", "token", "avg"] = "",
    fc_norm: bool | None = None,
) -> Vit:
    """Return a freshly initialised timm ViT for the specification.

    Args:
        spec: The architecture; only absolute positions are a plain ViT.
        drop_path: Largest stochastic depth rate (linear from 0 over the blocks).
        num_classes: Outputs of the classifier head; 0 for none.
        pool: timm's pooling before the head; '' returns tokens.
        fc_norm: Put the norm after pooling; by default where the specification has it.
    """
    if spec.position != "absolute":
        raise UserError(
            f"a {spec.position} position encoding is not a plain ViT; "
            "this consumer supports absolute position tables only"
        )
    return assemble(
        Vit, spec, drop_path=drop_path, num_classes=num_classes, pool=pool, fc_norm=fc_norm
    )


VitKind = TypeVar("VitKind", bound=Vit)


def assemble(
    kind: type[VitKind],
    spec: VitSpec,
    *,
    drop_path: float = 0.0,
    num_classes: int = 0,
    pool: Literal["", "token", "avg"] = "",
    fc_norm: bool | None = None,
) -> VitKind:
    """Return a ViT of the given class; only the class knows how positions that are no table act."""
    options: dict[str, Any] = {
        "act_layer": "quick_gelu" if spec.activation == "quick_gelu" else nn.GELU
    }
    if spec.mlp == "swiglu":
        options = {"act_layer": nn.SiLU, "mlp_layer": partial(GluMlp, gate_last=False)}
    packed = 2 * spec.mlp_dim if spec.mlp == "swiglu" else spec.mlp_dim
    model = kind(
        img_size=spec.image_size,
        patch_size=spec.patch_size,
        num_classes=num_classes,
        global_pool=pool,
        embed_dim=spec.embed_dim,
        depth=spec.depth,
        num_heads=spec.num_heads,
        mlp_ratio=packed / spec.embed_dim,
        qkv_bias=spec.qkv_bias,
        init_values=1.0 if spec.layer_scale else None,
        pos_embed="learn" if spec.position == "absolute" else "none",
        class_token=spec.class_token,
        no_embed_class=not spec.position_rows_for_prefix,
        reg_tokens=spec.register_tokens,
        pre_norm=spec.pre_norm,
        final_norm=spec.final_norm != "none",
        fc_norm=spec.final_norm == "fc_norm" if fc_norm is None else fc_norm,
        dynamic_img_size=True,
        drop_path_rate=drop_path,
        norm_layer=partial(nn.LayerNorm, eps=spec.norm_eps),
        **options,
    )
    model.spec = spec
    return model


def load_encoder(
    model: nn.Module, weights: VitWeights, *, fresh: frozenset[str] = frozenset()
) -> None:
    """Copy the weights into the model; every tensor must fit and nothing but `fresh` stay unset.

    Args:
        model: A module whose parameters carry canonical names.
        weights: The weights; all of them must find their place.
        fresh: Names that may keep their initial value (a new head, a new fc_norm).
    """
    faults = mismatches(weights.spec, weights.tensors)
    own = model.state_dict()
    faults += [f"model has no {name}" for name in weights.tensors if name not in own]
    faults += [
        f"nothing fills {name}" for name in own if name not in weights.tensors and name not in fresh
    ]
    if faults:
        shown = first_few(faults, separator="; ")
        raise UserError(f"{weights.name or 'weights'}: the tensors do not fit the model: {shown}")
    model.load_state_dict({**own, **weights.tensors})
