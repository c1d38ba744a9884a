"""What a checkpoint *means*: a specification and canonical tensors, the meeting point of all tasks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mimbench.model import Level
from mimbench.system.config import from_mapping, later, to_mapping
from mimbench.system.errors import UserError
from mimbench.system.files import value_digest
from mimbench.vit.positions import PositionRule, Rotation, sincos_table
from mimbench.vit.sizes import model_name

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Triple = tuple[float, float, float]
Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]
"""Exact; CLIP's; approximated by tanh (SigLIP)."""


@dataclass(frozen=True, kw_only=True)
class VitSpec:
    """Everything that a ViT's tensors mean beyond their values; together they fix the function."""

    embed_dim: int
    depth: int
    num_heads: int
    """From the format or the user: shapes cannot tell."""
    mlp_dim: int
    """Hidden width; for `swiglu` the width of one of the two gates."""
    patch_size: int
    grid: tuple[int, int]
    """Patches (rows, columns) at which the position table was made."""
    class_token: bool = True
    register_tokens: int = 0
    position: Literal["absolute", "relative", "rotary", "absolute+rotary"] = "absolute"
    position_rows_for_prefix: bool = True
    """The absolute table has a row for the class token (timm's register models have none)."""
    position_rule: PositionRule = "bicubic"
    layer_scale: bool = False
    qkv_bias: bool = True
    patch_bias: bool = True
    pre_norm: bool = False
    """A norm between the embeddings and the first block (CLIP)."""
    final_norm: Literal["norm", "fc_norm", "none"] = "norm"
    """`norm` acts on tokens, `fc_norm` on the pooled vector (fine-tuned MAE)."""
    norm_eps: float = 1e-6
    activation: Activation = "gelu"
    mlp: Literal["mlp", "swiglu"] = "mlp"
    pool: Literal["cls", "avg"] = "cls"
    """What the family calls the image's representation."""
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    class_tokens: int = later(1)
    """Class tokens where there are any (Pixio has eight); their mean is the image vector."""
    rotation: Rotation = later("centred")
    """How rotary positions turn: as in DINOv3, EVA-02, PE or CAPI."""
    rotation_grid: int = later(0)
    """Side of the grid that `stretched` rotation was trained at."""
    norm: Literal["layer", "rms"] = later("layer")
    mlp_norm: bool = later(False)
    """A norm inside the MLP, before its last layer (EVA-02)."""
    patch_norm: bool = later(False)
    """A norm on the patches, before positions (AIMv2)."""
    proj_bias: bool = later(True)
    """Biases after attention and in the MLP."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the position table was made for."""
        return self.grid[0] * self.patch_size, self.grid[1] * self.patch_size

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: class token and registers."""
        return self.first_tokens + self.register_tokens

    @property
    def first_tokens(self) -> int:
        """Class tokens, which stand before everything else."""
        return self.class_tokens if self.class_token else 0

    @property
    def has_table(self) -> bool:
        """There is an absolute position table."""
        return self.position in ("absolute", "absolute+rotary")

    @property
    def is_rotary(self) -> bool:
        """Queries and keys are rotated by their place."""
        return self.position in ("rotary", "absolute+rotary")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.num_heads

    @property
    def position_prefix(self) -> int:
        """Rows of the position table before the patches' rows."""
        return self.prefix_tokens if self.position_rows_for_prefix else 0

    @property
    def levels(self) -> tuple[Level, ...]:
        """The one map of a flat trunk."""
        return (Level(stride=self.patch_size, channels=self.embed_dim),)

    @property
    def layers(self) -> int:
        """Levels of layer decay: the embeddings, every block, the rest."""
        return self.depth + 2

    def layer_of(self, name: str) -> int:
        """Return a parameter's level: 0 for the embeddings, i + 1 for block i, then the rest."""
        if name in {"cls_token", "pos_embed", "reg_token"} or name.startswith(
            ("patch_embed", "norm_pre")
        ):
            return 0
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return self.depth + 1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of every tensor that weights of this specification must hold."""
        return shapes(self)

    @property
    def model(self) -> str:
        """B/16 for the published shapes, else the plain numbers."""
        return model_name(self.embed_dim, self.depth, self.patch_size)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return to_mapping(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "VitSpec":
        """Return the specification that `to_json` wrote."""
        return from_mapping(cls, value, "specification")


@dataclass(frozen=True, kw_only=True)
class VitWeights:
    """Canonical weights of one encoder: what every task receives."""

    spec: VitSpec
    tensors: Mapping[str, Tensor]
    """Encoder only, timm's VisionTransformer names, float32, exactly the keys of `shapes(spec)`."""
    format: str
    digest: str
    """SHA-256 that identifies the checkpoint (and the network in it) everywhere."""
    name: str = ""
    """Short name for tables: the file's stem."""
    which: str = ""
    """The network taken where the file holds several: student, teacher, ema."""
    extras: Mapping[str, int] = field(default_factory=dict)
    """Tensors that are no part of the encoder: group (decoder, head, optimizer...) -> count."""
    notes: tuple[str, ...] = ()
    """What a reader should know: things mapped, folded or approximated."""
    origin: str = ""
    """The name that the file was found by, with its revision; '' for a path."""

    def with_spec(self, **changes: Any) -> "VitWeights":
        """Return the same tensors under a changed specification (for example another mean)."""
        return replace(self, spec=replace(self.spec, **changes))


def shapes(spec: VitSpec) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor that weights of this specification must hold."""
    D, heads = spec.embed_dim, spec.num_heads
    rows = spec.grid[0] * spec.grid[1] + spec.position_prefix
    out: dict[str, tuple[int, ...]] = {}
    if spec.class_token:
        out["cls_token"] = (1, spec.class_tokens, D)
    if spec.register_tokens:
        out["reg_token"] = (1, spec.register_tokens, D)
    if spec.has_table:
        out["pos_embed"] = (1, rows, D)
    out["patch_embed.proj.weight"] = (D, 3, spec.patch_size, spec.patch_size)
    if spec.patch_bias:
        out["patch_embed.proj.bias"] = (D,)
    if spec.patch_norm:
        out |= _norm(spec, "patch_embed.norm", D)
    if spec.pre_norm:
        out |= _norm(spec, "norm_pre", D)
    for i in range(spec.depth):
        out |= _block_shapes(spec, f"blocks.{i}.")
        if spec.position == "relative":
            # every pair of offsets, then class-to-patch, patch-to-class and class-to-class
            pairs = (2 * spec.grid[0] - 1) * (2 * spec.grid[1] - 1) + 3
            out[f"blocks.{i}.attn.relative_position_bias_table"] = (pairs, heads)
    if spec.final_norm != "none":
        out |= _norm(spec, spec.final_norm, D)
    return out


def _norm(spec: VitSpec, name: str, dim: int) -> dict[str, tuple[int, ...]]:
    bias = {f"{name}.bias": (dim,)} if spec.norm == "layer" else {}
    return {f"{name}.weight": (dim,), **bias}


def _block_shapes(spec: VitSpec, at: str) -> dict[str, tuple[int, ...]]:
    D, hidden = spec.embed_dim, spec.mlp_dim
    packed = 2 * hidden if spec.mlp == "swiglu" else hidden
    out: dict[str, tuple[int, ...]] = {**_norm(spec, f"{at}norm1", D)}
    out[f"{at}attn.qkv.weight"] = (3 * D, D)
    if spec.qkv_bias:
        out[f"{at}attn.qkv.bias"] = (3 * D,)
    out |= _linear(spec, f"{at}attn.proj", D, D)
    if spec.layer_scale:
        out[f"{at}ls1.gamma"] = (D,)
    out |= _norm(spec, f"{at}norm2", D)
    out |= _linear(spec, f"{at}mlp.fc1", packed, D)
    if spec.mlp_norm:
        out |= _norm(spec, f"{at}mlp.norm", hidden)
    out |= _linear(spec, f"{at}mlp.fc2", D, hidden)
    if spec.layer_scale:
        out[f"{at}ls2.gamma"] = (D,)
    return out


def _linear(spec: VitSpec, name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    bias = {f"{name}.bias": (rows,)} if spec.proj_bias else {}
    return {f"{name}.weight": (rows, columns), **bias}


SIDES = {
    "embed_dim": (1, 1 << 15), "depth": (1, 1000), "num_heads": (1, 1024), "mlp_dim": (1, 1 << 18),
    "patch_size": (1, 512), "register_tokens": (0, 1024),
}  # fmt: skip
"""Field -> smallest and largest value; the largest published ViT is far inside."""
GRID_SIDE = 1024


def check_spec(spec: VitSpec) -> None:
    """Refuse a specification that no network can have."""
    faults = [
        f"{name} is {getattr(spec, name)}, expected {low} to {high}"
        for name, (low, high) in SIDES.items()
        if not low <= getattr(spec, name) <= high
    ]
    if not all(1 <= side <= GRID_SIDE for side in spec.grid):
        faults.append(f"grid is {spec.grid}, expected sides of 1 to {GRID_SIDE}")
    if not faults and spec.embed_dim % spec.num_heads:
        faults.append(f"{spec.num_heads} heads do not divide the width {spec.embed_dim}")
    if spec.rotation == "bordered" and (spec.class_token or spec.register_tokens % 4):
        faults.append("registers along the border are a multiple of four, without a class token")
    if not 0 < spec.norm_eps < 1:
        faults.append(f"norm_eps is {spec.norm_eps:g}, expected a small positive number")
    if not all(math.isfinite(v) for v in spec.mean) or not all(0 < v < math.inf for v in spec.std):
        faults.append(f"mean {spec.mean} and std {spec.std} normalise no image")
    if faults:
        raise UserError(f"this is no ViT: {'; '.join(faults)}")


def fold_layer_scale(weights: VitWeights) -> dict[str, Tensor]:
    """Return the tensors with LayerScale multiplied into the layer before it: exact for features."""
    state = dict(weights.tensors)
    if not weights.spec.layer_scale:
        return state
    for i in range(weights.spec.depth):
        for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            gamma = state.pop(f"blocks.{i}.{scale}.gamma")
            at = f"blocks.{i}.{layer}"
            state[f"{at}.weight"] = state[f"{at}.weight"] * gamma[:, None]
            if f"{at}.bias" in state:
                state[f"{at}.bias"] = state[f"{at}.bias"] * gamma
    return state


def random_weights(spec: VitSpec, seed: int) -> VitWeights:
    """Return the random twin of a checkpoint: same specification, freshly initialised tensors."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes(spec).items():
        if name == "pos_embed":
            table = sincos_table(spec.embed_dim, spec.grid, class_row=False)
            prefix = torch.zeros(1, spec.position_prefix, spec.embed_dim)
            tensors[name] = torch.cat([prefix, table], dim=1)
        elif name.endswith(("bias", "bias_table")):
            tensors[name] = torch.zeros(shape)
        elif "norm" in name or name.endswith("gamma"):
            tensors[name] = torch.ones(shape)
        else:
            tensors[name] = torch.empty(shape)
            torch.nn.init.trunc_normal_(tensors[name], std=0.02, generator=generator)
            if len(shape) == 2 or name == "patch_embed.proj.weight":
                flat = tensors[name].flatten(1)
                torch.nn.init.xavier_uniform_(flat, generator=generator)
                tensors[name] = flat.reshape(shape)
    return VitWeights(
        spec=spec,
        tensors=tensors,
        format="random",
        digest=value_digest({"random": seed, "spec": spec.to_json()}),
        name=f"random-{seed}",
    )
