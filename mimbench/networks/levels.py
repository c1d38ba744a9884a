"""Networks with levels (ConvNeXt, Swin, Hiera, ResNet and others of timm): what they are."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.models._manipulate import group_parameters
from torch import Tensor, nn

from mimbench.model import Level, Triple
from mimbench.networks.hiera import SizedHiera
from mimbench.networks.swin import pad_first
from mimbench.system.config import from_mapping, to_mapping
from mimbench.system.errors import UserError
from mimbench.system.files import value_digest
from mimbench.system.listing import first_few

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STRIDES = (4, 8, 16, 32)
"""Levels that pyramids are built on; a stride-2 stem of some convolutional networks is left out."""
TOP = re.compile(r"(norm|head|fc_norm|classifier|fc)\b.*")
"""Names at the top level of layer decay: the published rules put the last norm there too."""


@dataclass(frozen=True, kw_only=True)
class LevelSpec:
    """A network of timm's, by the name of its architecture and what its constructor was given."""

    architecture: str
    """timm's name, without a tag."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of timm's constructor that differ from the architecture's own; JSON values."""
    image_size: tuple[int, int] = (224, 224)
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    final_norm: bool = True
    """A norm before the head; files that were only pre-trained may lack it (FCMAE)."""
    name: str = ""
    """Short name in tables; by default the architecture's."""

    @property
    def family(self) -> str:
        """The kind of network where kinds are treated differently: swin, hiera, or other."""
        found = re.match(r"swin_|hiera_|convnextv?2?_|resnet", self.architecture)
        return found.group().rstrip("_").replace("v2", "") if found else "other"

    @property
    def levels(self) -> tuple[Level, ...]:
        """Strides and channels of the maps, finest first."""
        return _skeleton(self).levels

    @property
    def embed_dim(self) -> int:
        """Width of the image vector."""
        return _skeleton(self).width

    @property
    def layers(self) -> int:
        """Levels of layer decay."""
        return _skeleton(self).layers

    def layer_of(self, name: str) -> int:
        """Return a parameter's level: stem 0, blocks in order, the last norm and the head on top."""
        return _skeleton(self).order.get(name, self.layers - 1)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return name -> shape of every tensor."""
        return _skeleton(self).shapes

    @property
    def model(self) -> str:
        """The architecture's short name."""
        return self.name or self.architecture

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; `kind` tells them from a ViT's."""
        return {"kind": "levels", **to_mapping(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "LevelSpec":
        """Return the specification that `to_json` wrote."""
        fields = {k: v for k, v in value.items() if k != "kind"}
        return from_mapping(cls, fields, "specification")


@dataclass(frozen=True, kw_only=True)
class LevelWeights:
    """Canonical weights of a network with levels: timm's names."""

    spec: LevelSpec
    tensors: Mapping[str, Tensor]
    format: str
    digest: str
    name: str = ""
    which: str = ""
    extras: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    origin: str = ""

    def with_spec(self, **changes: Any) -> "LevelWeights":
        """Return the same tensors under a changed specification (for example another mean)."""
        return replace(self, spec=replace(self.spec, **changes))


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """What a specification's network shows without any weights."""

    levels: tuple[Level, ...]
    width: int
    shapes: Mapping[str, tuple[int, ...]]
    order: Mapping[str, int]
    layers: int


def _skeleton(spec: LevelSpec) -> Skeleton:
    return _known_skeleton(json.dumps(spec.to_json(), sort_keys=True))


@lru_cache(maxsize=64)
def _known_skeleton(text: str) -> Skeleton:
    spec = LevelSpec.from_json(json.loads(text))
    with torch.device("meta"):
        model: Any = build_levels(spec)
    info = [Level(stride=f["reduction"], channels=f["num_chs"]) for f in model.feature_info]
    # networks that repeat a stride (flat trunks) have it once, at their end
    last = {level.stride: level for level in info}
    levels = tuple(last[s] for s in sorted(last) if s in STRIDES) or tuple(info[-1:])
    order, layers = layer_order(model)
    return Skeleton(
        levels=levels,
        width=int(getattr(model, "head_hidden_size", None) or model.num_features),
        shapes={n: tuple(t.shape) for n, t in model.state_dict().items() if t.is_floating_point()},
        order=order,
        layers=layers,
    )


def layer_order(model: nn.Module) -> tuple[dict[str, int], int]:
    """Return each parameter's level of layer decay, and the number of levels.

    Blocks count one level each, in order over all stages; what leads into a stage goes with the
    stage's first block. A network that tells nothing of its order has one level: no decay.
    """
    if not hasattr(model, "group_matcher"):
        return {name: 0 for name, _ in model.named_parameters()}, 1
    matcher: Any = model.group_matcher(coarse=False)  # pyright: ignore[reportCallIssue]
    found = group_parameters(model, matcher, reverse=True)
    body = {name: level for name, level in found.items() if not TOP.fullmatch(name)}
    places = {level: i for i, level in enumerate(sorted(set(body.values())))}
    top = len(places)
    return {name: places[body[name]] if name in body else top for name in found}, top + 1


OPTIONS = {
    "block_config", "channels", "depth", "depths", "dims", "embed_dim", "global_attn_indexes", "img_size",
    "layers", "ls_init_value", "num_heads", "stages", "use_grn", "window_size",
}  # fmt: skip
"""What a specification may say to timm's constructor: a file's header is not trusted with more."""
LARGEST = 8192
"""Of any number in the options."""


def check_levels(spec: LevelSpec) -> None:
    """Refuse an architecture that timm does not have, or options that no network needs."""
    faults = [f"option {name}" for name in spec.options if name not in OPTIONS]
    for name, value in spec.options.items():
        items = value if isinstance(value, (list, tuple)) else [value]
        fine = len(items) <= 8 and all(v is None or isinstance(v, (int, float)) for v in items)
        if not fine or any(v is not None and not 0 <= v <= LARGEST for v in items):
            faults.append(f"{name} = {str(value)[:60]}")
    if not timm.is_model(spec.architecture):
        faults.append(f"architecture {spec.architecture[:60]}, which timm does not have")
    if not all(1 <= side <= LARGEST for side in spec.image_size):
        faults.append(f"images of {spec.image_size}")
    if not all(math.isfinite(v) for v in spec.mean) or not all(0 < v < math.inf for v in spec.std):
        faults.append(f"mean {spec.mean} and std {spec.std}, which normalise no image")
    if faults:
        raise UserError(f"this is no network of timm's: {first_few(faults, separator='; ')}")


def build_levels(
    spec: LevelSpec,
    *,
    drop_path: float = 0.0,
    num_classes: int = 0,
    any_size: bool = False,
) -> nn.Module:
    """Return a freshly initialised network of the specification.

    Args:
        spec: The architecture.
        drop_path: Largest stochastic depth rate.
        num_classes: Outputs of the classifier head; 0 for none.
        any_size: As detectors and segmenters run it: pictures of any size. A Swin then shifts
            every second block and pads before it shifts; as a classifier its windows and shifts
            follow the size that it was made for.
    """
    check_levels(spec)
    options: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in spec.options.items()
    }
    if drop_path:
        options["drop_path_rate"] = drop_path
    if spec.family == "swin":
        options |= {"img_size": spec.image_size}
        options |= {"strict_img_size": False, "always_partition": True} if any_size else {}
    if spec.family == "hiera":
        options |= {"img_size": spec.image_size}
    try:
        model = timm.create_model(
            spec.architecture, pretrained=False, num_classes=num_classes, **options
        )
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        raise UserError(
            f"timm cannot build {spec.architecture} with {dict(spec.options)}: {error}"
        ) from error
    if spec.family == "swin" and any_size:
        pad_first(model)
    if spec.family == "hiera":
        model.__class__ = SizedHiera
    if not spec.final_norm:
        _drop_norm(model)
    return model


def _drop_norm(model: nn.Module) -> None:
    """Take the norm before the head away."""
    head = getattr(model, "head", None)
    at = head if head is not None and hasattr(head, "norm") else model
    at.norm = nn.Identity()


def random_levels(spec: LevelSpec, seed: int) -> LevelWeights:
    """Return the random twin: the same specification, timm's own first weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_levels(spec)
    return LevelWeights(
        spec=spec,
        tensors={n: t.detach() for n, t in model.state_dict().items() if t.is_floating_point()},
        format="random",
        digest=value_digest({"random": seed, "spec": spec.to_json()}),
        name=f"random-{seed}",
    )
