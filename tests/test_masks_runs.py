"""Whole runs of learned masks and of distillation: killed and continued, alone and in two processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mimbench.checkpoints.files import read_vit
from mimbench.training.snapshots import read_state
from pretrain.__main__ import main
from pretrain.objectives.adversarial import AdversarialPretraining
from pretrain.objectives.bank import DifficultyBank
from pretrain.objectives.curriculum import CurriculumPretraining
from pretrain.objectives.distill.learner import Distillation
from pretrain.objectives.distill.loss import DistillLoss
from tests.support.processes import as_two_ranks
from tests.support.tiny_pretrain import noisy_images

SHARED = [
    "encoder.patch=8",
    "encoder.width=24",
    "encoder.depth=2",
    "encoder.heads=2",
    "data.image_size=32",
    "optimizer.base_lr=0.05",
    "optimizer.warmup_epochs=1",
    "training.precision=fp32",
    "training.epochs=3",
    "training.batch=8",
    "training.log_every=2",
    "training.save_every=1",
    "training.tensorboard=false",
    "machine.device=cpu",
    "machine.workers=0",
]
DECODER = ["decoder.width=16", "decoder.depth=1", "decoder.heads=2", "objective.predict_loss=none"]
HEAD = ["head.outputs=12", "head.hidden=16", "head.bottleneck=8", "data.local_size=16"]
KINDS: dict[str, tuple[str, list[str]]] = {
    "adversarial": ("mae_vit_base_16", [*DECODER, "mask.name=adversarial"]),
    "attention": ("mae_vit_base_16", [*DECODER, "mask.name=attention", "mask.order=hint"]),
    "curriculum": ("mae_vit_base_16", [*DECODER, "mask.name=curriculum"]),
    "bank": (
        "hpm_vit_base_16",
        [
            *DECODER[:3],
            "mask.per=step",
            "objective.predictor=shared",
            "objective.masks=2",
            "teacher.bank=true",
            "teacher.every=0",
        ],
    ),
    "distillation": ("attmask_vit_small_16_100", [*HEAD, "data.locals=2"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_images(tmp_path_factory.mktemp("data"), 26, ".png")


def command(kind: str, folder: Path, out: Path, *more: str) -> list[str]:
    recipe, items = KINDS[kind]
    overrides = [*SHARED, *items, f"data.root={folder}", *more]
    return [recipe, "--out", str(out), *(x for item in overrides for x in ("--set", item))]


def flat(value: Any, at: str = "") -> dict[str, Tensor]:
    """Return every tensor in a nested state."""
    if isinstance(value, Tensor):
        return {at: value}
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    return {k: t for name, item in items for k, t in flat(item, f"{at}.{name}").items()}


def end(out: Path) -> dict[str, Tensor]:
    state = read_state(out / "checkpoints" / "last.pt")
    return flat({name: state[name] for name in ("model", "optimizer", "learner")})


@pytest.fixture(scope="module")
def wholes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for kind in KINDS:
        found[kind] = tmp_path_factory.mktemp(kind)
        assert main(command(kind, folder, found[kind])) == 0
    return found


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


@pytest.mark.parametrize(
    ("kind", "owner", "name", "count"),
    [
        ("adversarial", AdversarialPretraining, "judge", 4),
        ("adversarial", Path, "replace", 6),
        ("curriculum", CurriculumPretraining, "learn", 4),
        ("curriculum", Path, "replace", 6),
        ("bank", DifficultyBank, "settle", 5),
        ("bank", Path, "replace", 6),
        ("distillation", DistillLoss, "follow", 5),
        ("distillation", Distillation, "hide", 7),
        ("distillation", Path, "replace", 5),
    ],
)
def test_a_killed_run_continues_bit_for_bit(
    kind: str,
    owner: Any,
    name: str,
    count: int,
    folder: Path,
    tmp_path: Path,
    wholes: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, left = getattr(owner, name), [count]

    def bomb(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, bomb)
        with pytest.raises(Killed):
            main(command(kind, folder, tmp_path))
    assert main(command(kind, folder, tmp_path)) == 0
    one, other = end(tmp_path), end(wholes[kind])
    assert one.keys() == other.keys()
    assert len(one) > 50
    assert (".learner.bank" in one) == (kind == "bank")
    for key, tensor in other.items():
        assert torch.equal(one[key], tensor), key


@pytest.mark.parametrize("kind", ["adversarial", "curriculum", "bank", "distillation"])
def test_two_processes_equal_one_with_the_doubled_batch(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    # stochastic depth draws from each process's own generator: without it both must agree
    few = ["training.steps=4", *(["drop_path=0"] if kind == "distillation" else [])]
    shared = command(kind, folder, tmp_path / "two", *few)
    assert as_two_ranks(main, shared) == [0, 0]
    assert main(command(kind, folder, tmp_path / "one", *few)) == 0
    one, two = end(tmp_path / "one"), end(tmp_path / "two")
    assert one.keys() == two.keys()
    compared = 0
    if kind == "bank":
        # ranks of equal predictions may swap in the last bit
        apart = (one.pop(".learner.bank").int() - two[".learner.bank"].int()).abs()
        assert (apart > 1).float().mean() < 0.02
        assert (two[".learner.bank"] > 0).float().mean() > 0.5
    for key, tensor in one.items():
        # a constant added to all keys, to all logits of the generator or to all predicted losses
        # changes nothing: their gradients are rounding, of which Adam makes steps
        if tensor.is_floating_point() and not key.startswith(".optimizer") and not unmoved(key):
            error = (two[key] - tensor).norm() / tensor.norm().clamp(min=1e-6)
            assert error < 1e-5, (key, error)
            compared += 1
    assert compared > 30


def unmoved(key: str) -> bool:
    still = ("qkv.bias", "generator.net.2.bias", "predictor.norm.bias", "predictor.pred.bias")
    return key.endswith(still) or "_optimizer" in key


def test_what_is_left_behind_is_read_by_the_suite(wholes: dict[str, Path]) -> None:
    for kind, out in wholes.items():
        if kind in {"curriculum", "bank"}:
            # nothing of theirs asks a teacher
            assert not (out / "encoder-teacher.safetensors").exists()
            continue
        student = read_vit(out / "encoder.safetensors")
        assert student.spec.grid == (4, 4)
        assert student.which == "student"
        teacher = read_vit(out / "encoder-teacher.safetensors", num_heads=2)
        assert teacher.digest != student.digest, kind


def test_another_recipe_in_the_same_folder_is_refused(
    wholes: dict[str, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = wholes["distillation"]
    assert main(command("distillation", folder, out, "objective.patch_weight=0.5")) == 2
    assert "another configuration" in capsys.readouterr().err
    assert main(command("adversarial", folder, out)) == 2
    assert "another configuration" in capsys.readouterr().err


def test_the_command_knows_both_kinds_of_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["atmask_vit_small_16_100"]) == 2
    assert "did you mean 'attmask_vit_small_16_100'" in capsys.readouterr().err
