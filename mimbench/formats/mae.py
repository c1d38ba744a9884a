"""MAE files: encoder only, encoder with decoder, and training checkpoints."""

import torch
from torch import Tensor

from mimbench.architecture import Family, infer_spec
from mimbench.layout import Converted, Options, Raw, choose, container_extras, rename
from mimbench.positions import sincos_table

NAME = "mae"

CONTAINERS = ["model", "state_dict", ""]
EXTRAS = [(r"decoder_.*", "decoder"), (r"mask_token", "mask token")]


def claims(raw: Raw) -> bool:
    """Return whether MAE's decoder is there, or a plain encoder on MAE's fixed table."""
    if raw.has(r"decoder_pred\.weight"):
        return not raw.has(r"decoder_pred_losspred\.weight|scorer_pred\..*|base_encoder\..*")
    state = next((raw.networks[c] for c in CONTAINERS if c in raw.networks), {})
    plain = {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"}
    others = ("head.", "head_dist.", "fc_norm.", "reg_token", "register_tokens", "dist_token")
    return (
        plain <= state.keys()
        and not any(name.startswith(others) for name in state)
        and "blocks.0.ls1.gamma" not in state
        and "blocks.0.gamma_1" not in state
        and is_fixed_table(state["pos_embed"])
    )


def is_fixed_table(table: object) -> bool:
    """Return whether a table with a class row is the fixed sine-cosine one."""
    if not isinstance(table, Tensor) or table.dim() != 3 or table.is_meta:
        return False
    side = round((table.shape[1] - 1) ** 0.5)
    if side < 1 or side * side + 1 != table.shape[1] or table.shape[2] % 4:
        return False
    fixed = sincos_table(table.shape[2], (side, side), class_row=True)
    return bool(torch.allclose(table.float(), fixed, atol=2e-3))


def convert(raw: Raw, options: Options) -> Converted:
    """Return the encoder."""
    which, state, networks = choose(raw, {"student": CONTAINERS}, options.which)
    tensors, extras = rename(state, [], EXTRAS)
    spec, asked = infer_spec(tensors, Family(), options.num_heads)
    return Converted(
        spec=spec,
        tensors=tensors,
        extras=extras | container_extras(raw, CONTAINERS),
        which=which,
        networks=networks,
        heads_asked=asked,
    )
