"""The acceptance list for Hard Patches Mining, 17 and 18: learning and data; and no host read.

Elsewhere: 15 (resumption) in test_pretrain_run.py; 16 (fine-tuning's missing keys, layer decay) in
test_finetune.py.
"""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mimbench.system.config import from_mapping
from mimbench.system.runtime import Ranks
from mimbench.task import Machine, load_task
from mimbench.training.batches import Batch, StepSampler
from mimbench.training.learner import RunContext, StepInfo
from mimbench.training.loop import _Run
from mimbench.training.optim import plan_batch
from mimbench.training.watch import LossWatch
from mimbench.vit.weights import VitSpec, random_weights
from pretrain import masks
from pretrain.objectives.learner import Pretraining
from tests.support.tiny_pretrain import images, learner, rng, tiny

# 17 -----------------------------------------------------------------------------------------------


def test_prediction_learns_and_its_masks_are_harder() -> None:
    """On images of which some patches are flat and some are noise."""
    run = learner("objective.target=pixels", "optimizer.base_lr=1")
    generator = rng(3)
    for group in run.optimizer.param_groups:
        group["lr"] = 3e-3
    figures: dict[str, Tensor] = {}

    def batch() -> Batch:
        flat = torch.randint(0, 256, (16, 3, 1, 1), generator=generator).expand(-1, -1, 32, 32)
        noise = torch.randint(0, 256, (16, 3, 32, 32), generator=generator)
        # the right half of every image is noise: hard, and always in the same place
        data = torch.where(torch.arange(32) >= 16, noise, flat).to(torch.uint8)
        return Batch(torch.arange(16), data, ())

    for step in range(60):
        at = StepInfo(step=step, steps_per_epoch=60, epochs=1, batch=16)
        figures = run.loss(run.student, batch(), at)
        run.optimizer.zero_grad()
        figures["loss"].backward()
        run.optimizer.step()
        run.after_update(StepInfo(step=step + 1, steps_per_epoch=60, epochs=1, batch=16))
    assert figures["loss_prediction"] < math.log(2)
    assert figures["rank_correlation"] > 0.2
    assert run.teacher is not None
    run.teacher.follow(0.0)
    last = StepInfo(step=1999, steps_per_epoch=10, epochs=200, batch=16)
    fixed = batch()
    guided = run.loss(run.student, fixed, last)["reconstruction"]
    run.strategy = masks.build({"name": "random"})
    assert guided > 1.02 * run.loss(run.student, fixed, last)["reconstruction"]


# no host read -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        [],
        ["mask.name=random", "objective.predict_loss=none"],
        ["mask.per=step", "mask.order=easiest", "teacher.tokens=0.3"],
        ["objective.predict_loss=absolute", "objective.target=ema"],
        ["mask.name=attention", "objective.target=pixels"],
        ["mask.name=grid", "machine.recompute=true"],
        ["mask.name=block"],
    ],
    ids=lambda change: ",".join(change) or "usual",
)
def test_a_step_reads_nothing_back_from_the_device(
    change: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device there is nothing to read, so any read within a step would fail."""
    generator, adamw, meta = torch.Generator, torch.optim.AdamW, torch.device("meta")
    monkeypatch.setattr(torch, "Generator", lambda device=None: generator())
    monkeypatch.setattr(torch.optim, "AdamW", lambda *a, fused, **k: adamw(*a, **k))
    # neither has a form for the meta device; both do the same without the host
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, n, foreach: clip(p, n))
    monkeypatch.setattr(torch, "autocast", lambda device, enabled: contextlib.nullcontext())
    config = tiny(*change, "training.batch=4", "training.log_every=4", "training.save_every=0")
    own = Pretraining(config, meta, out=tmp_path)
    samples = Pictures(40)
    context = RunContext(out=tmp_path, digest="d", machine=Machine(workers=0, max_batch=2))
    run = _Run(own, samples, config.loop(), context)
    # the device's own flag stops a fused optimizer, so that the host need not look
    monkeypatch.setattr(LossWatch, "always", property(lambda self: False))
    batches = iter(batch._replace(data=batch.data.to(meta)) for batch in map(images, [2] * 8))
    for _ in range(3):
        run._update(batches)
        run._look()
        run._keep()
    assert run.now.step == 3
    run._update(batches)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        run._look()


class Pictures:
    """A data set that is never asked for anything."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        raise AssertionError(index)

    def name(self, index: int) -> str:
        return str(index)


# 18 -----------------------------------------------------------------------------------------------


def test_every_image_of_a_full_epoch_is_seen_once() -> None:
    sampler = StepSampler(40, 8, plan_batch(8, world=1, at_most=4), Ranks(), 0, 0, 5)
    assert sorted(i for batch in sampler for _, i in batch) == list(range(40))


@pytest.mark.parametrize("task", ["knn.classify", "transfer.classification.linear"])
def test_every_validation_image_is_scored_with_its_own_label(
    task: str,
    painted_images: Callable[..., Path],
    small_spec: VitSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Classes of different sizes, and a batch that does not divide the images."""
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    data = painted_images(tmp_path / "data", train=6, val=5)
    (data / "val" / "class_1" / "val_1_000.png").unlink()
    settings: dict[str, Any] = {
        "data": str(data),
        "image_size": 32,
        "resize": None,
        "choices": ["avg"],
        "machine": {"device": "cpu", "workers": 0, "max_batch": 4},
    }
    more = {"k": [5], "main_k": 5}
    if task.endswith("linear"):
        more = {"batch": 8, "norm_batch": 8, "epochs": 1, "warmup": 0, "learning_rates": [1.0]}
    module = load_task(task)
    config = from_mapping(module.Config, {**settings, **more})
    result = module.run(random_weights(small_spec, 0), config, tmp_path / "out")
    found = result.outcomes[0].arrays()
    files = sorted((data / "val").rglob("*.png"))
    assert len(files) == 19
    assert sorted(found["images"].tolist()) == [str(f.relative_to(data / "val")) for f in files]
    for name, label in zip(found["images"], found["labels"], strict=True):
        assert name.startswith(f"class_{label}/")
    right = found["top5"][:, 0] == found["labels"]
    assert result.metrics["top1"] == pytest.approx(100 * right.mean())
