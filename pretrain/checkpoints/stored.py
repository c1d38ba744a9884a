"""Models read back: our own runs and their states, and the released code's files, under our names.

Nothing in a file is executed. Which tensors found a place, and which did not, is always said.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mimbench.checkpoints.files import read_vit
from mimbench.checkpoints.reading.content import read_raw
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.system.listing import first_few
from mimbench.training.learner import LAST
from mimbench.training.snapshots import FORMAT, read_state
from mimbench.vit.weights import VitSpec
from pretrain.checkpoints.layouts import from_official
from pretrain.config import Config
from pretrain.models.autoencoder import DecoderConfig, MaskedAutoencoder
from pretrain.models.cross_autoencoder import build_autoencoder
from pretrain.models.teacher import Teacher, build_teacher

logger = logging.getLogger(__name__)

CARD, MODEL = "model.json", "model.safetensors"

RELEASED_DECODER_HEADS = 16
BESIDE = ("masker.", "secondary_token")
"""Tensors beside a student's that only training and the laboratory use."""
TABLES = frozenset({"encoder.pos_embed", "neck.pos_embed"})


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A student, perhaps its teacher, under our names."""

    spec: VitSpec
    student: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor] | None = None
    decoder_heads: int = RELEASED_DECODER_HEADS
    epochs_done: int | None = None
    target: str | None = None
    """What the reconstruction head gives, where the file says it."""
    mask: Mapping[str, Any] | None = None
    """The masking strategy's section of the config, where the file says it."""
    decoder_config: DecoderConfig | None = None
    """The decoders' section of the config, where the file says it."""
    leave: int | None = None
    """Block of the reconstruction decoder after which a shared loss predictor reads."""

    @property
    def decoder(self) -> DecoderConfig:
        """Return the decoders' shape."""
        if self.decoder_config is not None:
            return self.decoder_config
        width = self.student["neck.mask_token"].shape[-1]
        names = {n.split(".")[2] for n in self.student if n.startswith("reconstructor.blocks.")}
        return DecoderConfig(width=width, depth=len(names), heads=self.decoder_heads)

    def build(self) -> tuple[MaskedAutoencoder, Teacher | None]:
        """Return the networks, evaluating; every tensor must find its place."""
        if "reconstructor.pred.weight" not in self.student:
            raise UserError("this file holds an encoder only, without decoders")
        model = build_autoencoder(
            self.spec,
            self.decoder,
            outputs=len(self.student["reconstructor.pred.weight"]),
            predictor=any(name.startswith("predictor.") for name in self.student),
            leave=self.leave,
        )
        # AutoMAE's mask generator is no part of the student either
        beside = ("generator.", *BESIDE)
        _fill(model, {n: t for n, t in self.student.items() if not n.startswith(beside)})
        teacher = build_teacher(model)
        if self.teacher is None:
            return model.eval(), None
        _fill(teacher, _without_decoder(self.teacher, teacher))
        return model.eval(), teacher


def _without_decoder(state: Mapping[str, Tensor], teacher: Teacher) -> dict[str, Tensor]:
    """Return a teacher's tensors; of a reconstruction decoder only what this teacher runs."""
    own = teacher.state_dict()
    return {n: t for n, t in state.items() if n in own or not n.startswith("reconstructor.")}


def _fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise UserError(f"the file's tensors do not fit the model: {error}") from error


def read_model(path: Path, *, num_heads: int | None = None) -> StoredModel:
    """Return the model in a run, a training state or export of it, or a file of HPM or MAE.

    Args:
        path: A run's folder, one of its `checkpoints`, a model.safetensors, or a released file.
        num_heads: Attention heads of the encoder, for widths that no published model has.
    """
    if path.is_dir():
        path = _newest(path)
    raw = read_raw(path)
    if raw.top.get("format") == FORMAT:
        return _read_training(path, raw.top)
    if "student.encoder.cls_token" in raw.names:
        return _read_own(path, raw.networks[""])
    return _read_released(path, raw.networks, raw.top, num_heads)


def _newest(folder: Path) -> Path:
    """Return a run's export, or the state that it saved since."""
    export, states = folder / MODEL, (folder / "checkpoints" / LAST, folder / LAST)
    state = next((path for path in states if path.is_file()), None)
    if state is None and not export.is_file():
        raise UserError(
            f"{folder} holds neither {MODEL} nor checkpoints/{LAST}, so it is no pretraining run, "
            "or one that has not saved anything yet"
        )
    if state is None or not export.is_file():
        return state or export
    card, said = _read_card(export), read_state(state, lazily=True)
    # exports stay when a run is begun anew, until its own replace them
    other = bool(said.get("config")) and said["digest"] != card.get("config_digest")
    return state if other or said["step"] > card.get("step", 0) else export


def _read_card(export: Path) -> dict[str, Any]:
    try:
        card = json.loads((export.parent / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{export} needs its {CARD} beside it, unharmed: {error}") from error
    if not isinstance(card, dict):
        raise UserError(f"{export.parent / CARD} should hold an object")
    return card


def _read_training(path: Path, top: Mapping[str, Any]) -> StoredModel:
    content = top.get("config")
    if not isinstance(content, Mapping) or "objective" not in content:
        raise UserError(f"{path} is the training state of another task, not of pretraining")
    if content.get("method") == "distillation":
        raise UserError(
            f"{path} is the state of a distillation run, which has no decoders; "
            f"its encoders are in {path.parent.parent}/encoder*.safetensors"
        )
    config = from_mapping(Config, content, f"{path.name}: config")
    try:
        teacher, masker = (top["learner"].get(name) for name in ("teacher", "masker"))
        further = {f"masker.{name}": tensor for name, tensor in (masker or {}).items()}
        return StoredModel(
            spec=config.encoder.spec(config.data),
            student={**top["model"], **further},
            teacher=teacher,
            decoder_heads=config.decoder.heads,
            epochs_done=top["epoch"],
            target=config.objective.target,
            mask=config.mask,
            decoder_config=config.decoder,
            leave=config.leave(),
        )
    except (KeyError, AttributeError) as error:
        raise UserError(f"{path} is no complete training state: {error} is missing") from error


def _read_own(path: Path, tensors: Mapping[str, Tensor]) -> StoredModel:
    card = _read_card(path)
    try:
        spec, config = VitSpec.from_json(card["spec"]), card["config"]
        heads, target = config["decoder"]["heads"], config["objective"]["target"]
        epochs, mask = card["epoch"], config["mask"]
        shape = from_mapping(DecoderConfig, config["decoder"], f"{CARD}: decoder")
        leave = None
        if config["objective"].get("predictor", "own") == "shared":
            leave = config["objective"]["exit"] or config["decoder"]["depth"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} needs its {CARD} beside it, unharmed: {error}") from error
    parts: dict[str, dict[str, Tensor]] = {"student": {}, "teacher": {}}
    for name, tensor in tensors.items():
        which, _, rest = name.partition(".")
        parts[which][rest] = tensor
    return StoredModel(
        spec=spec,
        student=parts["student"],
        teacher=parts["teacher"] or None,
        decoder_heads=heads,
        epochs_done=epochs,
        target=target,
        mask=mask,
        decoder_config=shape,
        leave=leave,
    )


def _read_released(
    path: Path,
    networks: Mapping[str, Mapping[str, Any]],
    top: Mapping[str, Any],
    num_heads: int | None,
) -> StoredModel:
    weights = read_vit(path, who="pretraining", num_heads=num_heads)
    state = next((networks[k] for k in ("state_dict", "model", "") if k in networks), {})
    student = from_official(state) if weights.format in {"hpm", "mae"} else {}
    if not student:
        student = {f"encoder.{name}": tensor for name, tensor in weights.tensors.items()}
    epoch = top.get("epoch")
    done = None
    if isinstance(epoch, int):
        # HPM stores the number of completed epochs, MAE the last one's number from 0
        done = epoch if weights.format == "hpm" else epoch + 1
    average = networks.get("ema_state_dict")
    return StoredModel(
        spec=weights.spec,
        student=student,
        teacher=from_official(average) if average is not None else None,
        epochs_done=done,
    )


def start_from(
    path: Path, model: MaskedAutoencoder, teacher: Teacher | None, *, num_heads: int
) -> int:
    """Fill a new run's networks from a checkpoint; return how many epochs it has behind it.

    The encoder must fit whole; a decoder or predictor that the file lacks keeps its initial values,
    and the log says so. A teacher that the file lacks begins as the student.
    """
    stored = read_model(path, num_heads=num_heads)
    fresh = _overlay(model, stored.student, path)
    logger.info("%s fills the student%s", path, f"; new: {', '.join(fresh)}" if fresh else "")
    if teacher is not None:
        teacher.follow(0.0)
        if stored.teacher is not None:
            _overlay(teacher, _without_decoder(stored.teacher, teacher), path)
            logger.info("%s also fills the teacher", path)
    return stored.epochs_done or 0


def _overlay(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> list[str]:
    own = model.state_dict()
    known = {name: tensor for name, tensor in state.items() if name in own}
    # fixed tables of another image size: ours are right for ours
    resized = {n for n in TABLES if n in known and known[n].shape != own[n].shape}
    known = {n: t for n, t in known.items() if n not in resized}
    wrong = [
        f"{n} is {tuple(t.shape)}, expected {tuple(own[n].shape)}"
        for n, t in known.items()
        if t.shape != own[n].shape
    ]
    missing = [n for n in own if n not in known and n not in TABLES]
    wrong += [f"missing {n}" for n in missing if n.startswith("encoder.")]
    if wrong:
        shown = first_few(wrong, separator="; ")
        raise UserError(f"{path} does not fit this run's model: {shown}")
    for extra in sorted({n.split(".")[0] for n in state if n not in own}):
        logger.info("%s: '%s' has no place in this model and is left out", path, extra)
    with torch.no_grad():
        for name, tensor in known.items():
            own[name].copy_(tensor)
    return sorted({n.split(".")[0] for n in missing})
