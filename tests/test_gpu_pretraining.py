"""Pretraining on a GPU: the CPU's losses and gradients, no blocking read, exact resume, signals.

`pytest -m gpu` needs a GPU; MIMBENCH_GPU_DEVICE=cpu rehearses the tests without one.
"""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from mimbench.system.runtime import autocast
from mimbench.training.batches import Batch
from mimbench.training.learner import Learner, StepInfo
from mimbench.training.optim import set_lr
from mimbench.training.snapshots import read_state
from pretrain import masks
from pretrain.__main__ import main
from pretrain.objectives.adversarial import AdversarialPretraining
from pretrain.objectives.distill.learner import Distillation
from pretrain.objectives.learner import Pretraining
from tests.support import tiny_distill, tiny_pretrain
from tests.support.gpu import TOLERANCE, apart, chosen_device, no_blocking_reads, real_gpu

pytestmark = pytest.mark.gpu

SWITCHES: dict[str, list[str]] = {
    "hpm": [],
    "mae": ["objective.predict_loss=none", "mask.name=random"],
    "ema-features": ["objective.target=ema"],
    "attention": ["mask.name=attention", "objective.predict_loss=none"],
    "grid": ["mask.name=grid", "objective.predict_loss=none"],
    "block": ["mask.name=block", "objective.predict_loss=none"],
}


@pytest.fixture
def device() -> torch.device:
    return chosen_device()


def pretraining(device: torch.device, *change: str) -> Pretraining:
    torch.manual_seed(0)
    config = tiny_pretrain.tiny(*change, f"machine.device={device}")
    learner = Pretraining(config, torch.device("cpu"), out=Path("unused"))
    return (
        Pretraining(config, device, out=Path("unused"))
        if device.type == "cpu"
        else move(learner, config, device)
    )


def move(learner: Pretraining, config: Any, device: torch.device) -> Pretraining:
    """Return the same networks on the device: initial weights are drawn on the CPU."""
    moved = Pretraining(config, device, out=Path("unused"))
    moved.student.load_state_dict(learner.student.state_dict())
    if moved.teacher is not None and learner.teacher is not None:
        moved.teacher.load_state_dict(learner.teacher.state_dict())
    return moved


def on(batch: Batch, device: torch.device) -> Batch:
    data = batch.data
    moved = (
        {k: v.to(device) for k, v in data.items()} if isinstance(data, dict) else data.to(device)
    )
    return batch._replace(data=moved)


def gradients(learner: Learner) -> dict[str, Tensor]:
    return {n: p.grad for n, p in learner.model.named_parameters() if p.grad is not None}


def step(learner: Learner, batch: Batch, at: StepInfo) -> None:
    """Take one optimizer step as the loop does, without its own reading of the loss."""
    learner.optimizer.zero_grad(set_to_none=True)
    learner.loss(learner.model, batch, at)["loss"].backward()
    learner.before_update(at)
    learner.optimizer.step()
    learner.after_update(at)


@pytest.mark.parametrize("name", list(SWITCHES))
def test_losses_and_gradients_equal_the_cpus(name: str, device: torch.device) -> None:
    batch, at = tiny_pretrain.images(), tiny_pretrain.step_info()
    found = []
    for place in (torch.device("cpu"), device):
        learner = pretraining(place, *SWITCHES[name])
        figures = learner.loss(learner.model, on(batch, place), at)
        figures["loss"].backward()
        found.append((figures["loss"], gradients(learner)))
    (loss, wanted), (other, grads) = found
    assert apart(other, loss) < TOLERANCE["fp32"]
    assert grads.keys() == wanted.keys()
    whole = torch.cat([g.flatten() for g in wanted.values()]).abs().max()
    for key, gradient in grads.items():
        assert (gradient.cpu() - wanted[key]).abs().max() < 1e-4 * whole, key


@pytest.mark.parametrize("name", list(SWITCHES))
def test_a_step_never_waits_for_the_device(name: str, device: torch.device) -> None:
    learner = pretraining(device, *SWITCHES[name])
    batch, at = on(tiny_pretrain.images(), device), tiny_pretrain.step_info()
    set_lr(learner.optimizer, 1e-4)
    step(learner, batch, at)  # optimizer states are made in the first step
    with no_blocking_reads(device):
        step(learner, batch, at)


def test_a_distillation_step_never_waits_for_the_device(device: torch.device) -> None:
    torch.manual_seed(0)
    config = tiny_distill.tiny(f"machine.device={device}")
    learner = Distillation(config, device, Path("unused"))
    batch, at = on(tiny_distill.batch(), device), tiny_distill.at()
    set_lr(learner.optimizer, 1e-4)
    step(learner, batch, at)
    with no_blocking_reads(device):
        step(learner, batch, at)


def test_an_adversarial_step_never_waits_for_the_device(device: torch.device) -> None:
    torch.manual_seed(0)
    change = ("mask.name=adversarial", "objective.predict_loss=none")
    config = tiny_pretrain.tiny(*change, f"machine.device={device}")
    learner = AdversarialPretraining(config, device, Path("unused"))
    batch, at = on(tiny_pretrain.images(), device), tiny_pretrain.step_info()
    set_lr(learner.optimizer, 1e-4)
    step(learner, batch, at)
    with no_blocking_reads(device):
        step(learner, batch, at)


@pytest.mark.parametrize("name", sorted(masks.available()))
def test_masks_of_one_seed_are_equal_on_both_devices(name: str, device: torch.device) -> None:
    strategy = masks.build({"name": name})
    source = torch.Generator().manual_seed(9)
    inp = masks.MaskInput(
        batch=5,
        grid=(14, 14),
        device=torch.device("cpu"),
        difficulty=torch.randn(5, 196, generator=source),
        attention=torch.rand(5, 196, generator=source).softmax(1),
        images=torch.randn(5, 3, 224, 224, generator=source),
        log_probability=torch.randn(5, 196, generator=source).log_softmax(1),
    )
    moved = {
        field: value.to(device)
        for field in ("difficulty", "attention", "images", "log_probability")
        if isinstance(value := getattr(inp, field), Tensor)
    }
    wanted = strategy(inp, torch.Generator().manual_seed(3))
    found = strategy(replace(inp, device=device, **moved), torch.Generator().manual_seed(3))
    assert found.device.type == device.type
    assert (found.cpu() == wanted).float().mean() > 0.999


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns(precision: Any, device: torch.device) -> None:
    if precision == "fp16":
        real_gpu(device)
    learner = pretraining(device, "objective.predict_loss=none", "mask.name=random")
    scaler = GradScaler(device.type, enabled=precision == "fp16")
    batch, at = on(tiny_pretrain.images(16), device), tiny_pretrain.step_info(batch=16)
    set_lr(learner.optimizer, 3e-3)
    losses = []
    for _ in range(40):
        learner.optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            loss = learner.loss(learner.model, batch, at)["loss"]
        scaler.scale(loss).backward()
        scaler.step(learner.optimizer)
        scaler.update()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_a_compiled_step_gives_the_same_loss(device: torch.device) -> None:
    real_gpu(device)
    batch, at = on(tiny_pretrain.images(), device), tiny_pretrain.step_info()
    plain, compiled = (pretraining(device) for _ in range(2))
    compiled.student.compile()
    wanted = plain.loss(plain.model, batch, at)["loss"]
    found = compiled.loss(compiled.model, batch, at)["loss"]
    assert apart(found, wanted) < 1e-4


SHORT = [
    *tiny_pretrain.NETWORK[:-1],
    "encoder.patch=8",
    "encoder.depth=2",
    "optimizer.warmup_epochs=1",
    "training.precision=fp32",
    "training.epochs=3",
    "training.batch=8",
    "training.save_every=1",
    "training.tensorboard=false",
    "machine.workers=0",
]


def command(device: torch.device, images: Path, out: Path) -> list[str]:
    items = [*SHORT, f"machine.device={device}", f"data.root={images}"]
    return ["hpm_vit_base_16", "--out", str(out), *(x for i in items for x in ("--set", i))]


def test_a_run_stopped_by_sigterm_saves_and_goes_on_exactly(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tiny_pretrain.noisy_images(tmp_path / "data", 24, ".png")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main(command(device, images, whole)) == 0
    after, calls = Pretraining.after_update, [0]

    def stop(self: Pretraining, at: StepInfo) -> None:
        after(self, at)
        calls[0] += 1
        if calls[0] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "after_update", stop)
        try:
            code = main(command(device, images, stopped))
        except SystemExit as left:
            code = int(left.code or 0)
    assert code != 0
    assert main(command(device, images, stopped)) == 0
    wanted, found = (
        read_state(out / "checkpoints" / "last.pt")["model"] for out in (whole, stopped)
    )
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
