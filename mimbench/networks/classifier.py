"""A network as fine-tuning trains it: at the task's resolution, pooled as its kind does, with a new head."""

from collections.abc import Callable
from typing import Any

from torch import nn

from mimbench.model import Weights
from mimbench.networks.frozen import at_size as levels_at_size
from mimbench.networks.levels import LevelWeights, build_levels
from mimbench.networks.module import ModuleClassifier, ModuleWeights
from mimbench.system.errors import UserError
from mimbench.vit import classifier as vit
from mimbench.vit.weights import VitWeights


def at_size(weights: Weights, size: int) -> Weights:
    """Return the weights for square images of this size, by their family's rule."""
    if isinstance(weights, VitWeights):
        return vit.at_size(weights, size)
    if isinstance(weights, LevelWeights):
        return levels_at_size(weights, (size, size))
    if isinstance(weights, ModuleWeights):
        return weights  # its adapter reads pictures of any size, or says so itself
    raise UserError(f"{weights.name}: a {weights.spec.model} is not fine-tuned at another size")


def build_classifier(
    weights: Weights,
    classes: int,
    *,
    pool: vit.Pool,
    drop_path: float,
    init_head: Callable[[nn.Module], None],
) -> tuple[nn.Module, list[str]]:
    """Return the classifier and the names of the checkpoint's tensors that it does not take.

    Args:
        weights: At the size of the task.
        classes: Outputs of the new head.
        pool: Of a plain ViT; a network with levels pools as its own head does.
        drop_path: Largest stochastic depth rate.
        init_head: Draws the head's first weights.
    """
    if isinstance(weights, VitWeights):
        return vit.build_classifier(
            weights, classes, pool=pool, drop_path=drop_path, init_head=init_head
        )
    if isinstance(weights, LevelWeights):
        return _with_levels(weights, classes, drop_path=drop_path, init_head=init_head)
    if isinstance(weights, ModuleWeights):
        model = ModuleClassifier(weights, classes)
        init_head(model.head)
        return model, []
    raise UserError(f"{weights.name}: a {weights.spec.model} has no head to train")


def _with_levels(
    weights: LevelWeights, classes: int, *, drop_path: float, init_head: Callable[[nn.Module], None]
) -> tuple[nn.Module, list[str]]:
    spec = weights.spec
    whole = spec if spec.final_norm else weights.with_spec(final_norm=True).spec
    model: Any = build_levels(whole, drop_path=drop_path, num_classes=classes)
    head = model.get_classifier()
    init_head(head)
    own = model.state_dict()
    fresh = {id(p) for p in head.parameters()}
    names = {name for name, p in model.named_parameters() if id(p) in fresh}
    # files that were only pre-trained may lack the norm before the head: it starts anew
    missing = [n for n, t in own.items() if n not in weights.tensors and t.is_floating_point()]
    if faults := [n for n in missing if n not in names and (spec.final_norm or "norm" not in n)]:
        raise UserError(f"{weights.name}: nothing fills {', '.join(faults[:5])}")
    model.load_state_dict({**own, **weights.tensors})
    return model, []
