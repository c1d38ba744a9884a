"""From canonical tensors to the names of mmseg's MAE and BEiT backbones: a pure map, no mmseg."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mimbench.model import require_fit
from mimbench.system.errors import UserError
from mimbench.vit.positions import resize_table
from mimbench.vit.weights import VitSpec, VitWeights
from transfer.segmentation.bias import resize_bias

Kind = Literal["MAE", "BEiT", "TimmMAE", "TimmLevels", "UserLevels"]
"""mmseg's own backbones, and ours for what neither of them can hold."""

MMSEG_NAMES = (
    ("patch_embed.proj.", "patch_embed.projection."),
    ("blocks.", "layers."),
    (".norm1.", ".ln1."),
    (".norm2.", ".ln2."),
    (".mlp.fc1.", ".ffn.layers.0.0."),
    (".mlp.fc2.", ".ffn.layers.1."),
    (".ls1.gamma", ".gamma_1"),
    (".ls2.gamma", ".gamma_2"),
)
TIMM_NAMES = (("blocks.", "layers."),)


@dataclass(frozen=True, kw_only=True)
class BackboneTensors:
    """Tensors under a backbone's names, and why any of the checkpoint's are not among them."""

    tensors: Mapping[str, Tensor]
    total: int
    unused: Mapping[str, str] = field(default_factory=dict)
    """Canonical name -> reason."""

    @property
    def summary(self) -> str:
        """Say 'N of N': every tensor that the recipe has a place for, and what it has none for."""
        placed = self.total - len(self.unused)
        text = f"{placed} of {placed}"
        if self.unused:
            names, reasons = ", ".join(self.unused), "; ".join(dict.fromkeys(self.unused.values()))
            text += f", besides {names} ({reasons})"
        return text


def obstacles(spec: VitSpec, kind: Kind, crop: tuple[int, int]) -> list[str]:
    """Return why a backbone of this kind cannot compute what the specification describes."""
    own = kind == "TimmMAE"
    wanted = "relative" if kind == "BEiT" else "absolute"
    biased = spec.position == "relative"
    checks = [
        (own or spec.position == wanted, f"its positions are {spec.position}, not {wanted}"),
        (
            not biased or (spec.first_tokens == 1 and not spec.register_tokens),
            "its relative positions are defined for a class token and patches alone",
        ),
        (
            not biased or spec.grid[0] == spec.grid[1],
            f"its relative positions are of a {spec.grid[0]}x{spec.grid[1]} grid, not a square one",
        ),
        (
            not spec.is_rotary or spec.head_dim % 4 == 0,
            f"its heads of width {spec.head_dim} cannot be rotated by rows and columns in pairs",
        ),
        (own or spec.first_tokens <= 1, f"it has {spec.first_tokens} class tokens"),
        (own or spec.norm == "layer", f"its norms are {spec.norm}"),
        (own or not (spec.mlp_norm or spec.patch_norm), "it has a norm in the MLP or on patches"),
        (own or spec.class_token, "it has no class token"),
        (own or not spec.register_tokens, f"it has {spec.register_tokens} register tokens"),
        (own or spec.position_rows_for_prefix, "its position table has no row for the class token"),
        (own or not spec.pre_norm, "it has a norm before the first block"),
        (own or spec.activation == "gelu", f"its activation is {spec.activation}"),
        (own or spec.mlp == "mlp", f"its MLP is {spec.mlp}"),
        (own or spec.mlp_dim % spec.embed_dim == 0, "its MLP is no whole multiple of its width"),
        (own or (spec.qkv_bias and spec.patch_bias and spec.proj_bias), "it lacks biases"),
        (
            own or not any(side % spec.patch_size for side in crop),
            f"a crop of {crop[0]}x{crop[1]} does not divide into patches of {spec.patch_size}",
        ),
    ]
    return [reason for fine, reason in checks if not fine]


def choose(
    spec: VitSpec, crop: tuple[int, int], *, relative_bias: bool, tap_norm: bool
) -> tuple[Kind, list[str]]:
    """Return the backbone to use, and why it is not mmseg's own where it is not.

    Args:
        spec: The checkpoint's architecture.
        crop: Height and width of the training crop and test window.
        relative_bias: The recipe adds relative position bias, as mmseg's MAE does.
        tap_norm: The recipe passes every tap through the final norm, which mmseg's cannot.
    """
    kind: Kind = "BEiT" if spec.position == "relative" else "MAE"
    reasons = obstacles(spec, kind, crop)
    if kind == "MAE":
        reasons += [] if relative_bias else ["the recipe adds no relative position bias"]
        reasons += ["the recipe norms every tap"] if tap_norm else []
    if not reasons:
        return kind, []
    refusals = obstacles(spec, "TimmMAE", crop)
    if refusals:
        refusals = list(dict.fromkeys(reasons + refusals))
        raise UserError(f"no segmentation backbone holds this checkpoint: {'; '.join(refusals)}")
    return "TimmMAE", reasons


def token_grid(spec: VitSpec, crop: tuple[int, int]) -> tuple[int, int]:
    """Return the patches (rows, columns) of a crop; a side that does not divide is rounded up."""
    return -(-crop[0] // spec.patch_size), -(-crop[1] // spec.patch_size)


def convert(
    weights: VitWeights, kind: Kind, crop: tuple[int, int], *, tap_norm: bool
) -> BackboneTensors:
    """Return the checkpoint's tensors as the backbone of this kind names and shapes them.

    Args:
        weights: Canonical weights, checked here against their specification.
        kind: Which backbone.
        crop: Height and width that position tables are resized for, once.
        tap_norm: The backbone has the final norm.
    """
    require_fit(weights)
    table = TIMM_NAMES if kind == "TimmMAE" else MMSEG_NAMES
    tensors: dict[str, Tensor] = {}
    unused: dict[str, str] = {}
    for name, tensor in weights.tensors.items():
        if name.startswith(("norm.", "fc_norm.")):
            if tap_norm and name.startswith("norm."):
                tensors[name.replace("norm.", "ln1.") if kind == "BEiT" else name] = tensor
            else:
                unused[name] = _norm_reason(name, tap_norm=tap_norm)
        else:
            tensors[_renamed(name, table)] = tensor
    if "pos_embed" in tensors:
        spec = weights.spec
        tensors["pos_embed"] = resize_table(
            tensors["pos_embed"],
            grid=spec.grid,
            to=token_grid(spec, crop),
            prefix=spec.position_prefix,
            rule=spec.position_rule,
        )
    to = token_grid(weights.spec, crop)
    if kind == "BEiT":
        tensors = _as_beit(tensors, weights.spec.grid, to)
    elif weights.spec.position == "relative":
        tensors = {
            n: resize_bias(t, grid=weights.spec.grid, to=to) if n.endswith("bias_table") else t
            for n, t in tensors.items()
        }
    return BackboneTensors(tensors=tensors, total=len(weights.tensors), unused=unused)


def _norm_reason(name: str, *, tap_norm: bool) -> str:
    if name.startswith("fc_norm.") and tap_norm:
        return "acts on the pooled vector, never on patches"
    return "the recipe takes the blocks' outputs before the final norm"


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for old, new in table:
        if old.startswith("."):
            name = name.replace(old, new)
        elif name.startswith(old):
            name = new + name.removeprefix(old)
    return name


def _as_beit(
    tensors: Mapping[str, Tensor], grid: tuple[int, int], to: tuple[int, int]
) -> dict[str, Tensor]:
    """Return tensors with BEiT's q_bias and v_bias, and bias tables at the crop's size.

    A key bias shifts all logits of a query alike: BEiT has none, and none is missed.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("attn.qkv.bias"):
            q, _, v = torch.chunk(tensor, 3)
            stem = name.removesuffix("qkv.bias")
            out[f"{stem}q_bias"], out[f"{stem}v_bias"] = q.clone(), v.clone()
        elif name.endswith("relative_position_bias_table"):
            out[name] = resize_bias(tensor, grid=grid, to=to)
        else:
            out[name] = tensor
    return out
