"""The kinds of networks side by side: the only place that asks which kind it has before it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from mimbench.model import Network, Spec, Weights, require_fit
from mimbench.networks.frozen import LevelNetwork
from mimbench.networks.levels import LevelSpec, LevelWeights, check_levels, random_levels
from mimbench.networks.module import ModuleNetwork, ModuleWeights
from mimbench.system.errors import UserError
from mimbench.vit.backbone import build_backbone
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from mimbench.vit.weights import check_spec as check_vit


def spec_from_json(value: Mapping[str, Any]) -> VitSpec | LevelSpec:
    """Return the specification that `to_json` wrote."""
    return LevelSpec.from_json(value) if value.get("kind") == "levels" else VitSpec.from_json(value)


def check_spec(spec: Spec) -> None:
    """Refuse a specification that no network can have."""
    if isinstance(spec, VitSpec):
        check_vit(spec)
    if isinstance(spec, LevelSpec):
        check_levels(spec)


def make_weights(spec: Spec, tensors: Mapping[str, Tensor], **identity: Any) -> Weights:
    """Return the weights of a specification's kind."""
    if isinstance(spec, VitSpec):
        return VitWeights(spec=spec, tensors=tensors, **identity)
    if isinstance(spec, LevelSpec):
        return LevelWeights(spec=spec, tensors=tensors, **identity)
    raise TypeError(f"no weights are kept for a {type(spec).__name__}")


def with_tensors(weights: Weights, changed: Mapping[str, Tensor]) -> Weights:
    """Return the weights with some tensors replaced."""
    if isinstance(weights, (VitWeights, LevelWeights)):
        return replace(weights, tensors={**weights.tensors, **changed})
    raise TypeError(f"a {type(weights).__name__} holds no tensors to replace")


def random_twin(spec: Spec, seed: int) -> Weights:
    """Return random weights of a specification."""
    if isinstance(spec, VitSpec):
        return random_weights(spec, seed)
    if isinstance(spec, LevelSpec):
        return random_levels(spec, seed)
    raise UserError(f"{spec.model} has no random twin: only networks built from tensors have one")


def build_network(weights: Weights) -> Network:
    """Return the frozen, evaluating network that the weights describe."""
    if isinstance(weights, VitWeights):
        return build_backbone(weights)
    if isinstance(weights, LevelWeights):
        require_fit(weights)
        return LevelNetwork(weights)
    if isinstance(weights, ModuleWeights):
        return ModuleNetwork(weights)
    raise UserError(f"{weights.name}: a {type(weights).__name__} is no kind of network")


def plain(weights: Weights, who: str) -> VitWeights:
    """Return weights that are a plain ViT's, or say who works on nothing else."""
    if isinstance(weights, VitWeights):
        return weights
    raise UserError(f"{weights.name}: {who} works on plain ViTs, and this is {weights.spec.model}")


def plain_vit(weights: Weights) -> VitWeights:
    """Return the weights if they are a plain ViT's: for protocols that are about its tokens."""
    if not isinstance(weights, VitWeights):
        raise UserError(
            f"this benchmark reads the tokens of a ViT's blocks, and {weights.name} is "
            f"{weights.spec.model}; leave the benchmark out (--only names the others)"
        )
    return weights
