"""Each trained task hands its recipe to the one loop as it is, and one process answers for all."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mimbench.data.lists import read_folder
from mimbench.data.preprocess import Preprocess
from mimbench.features.protocol import from_main
from mimbench.features.storage import storage_effect
from mimbench.system.runtime import Ranks
from mimbench.task import Machine
from mimbench.training.loop import LoopConfig, RunContext
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from tests.support.tiny_pretrain import images, learner
from transfer.classification import attentive, finetune, linear, training
from transfer.classification.heads import Config as ProbeConfig
from transfer.classification.tuner import Config as TunerConfig

CPU = Machine(device="cpu", workers=0, max_batch=16)


class Stopped(BaseException):
    """Ends a task at the loop's door."""


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What reached the loop."""
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    found: dict[str, Any] = {}

    def fit(learner: Any, samples: Any, loop: LoopConfig, context: RunContext) -> None:
        found.update(learner=learner, samples=samples, loop=loop, context=context)
        raise Stopped

    for task in (attentive, finetune, linear):
        monkeypatch.setattr(task, "fit", fit)
    return found


@pytest.fixture
def data(painted_images: Callable[..., Path], tmp_path: Path) -> Path:
    return painted_images(tmp_path / "data", train=6, val=2)


@pytest.fixture
def weights(small_spec: VitSpec) -> VitWeights:
    return random_weights(small_spec, 0)


def test_an_attentive_probe_trains_as_it_says(
    data: Path, weights: VitWeights, tmp_path: Path, handed_over: dict[str, Any]
) -> None:
    config = attentive.Config(
        data=data, image_size=32, resize=None, queries=4, batch=8, norm_batch=4, iterations=7,
        holdout=0.25, crop=None, seed=3, precision="bf16", machine=CPU,
    )  # fmt: skip
    with pytest.raises(Stopped):
        attentive.run(weights, config, tmp_path / "out")
    loop, context = handed_over["loop"], handed_over["context"]
    # 16 of 24 images are trained on, two whole batches an epoch: 7 steps begin a fourth one
    assert (loop.batch, loop.steps, loop.epochs, loop.seed) == (8, 7, 4, 3)
    assert loop.precision == handed_over["learner"].head_precision
    assert (loop.best, loop.best_is) == ("held_out_top1", "largest")
    assert context.machine.max_batch == config.at_most
    assert len(handed_over["samples"]) == 16
    whole = replace(config, iterations=None, epochs=5)
    with pytest.raises(Stopped):
        attentive.run(weights, whole, tmp_path / "out2")
    assert (handed_over["loop"].epochs, handed_over["loop"].steps) == (5, None)
    assert handed_over["context"].digest != context.digest


@pytest.mark.parametrize(("batch_norm", "most"), [(True, 4), (False, 16)])
def test_a_linear_probe_trains_as_it_says(
    batch_norm: bool, most: int, data: Path, weights: VitWeights, tmp_path: Path,
    handed_over: dict[str, Any],
) -> None:  # fmt: skip
    config = ProbeConfig(
        data=data, image_size=32, resize=None, choices=("avg",), batch=8, norm_batch=4, epochs=9,
        seed=3, batch_norm=batch_norm, machine=CPU,
    )  # fmt: skip
    with pytest.raises(Stopped):
        linear.run(weights, config, tmp_path / "out")
    loop, context = handed_over["loop"], handed_over["context"]
    assert (loop.batch, loop.epochs, loop.seed) == (8, 9, 3)
    assert (loop.best, loop.best_is) == ("top1", "largest")
    assert context.machine.max_batch == most
    assert len(handed_over["samples"]) == 24


def test_a_fine_tune_trains_as_it_says(
    data: Path, weights: VitWeights, tmp_path: Path, handed_over: dict[str, Any]
) -> None:
    config = TunerConfig(
        data=data, image_size=32, resize=None, recipe="mae", batch=24, epochs=9, seed=3,
        precision="bf16", clip_grad=0.7, machine=CPU,
    )  # fmt: skip
    with pytest.raises(Stopped):
        finetune.run(weights, config, tmp_path / "out")
    loop, context = handed_over["loop"], handed_over["context"]
    assert (loop.batch, loop.epochs, loop.seed) == (24, 9, 3)
    assert (loop.precision, loop.clip_grad) == ("bf16", 0.7)
    assert (loop.best, loop.best_is) == ("top1", "largest")
    # two equal parts of an even number of images: mixing takes pairs
    assert context.machine.max_batch == 12
    assert len(handed_over["samples"]) == 24


def test_what_the_first_process_computes_is_everyones(tmp_path: Path) -> None:
    assert from_main(lambda: {"top1": 1}, Ranks()) == {"top1": 1}
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        # a group of this process alone, in the belief that there are two
        assert from_main(lambda: {"top1": 2}, Ranks(rank=0, world=2)) == {"top1": 2}
        assert from_main(lambda: {"top1": 3}, Ranks(rank=1, world=2)) is None
    finally:
        dist.destroy_process_group()


class StoredBank:
    """Four images, three of them kept exactly; what is stored answers otherwise."""

    spec = SimpleNamespace(storage="fp16")
    images = SimpleNamespace(labels=torch.tensor([0, 1, 2, 0]).numpy(), classes=("a", "b", "c"))

    def exact(self, choice: str) -> tuple[Any, torch.Tensor]:
        assert choice == "cls"
        return torch.tensor([0, 1, 3]).numpy(), torch.zeros(3, 2)

    def load(self, choice: str) -> torch.Tensor:
        assert choice == "cls"
        return torch.ones(4, 2)


def test_storage_is_judged_by_the_first_answer_on_the_same_images() -> None:
    def rank(bank: Any, labels: Any, queries: torch.Tensor, classes: int) -> torch.Tensor:
        assert (len(bank), labels.tolist(), len(queries), classes) == (3, [0, 1, 0], 3, 3)
        first = [0, 1, 1] if queries.sum() == 0 else [0, 2, 1]
        # the second answer would be right everywhere
        return torch.tensor([[a, b, -1, -1, -1] for a, b in zip(first, [0, 1, 0], strict=True)])

    bank: Any = StoredBank()
    found = storage_effect(bank, bank, "cls", rank)
    assert found == {
        "top1_fp32": pytest.approx(200 / 3),
        "top1_fp16": pytest.approx(100 / 3),
        "difference": pytest.approx(-100 / 3),
        "bank_images": 3,
        "images": 3,
    }


@pytest.mark.parametrize("kind", ["cross", "self"])
def test_predicted_losses_are_float32_under_mixed_precision(kind: str) -> None:
    run = learner(f"decoder.kind={kind}")
    assert run.teacher is not None
    _, patches = run.prepare(images().data)
    keys = torch.rand(4, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        views = run.teacher(patches, difficulty=True)
        sampled = run.teacher.sample(patches, keys)
    assert views.difficulty is not None
    assert views.difficulty.dtype == sampled.dtype == torch.float32


def test_each_process_answers_for_its_share_of_the_images(
    data: Path, weights: VitWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every world-th image, entered at its own place: the sum over processes is the whole."""
    images = read_folder(data, "train")
    met: list[torch.Tensor] = []
    monkeypatch.setattr(training.dist, "all_reduce", met.append)

    def answer(pixels: torch.Tensor) -> torch.Tensor:
        sums = pixels.flatten(1).long().sum(1)
        return torch.stack([sums, -sums], dim=1)

    def asked(ranks: Ranks) -> torch.Tensor:
        machine = Machine(device="cpu", workers=0, max_batch=5)
        pixels = Preprocess(size=32, resize=None)
        return training.answers(answer, images, pixels, machine, ranks=ranks, width=2)

    whole = asked(Ranks())
    assert not met
    assert whole.shape == (24, 2)
    assert len(whole.unique(dim=0)) > 12
    parts = [asked(Ranks(rank=rank, world=3)) for rank in range(3)]
    assert len(met) == 3
    assert torch.equal(torch.stack(parts).sum(0), whole)
    for rank, part in enumerate(parts):
        assert part.any(1).nonzero().flatten().tolist() == list(range(rank, 24, 3))
