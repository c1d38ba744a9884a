"""Hand-over: our own files for the suite, the released layouts for other tools, weights to start from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mimbench.checkpoints.files import write_weights
from mimbench.system.config import to_mapping
from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path, value_digest, write_json
from mimbench.training.learner import StepInfo
from mimbench.vit.sizes import size_of
from mimbench.vit.weights import VitSpec, VitWeights
from pretrain.checkpoints.layouts import to_official
from pretrain.checkpoints.stored import BESIDE, CARD, MODEL, StoredModel
from pretrain.config import Config
from pretrain.models.autoencoder import MaskedAutoencoder

ENCODER, TEACHER_ENCODER = "encoder.safetensors", "encoder-teacher.safetensors"


def write_export(
    out: Path,
    config: Config,
    model: MaskedAutoencoder,
    teacher: nn.Module | None,
    at: StepInfo,
    further: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the encoders alone, as the suite reads them, and the whole model with its card.

    Args:
        out: The folder.
        config: The run.
        model: The student.
        teacher: Its average.
        at: Where the run stands.
        further: Tensors that lie beside the student's in the whole model.
    """
    source = value_digest({"config": config.digest(), "step": at.step})
    networks: dict[str, tuple[str, nn.Module]] = {"student": (ENCODER, model)}
    if teacher is not None:
        networks["teacher"] = (TEACHER_ENCODER, teacher)
    tensors: dict[str, Tensor] = {}
    for which, (name, network) in networks.items():
        state = {key: t.detach().float().cpu() for key, t in network.state_dict().items()}
        weights = VitWeights(
            spec=model.spec,
            tensors=encoder_tensors(state),
            format="mimbench-pretrain",
            digest=source,
            which=which,
        )
        write_weights(out / name, weights)
        tensors |= {f"{which}.{key}": t.contiguous() for key, t in state.items()}
    for key, tensor in (further or {}).items():
        tensors[f"student.{key}"] = tensor.detach().float().cpu().contiguous()
    with atomic_path(out / MODEL) as part:
        save_file(tensors, part)
    card = {
        "format": "mimbench-pretrain",
        "version": 1,
        "step": at.step,
        "epoch": at.step // at.steps_per_epoch,
        "epochs": at.epochs,
        "config_digest": config.digest(),
        "config": to_mapping(config),
        "spec": model.spec.to_json(),
    }
    write_json(out / CARD, card)


def encoder_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's tensors of a student or teacher under canonical names."""
    return {k.removeprefix("encoder."): t for k, t in state.items() if k.startswith("encoder.")}


def write_released(path: Path, stored: StoredModel, layout: str) -> None:
    """Write a model in the layout of MAE's or HPM's released code.

    HPM's file holds the average of every part; ours has none of the reconstruction decoder, which
    nothing uses, so the student's stands in for it there.
    """
    if stored.leave is not None and layout == "hpm":
        raise UserError(
            "the loss predictor of this model is a head on the reconstruction decoder, for which HPM's "
            "layout has no place; export it with --layout mae"
        )
    if stored.spec.class_tokens > 1:
        raise UserError(
            f"this model has {stored.spec.class_tokens} class tokens, the released layouts have one; "
            "take the run's encoder.safetensors"
        )
    if stored.decoder.kind == "cross":
        raise UserError(
            "neither released layout has a place for a cross decoder; take the run's "
            "encoder.safetensors"
        )
    pixels = 3 * stored.spec.patch_size**2
    own = {n: t for n, t in stored.student.items() if not n.startswith(BESIDE)}
    student = to_official(own, pixels=pixels)
    done = stored.epochs_done or 0
    if layout == "mae":
        names = [name for name in student if "_losspred" not in name]
        # MAE counts the epochs from 0 and stores the last one that was completed
        content: dict[str, Any] = {"model": {n: student[n] for n in names}, "epoch": done - 1}
    else:
        if not any("_losspred" in name for name in student):
            raise UserError("this model has no loss predictor; export it with --to mae")
        teacher = to_official(stored.teacher or {}, pixels=pixels)
        content = {
            "epoch": done,
            "state_dict": {f"module.{name}": tensor for name, tensor in student.items()},
            "ema_state_dict": {**student, **teacher},
            "model": _released_name(stored.spec),
        }
    with atomic_path(path) as part:
        torch.save(content, part)


def _released_name(spec: VitSpec) -> str:
    size = size_of(spec.embed_dim, spec.depth)
    name = size.name if size else f"width{spec.embed_dim}"
    return f"mae_vit_{name}_patch{spec.patch_size}_dec512d8b"
