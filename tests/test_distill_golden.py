"""The distillation objective: head, loss and centres equal to the released code's numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.objectives.distill.config import DistillObjectiveConfig, HeadConfig
from pretrain.objectives.distill.head import ProjectionHead
from pretrain.objectives.distill.loss import DistillLoss, Logits


def close(found: Tensor, wanted: Tensor, what: str = "") -> None:
    assert found.shape == wanted.shape, what
    error = (found.detach() - wanted).abs().max() / wanted.abs().max()
    assert error < 1e-5, f"{what}: {error}"


def test_head(golden: Path) -> None:
    arrays = {k: torch.from_numpy(v) for k, v in np.load(golden / "dino_head.npz").items()}
    state = {k.removeprefix("weight/"): v for k, v in arrays.items() if k.startswith("weight/")}
    hidden, width = state["mlp.0.weight"].shape
    outputs, bottleneck = state["last_layer.weight_v"].shape
    head = ProjectionHead(width, HeadConfig(outputs=outputs, hidden=hidden, bottleneck=bottleneck))
    head.load_state_dict(state)
    close(head(arrays["x"]), arrays["y"])
    close(head.patches(arrays["x"]), arrays["y"])


@pytest.fixture
def arrays(golden: Path) -> dict[str, Tensor]:
    found = {}
    for name, value in np.load(golden / "ibot_loss.npz").items():
        found[name] = torch.as_tensor(value)
    return found


def test_loss_gradients_and_centres(arrays: dict[str, Tensor]) -> None:
    config = DistillObjectiveConfig(
        student_temperature=float(arrays["student_temp"]),
        centre_momentum=float(arrays["center_momentum"]),
        temperature_epochs=10,
    )
    assert config.temperature(3) == pytest.approx(float(arrays["teacher_temp"]))
    criterion = DistillLoss(config, arrays["center_before"].shape[-1])
    criterion.centre.copy_(arrays["center_before"])
    criterion.patch_centre.copy_(arrays["patch_center_before"])
    names = ("student_cls", "student_patch", "student_local_cls")
    inputs = [arrays[name].requires_grad_() for name in names]
    mask = arrays["mask"].flatten(0, 1).flatten(1)
    teacher = Logits(arrays["teacher_cls"], arrays["teacher_patch"])
    figures = criterion(Logits(*inputs), teacher, mask, config.temperature(3))
    close(figures["cls"], arrays["cls_loss"])
    close(figures["patch"], arrays["patch_loss"])
    close(figures["loss"], arrays["loss"])
    figures["loss"].backward()
    for name, value in zip(names, inputs, strict=True):
        assert value.grad is not None
        close(value.grad, arrays[f"grad_{name}"], name)
    assert torch.equal(criterion.centre, arrays["center_before"])
    criterion.follow()
    close(criterion.centre, arrays["center_after"])
    close(criterion.patch_centre, arrays["patch_center_after"])
