"""The classifier of a finished run, made again from its saved state: from pixels to logits."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mimbench.data.preprocess import Preprocess
from mimbench.features.bank import join
from mimbench.features.patches import FinalNorm
from mimbench.model import Weights
from mimbench.networks.kinds import build_network, plain_vit
from mimbench.system.errors import UserError
from mimbench.system.runtime import Precision, autocast
from mimbench.training.learner import BEST, LAST
from mimbench.training.snapshots import read_state
from mimbench.vit.backbone import build_backbone
from mimbench.vit.normalise import Normalisation
from transfer.classification import attentive, finetune, linear, logreg
from transfer.classification.attentive_probe import Together, make_heads, pick
from transfer.classification.classifier import at_size, build_classifier
from transfer.classification.heads import Heads, head_name
from transfer.classification.logreg import HEAD_FILE, scale
from transfer.classification.robustness.finished import HeadRun
from transfer.classification.tokens import join_tokens, token_rule

Logits = Callable[[Tensor], Tensor]
"""Images in bytes (b, 3, H, W), on the device -> logits (b, classes) float32."""


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A trained classifier, and how images are made ready for it."""

    logits: Logits
    preprocess: Preprocess
    device: torch.device


def classifier_of(cell: HeadRun, weights: Weights, device: torch.device) -> Classifier:
    """Return the classifier of a finished run.

    Args:
        cell: The run: fine-tuning, a linear or attentive probe, or logistic regression.
        weights: Its checkpoint.
        device: Where it is to run.
    """
    make = KINDS.get(cell.run.task)
    if make is None:
        known = ", ".join(name.rpartition(".")[2] for name in KINDS)
        raise UserError(
            f"{cell.run.benchmark} leaves no head ({cell.run.task}); choose a benchmark of: {known}"
        )
    logits: Logits = torch.no_grad()(make(cell, cell.config, weights, device))
    return Classifier(logits=logits, preprocess=cell.config.preprocess(), device=device)


def _fine_tuned(cell: HeadRun, config: Any, weights: Weights, device: torch.device) -> Logits:
    recipe = config.resolve(weights.spec.embed_dim, weights.spec.model)
    sized = at_size(weights, config.image_size)
    model, _ = build_classifier(
        sized, cell.classes, pool=recipe.pool, drop_path=0.0, seed=config.seed
    )
    _load(model, _state(cell, LAST if config.report == "last" else BEST), cell)
    model.eval().to(device)
    normalise = Normalisation(sized.spec.mean, sized.spec.std).to(device)

    def logits(pixels: Tensor) -> Tensor:
        with autocast(device, config.precision):
            return model(normalise.of_bytes(pixels)).float()

    return logits


def _vectors(
    weights: Weights, blocks: int, precision: Precision, device: torch.device
) -> Callable[[Tensor], dict[str, Tensor]]:
    network = build_network(weights)
    network.to(device)

    def vectors(pixels: Tensor) -> dict[str, Tensor]:
        with autocast(device, precision):
            found = network.vectors(pixels.float() / 255, blocks)
        return {name: value.float() for name, value in found.items()}

    return vectors


def _linear(cell: HeadRun, config: Any, weights: Weights, device: torch.device) -> Logits:
    config = config.for_width(weights.spec.embed_dim)
    vectors = _vectors(weights, config.blocks, config.precision, device)
    last = config.report == "last"
    name = cell.result.notes["head" if last else "best_head"]
    which = [head_name(*head) for head in config.heads].index(name)
    choice = config.heads[which][0]
    state = _state(cell, LAST if last else BEST)
    tensors = [
        state[f"weights.{i * len(config.learning_rates)}"] for i in range(len(config.choices))
    ]
    widths = {c: t.shape[1] for c, t in zip(config.choices, tensors, strict=True)}
    heads = Heads(config, widths, cell.classes, config.seed)
    _load(heads, state, cell)
    heads.eval().to(device)
    return lambda pixels: heads.only(which, join(vectors(pixels), choice))


def _attentive(cell: HeadRun, config: Any, weights: Weights, device: torch.device) -> Logits:
    vit = plain_vit(weights)
    rule = token_rule(vit, config.tokens, config.norm)
    chosen = pick(_whole_state(cell, LAST)["learner"]["history"], "held")
    made = make_heads(config, vit.spec.embed_dim, vit.spec.num_heads, cell.classes)
    together = Together(nn.ModuleList(made))
    _load(together, _state(cell, BEST), cell)
    head = together.heads[chosen.head].eval().to(device)
    backbone = build_backbone(vit).to(device)
    norm = FinalNorm(vit, device)
    last = [vit.spec.depth - 1]

    def logits(pixels: Tensor) -> Tensor:
        with autocast(device, config.precision):
            found = backbone.blocks(pixels.float() / 255, last, norm=False)[0]
        patches, cls = found.patches.flatten(1, 2).float(), found.cls.float()
        tokens = join_tokens(patches, cls, rule, norm)
        with autocast(device, config.precision):
            return head(tokens).float()

    return logits


def _logistic(cell: HeadRun, config: Any, weights: Weights, device: torch.device) -> Logits:
    vectors = _vectors(weights, 4, config.precision, device)
    path = cell.folder / HEAD_FILE
    try:
        found = load_file(path)
        weight, bias = (found[name].to(device) for name in ("weight", "bias"))
    except (OSError, SafetensorError, KeyError) as error:
        raise _lacking(cell, path, error) from error
    choice = config.choices[0]
    return lambda pixels: (
        scale(join(vectors(pixels), choice), normalise=config.normalise) @ weight + bias
    )


KINDS: dict[str, Callable[[HeadRun, Any, Weights, torch.device], Logits]] = {
    finetune.__name__: _fine_tuned,
    linear.__name__: _linear,
    attentive.__name__: _attentive,
    logreg.__name__: _logistic,
}
"""Task that leaves a head -> what makes it again."""


def _whole_state(cell: HeadRun, name: str) -> dict[str, Any]:
    path = cell.folder / "checkpoints" / name
    if not path.is_file():
        raise _lacking(cell, path, FileNotFoundError("no such file"))
    return read_state(path, lazily=True)


def _state(cell: HeadRun, name: str) -> dict[str, Tensor]:
    return _whole_state(cell, name)["model"]


def _load(model: nn.Module, state: dict[str, Tensor], cell: HeadRun) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"the state in {cell.folder} does not fit {cell.run.benchmark}: {error}; run that "
            "benchmark again (--fresh)"
        ) from error


def _lacking(cell: HeadRun, path: Path, error: Exception) -> UserError:
    return UserError(
        f"{cell.run.benchmark} is finished, but its head cannot be read from {path} ({error}); run "
        "that benchmark again (--fresh)"
    )
