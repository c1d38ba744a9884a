"""Training with real detectron2: the same steps however they are cut, resumed or shared."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("detectron2")

from detectron2.engine import HookBase

from mimbench.errors import UserError
from mimbench.runtime import Ranks
from mimbench.sample import generate
from mimbench.task import Machine, load_task
from mimbench.watch import PREEMPTED
from mimbench.weights import VitSpec, VitWeights, random_weights
from transfer.detection import order, vitdet
from transfer.detection.train import Accumulator, advice, save_period
from transfer.detection.vitdet import Config, evaluate_run, run
from transfer.detection.watch import Curve

SPEC = VitSpec(embed_dim=24, depth=2, num_heads=3, mlp_dim=48, patch_size=8, grid=(4, 4))


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample") / "s"
    generate(root, train_per_class=1, val_per_class=1, train_scenes=8, val_scenes=4)
    return root / "coco"


@pytest.fixture(scope="module")
def weights() -> VitWeights:
    return random_weights(SPEC, 0)


def small(coco: Path, **changes: Any) -> Config:
    """Four steps of four pictures through a detector of a few thousand weights."""
    return Config(
        **{
            "data": coco,
            "image_size": 64,
            "patch_size": None,
            "window": 4,
            "global_blocks": 1,
            "batch": 4,
            "images": 16,
            "learning_rate": 1e-3,
            "warmup": 0.1,
            "drops": (0.5, 0.8),
            "drop_path": 0.2,
            "precision": "fp32",
            "pyramid_channels": 16,
            "anchor_scale": 4.0,
            "box_convs": 1,
            "box_width": 16,
            "mask_convs": 1,
            "proposals": 16,
            "regions": 8,
            "eval_every": 0,
            "machine": Machine(device="cpu", workers=0, max_batch=4),
            **changes,
        }
    )


def final(out: Path) -> dict[str, Tensor]:
    return torch.load(out / "checkpoints/model_final.pth", weights_only=True)["model"]


def same(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    assert first.keys() == second.keys()
    return all((first[n] - second[n]).abs().max() <= tolerance for n in first)


@pytest.fixture(scope="module")
def whole(coco: Path, weights: VitWeights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    run(weights, small(coco), out)
    return out


def test_a_run_leaves_what_the_suite_needs(whole: Path, coco: Path) -> None:
    task = load_task("transfer.detection.vitdet")
    assert task.MAIN_METRIC == "box_ap"
    extra = json.loads((whole / "extra.json").read_text())
    # 6 + 12 x 2 tensors less class token and final norm
    assert extra["tensors"].startswith("27 of 27 backbone tensors used")
    assert extra["plan"]["steps"] == 4
    assert (extra["micro_batch"], extra["micro_steps"], extra["processes"]) == (4, 1, 1)
    found = json.loads((whole / "detections.json").read_text())
    ids = {
        p["id"]
        for p in json.loads((coco / "annotations/instances_val2017.json").read_text())["images"]
    }
    assert {d["image_id"] for d in found} <= ids
    assert {d["category_id"] for d in found} <= {1, 2, 3, 5, 7, 11, 13, 17, 19, 23}
    assert found[0].keys() == {"image_id", "category_id", "bbox", "score", "segmentation"}
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 4
    assert lines[-1]["total_loss"] > 0
    assert lines[-1]["lr"] == pytest.approx(1e-4)


def test_training_moves_the_whole_backbone(whole: Path, weights: VitWeights) -> None:
    trained = final(whole)
    for name, tensor in weights.tensors.items():
        if not name.startswith(("cls_token", "norm.")):
            assert not torch.equal(trained[f"backbone.net.{name}"], tensor), name


def test_the_same_run_gives_the_same_weights_and_figures(
    whole: Path, coco: Path, weights: VitWeights, tmp_path: Path
) -> None:
    torch.manual_seed(77)
    # loader processes and memory options belong to the machine
    machine = Machine(device="cpu", workers=2, max_batch=4, recompute=True)
    metrics = run(weights, small(coco, machine=machine), tmp_path)
    assert same(final(tmp_path), final(whole), 1e-6)
    assert metrics.keys() >= {"box_ap", "box_ap50", "box_ap75", "mask_ap"}


class Stop(HookBase):
    """Interrupts the training as a preempting scheduler does."""

    def __init__(self, after: int) -> None:
        self.after = after

    def after_step(self) -> None:
        if self.trainer.iter + 1 == self.after:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_run_ends_with_the_same_weights(
    after: int,
    whole: Path,
    coco: Path,
    weights: VitWeights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(trainer: Any, course: Any, out: Path, ranks: Ranks) -> None:
        trainer.register_hooks([Stop(after)])
        original(trainer, course, out, ranks)

    original = vitdet.fit
    with monkeypatch.context() as patched:
        patched.setattr(vitdet, "fit", interrupted)
        with pytest.raises(SystemExit) as stopped:
            run(weights, small(coco), tmp_path)
    assert stopped.value.code == PREEMPTED
    assert not (tmp_path / "checkpoints/model_final.pth").exists()
    run(weights, small(coco), tmp_path)
    assert same(final(tmp_path), final(whole))
    assert (tmp_path / "detections.json").read_text() == (whole / "detections.json").read_text()
    steps = [json.loads(x)["step"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_a_finished_run_is_only_scored_again(
    whole: Path, coco: Path, weights: VitWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (whole / "detections.json").read_text()
    monkeypatch.setattr(Accumulator, "run_step", lambda self: pytest.fail("trained again"))
    run(weights, small(coco), whole)
    assert (whole / "detections.json").read_text() == before


def test_eval_only_reproduces_the_figures(whole: Path, coco: Path, weights: VitWeights) -> None:
    before = (whole / "detections.json").read_text()
    (whole / "detections.json").unlink()
    metrics = evaluate_run(weights, whole)
    assert metrics["box_ap"] >= 0
    assert (whole / "detections.json").read_text() == before
    with pytest.raises(UserError, match="was trained from weights"):
        evaluate_run(random_weights(SPEC, 9), whole)
    with pytest.raises(UserError, match="is not the folder of a detection run"):
        evaluate_run(weights, coco)


def test_a_folder_of_another_recipe_is_refused(
    whole: Path, coco: Path, weights: VitWeights
) -> None:
    with pytest.raises(UserError, match="holds a run that differs in learning_rate"):
        run(weights, small(coco, learning_rate=2e-3), whole)
    with pytest.raises(UserError, match="differs in weights"):
        run(random_weights(SPEC, 5), small(coco), whole)


def test_a_damaged_state_is_named(
    whole: Path, coco: Path, weights: VitWeights, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "model_final.pth").write_bytes(b"not a checkpoint")
    (folder / "last_checkpoint").write_text("model_final.pth")
    with pytest.raises(UserError, match="cannot be read"):
        run(weights, small(coco), tmp_path)


PART = """
import sys
from pathlib import Path
sys.path[:0] = {paths}
from test_detection_train import SPEC, small
from mimbench.task import Machine
from mimbench.weights import random_weights
from transfer.detection.vitdet import run
machine = Machine(device="cpu", workers=0, max_batch=1)
config = small(Path(sys.argv[1]), machine=machine, images=12)
assert run(random_weights(SPEC, 0), config, Path(sys.argv[2]))["box_ap"] >= 0
"""


def test_micro_batches_of_one_are_the_same_for_any_machine(
    coco: Path, weights: VitWeights, tmp_path: Path
) -> None:
    """One process with four micro-steps, and two gloo processes with two, end in the same weights."""
    machine = Machine(device="cpu", workers=0, max_batch=1)
    config = small(coco, machine=machine, images=12)
    run(weights, config, tmp_path / "one")
    script = tmp_path / "part.py"
    script.write_text(
        PART.format(paths=[str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # what torchrun tells its processes
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    parts = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), str(coco), str(tmp_path / "two")],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **told, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    for part in parts:
        _, errors = part.communicate(timeout=280)
        assert part.returncode == 0, errors[-3000:]
    extra = json.loads((tmp_path / "two/extra.json").read_text())
    assert (extra["processes"], extra["micro_batch"], extra["micro_steps"]) == (2, 1, 2)
    assert same(final(tmp_path / "one"), final(tmp_path / "two"), 2e-5)
    ids = [d["image_id"] for d in json.loads((tmp_path / "two/detections.json").read_text())]
    assert ids == [
        d["image_id"] for d in json.loads((tmp_path / "one/detections.json").read_text())
    ]


class Toy(nn.Module):
    """A linear regression that speaks detectron2's language: a batch in, a dict of losses out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(5, 3)

    def forward(self, batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        x = torch.stack([item["x"] for item in batch])
        y = torch.stack([item["y"] for item in batch])
        error = self.linear(x) - y
        return {"square": error.square().mean(), "absolute": error.abs().mean()}


def toy_batches(size: int) -> Iterator[list[dict[str, Tensor]]]:
    g = torch.Generator().manual_seed(1)
    while True:
        yield [
            {"x": torch.randn(5, generator=g), "y": torch.randn(3, generator=g)}
            for _ in range(size)
        ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_accumulating_64_pictures_is_one_batch_of_64(precision: Any) -> None:
    ends = []
    for size, micro in ((64, 1), (16, 4), (1, 64)):
        model = Toy()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        trainer = Accumulator(
            model, toy_batches(size), optimizer, micro_steps=micro, precision=precision, seed=None
        )
        trainer.train(0, 8)
        ends.append({k: v.clone() for k, v in model.state_dict().items()})
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    assert not same(ends[0], Toy().state_dict(), 1e-3)
    assert same(ends[0], ends[1], tolerance)
    assert same(ends[0], ends[2], tolerance)


def test_bf16_trains_and_fp16_needs_a_gpu(coco: Path, weights: VitWeights, tmp_path: Path) -> None:
    run(weights, small(coco, precision="bf16", images=4), tmp_path)
    assert all(tensor.isfinite().all() for tensor in final(tmp_path).values())
    with pytest.raises(UserError, match="precision fp16 needs a CUDA GPU"):
        run(weights, small(coco, precision="fp16"), tmp_path / "x")


def test_scores_on_the_way_do_not_disturb_training(
    whole: Path, coco: Path, weights: VitWeights, tmp_path: Path
) -> None:
    run(weights, small(coco, eval_every=2), tmp_path)
    assert same(final(tmp_path), final(whole))
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any("box_ap" in line for line in lines)


def test_missing_memory_becomes_advice(
    coco: Path, weights: VitWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Accumulator) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Accumulator, "run_step", full)
    with pytest.raises(UserError, match=r"(?s)out of memory on cpu \(peak \d+\.\d GiB.*max_batch"):
        run(weights, small(coco), tmp_path)


def test_other_failures_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), advice(torch.device("cpu")):
        raise RuntimeError("shapes differ")
    with pytest.raises(UserError, match="out of memory"), advice(torch.device("cpu")):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


def test_a_loss_that_is_no_number_stops_with_advice(
    coco: Path, weights: VitWeights, tmp_path: Path
) -> None:
    broken = replace(
        weights,
        tensors={**weights.tensors, "patch_embed.proj.bias": torch.full((24,), float("nan"))},
    )
    with pytest.raises(UserError, match=r"(?s)Inf/NaN.*weights saved last are still sound"):
        run(broken, small(coco), tmp_path)


def test_the_curve_drops_what_an_interrupted_run_wrote_too_far(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 20, "lr": 1}\n{"step": 40, "lr": 1}\n')
    Curve(path, 30).close()
    assert path.read_text() == '{"step": 20, "lr": 1}\n'


def test_states_are_saved_as_officially_and_more_often_in_short_runs() -> None:
    assert [save_period(steps) for steps in (184_375, 88_750, 300, 4)] == [5000, 5000, 30, 1]


def test_seeds_of_positions_are_far_apart() -> None:
    seeds = {order.mixed(seed, position) for seed in range(3) for position in range(200)}
    assert len(seeds) == 600
