"""Build timm's VisionTransformer from a specification, and fill it strictly from weights."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from timm.layers.activations import GELUTanh, QuickGELU
from timm.layers.attention import Attention
from timm.layers.mlp import GluMlp
from timm.layers.norm import RmsNorm
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from mimbench.model import mismatches
from mimbench.system.errors import UserError
from mimbench.system.listing import first_few
from mimbench.vit.positions import resize_table
from mimbench.vit.relative import TOKEN_ROWS, attention_bias
from mimbench.vit.rotary import attend, rotation_angles
from mimbench.vit.weights import Activation, VitSpec, VitWeights


class Vit(VisionTransformer):
    """timm's ViT for images of any size: positions follow the family's own rule, whatever they are."""

    spec: VitSpec

    def _pos_embed(self, x: Tensor) -> Tensor:
        table = self.pos_embed
        if table is not None:
            table = resize_table(
                table,
                grid=self.spec.grid,
                to=(x.shape[1], x.shape[2]),
                prefix=self.spec.position_prefix,
                rule=self.spec.position_rule,
            )
        x = x.flatten(1, 2)
        prefix = [
            t.expand(len(x), -1, -1) for t in (self.cls_token, self.reg_token) if t is not None
        ]
        if table is None:
            x = torch.cat([*prefix, x], dim=1)
        elif self.no_embed_class:
            x = torch.cat([*prefix, x + table], dim=1)
        else:
            x = torch.cat([*prefix, x], dim=1) + table
        return self.pos_drop(x)

    def embed(self, images: Tensor) -> Tensor:
        """Return the tokens that enter the first block."""
        return self.norm_pre(self._pos_embed(self.patch_embed(images)))

    def run_block(self, index: int, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the tokens after one block; `grid` is for positions that act in attention."""
        return run_block(self.get_submodule(f"blocks.{index}"), x, self.spec, grid)

    def forward_features(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,  # noqa: FBT001, FBT002
    ) -> Tensor:
        """Return the tokens after the final norm."""
        if attn_mask is not None or is_causal:
            raise ValueError("this network's attention is not masked from outside")
        p = self.spec.patch_size
        grid = (x.shape[2] // p, x.shape[3] // p)
        x = self.embed(x)
        for i in range(self.spec.depth):
            x = self.run_block(i, x, grid)
        return self.get_submodule("norm")(x)


def run_block(block: nn.Module, x: Tensor, spec: VitSpec, grid: tuple[int, int]) -> Tensor:
    """Return the tokens (b, prefix + patches, d) after a block of timm's."""
    if spec.position == "absolute":
        return block(x)
    if spec.position == "relative":
        table = block.get_parameter("attn.relative_position_bias_table")
        bias = attention_bias(table, grid=spec.grid, to=grid)
        return block(x, attn_mask=bias.to(x.dtype))
    if not isinstance(block, Block) or not isinstance(block.attn, Attention):
        raise TypeError(f"the block is a {type(block).__name__}, expected timm's Block")
    angles = rotation_angles(
        grid, spec.head_dim, spec.rotation, spec.rotation_grid, registers=spec.register_tokens
    )
    x = x + block.drop_path1(block.ls1(attend(block.attn, block.norm1(x), angles, spec.rotation)))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


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
        spec: The architecture.
        drop_path: Largest stochastic depth rate (linear from 0 over the blocks).
        num_classes: Outputs of the classifier head; 0 for none.
        pool: timm's pooling before the head; '' returns tokens.
        fc_norm: Put the norm after pooling; by default where the specification has it.
    """
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
    """Return a ViT of the given class, as `build_vit` does."""
    model = kind(
        img_size=spec.image_size,
        patch_size=spec.patch_size,
        num_classes=num_classes,
        global_pool=pool,
        embed_dim=spec.embed_dim,
        depth=spec.depth,
        num_heads=spec.num_heads,
        qkv_bias=spec.qkv_bias,
        proj_bias=spec.proj_bias,
        init_values=1.0 if spec.layer_scale else None,
        pos_embed="learn" if spec.has_table else "none",
        class_token=spec.class_token,
        no_embed_class=not spec.position_rows_for_prefix,
        reg_tokens=spec.register_tokens,
        pre_norm=spec.pre_norm,
        final_norm=spec.final_norm != "none",
        fc_norm=spec.final_norm == "fc_norm" if fc_norm is None else fc_norm,
        dynamic_img_size=True,
        drop_path_rate=drop_path,
        scale_mlp_norm=spec.mlp_norm,
        **layer_options(spec),
    )
    model.spec = spec
    if spec.first_tokens > 1:
        _add_class_tokens(model, spec)
    if spec.position == "relative":
        _add_tables(model, spec)
    return model


def norm_layer(spec: VitSpec) -> Callable[..., nn.Module]:
    """Return what makes a norm of a given width."""
    return partial(nn.LayerNorm if spec.norm == "layer" else RmsNorm, eps=spec.norm_eps)


def layer_options(spec: VitSpec) -> dict[str, Any]:
    """Return timm's arguments for the norms and the MLP."""
    options: dict[str, Any] = {"norm_layer": norm_layer(spec)}
    if spec.patch_norm:
        options["embed_norm_layer"] = norm_layer(spec)
    if spec.mlp == "swiglu":
        ratio = 2 * spec.mlp_dim / spec.embed_dim
        gated = {"act_layer": nn.SiLU, "mlp_layer": partial(GluMlp, gate_last=False)}
        return {**options, **gated, "mlp_ratio": ratio}
    ratio = spec.mlp_dim / spec.embed_dim
    return {**options, "act_layer": ACTIVATIONS[spec.activation], "mlp_ratio": ratio}


ACTIVATIONS: Mapping[Activation, type[nn.Module]] = {
    "gelu": nn.GELU,
    "quick_gelu": QuickGELU,
    "gelu_tanh": GELUTanh,
}


def _add_class_tokens(model: Vit, spec: VitSpec) -> None:
    """Give timm's model as many class tokens as the specification has; timm knows one."""
    rows = spec.grid[0] * spec.grid[1] + spec.position_prefix
    model.num_prefix_tokens = spec.prefix_tokens
    model.cls_token = nn.Parameter(torch.zeros(1, spec.class_tokens, spec.embed_dim))
    if spec.has_table:
        model.pos_embed = nn.Parameter(torch.randn(1, rows, spec.embed_dim) * 0.02)


def _add_tables(model: Vit, spec: VitSpec) -> None:
    """Put a relative position table into every block."""
    if spec.first_tokens != 1 or spec.register_tokens:
        raise UserError("relative positions need a class token and no registers, as BEiT has them")
    rows = (2 * spec.grid[0] - 1) * (2 * spec.grid[1] - 1) + TOKEN_ROWS
    for i in range(spec.depth):
        table = nn.Parameter(torch.zeros(rows, spec.num_heads))
        model.get_submodule(f"blocks.{i}.attn").register_parameter(
            "relative_position_bias_table", table
        )


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
