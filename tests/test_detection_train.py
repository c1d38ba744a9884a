"""Training with real detectron2: the same steps however they are cut, resumed or shared."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.engine import HookBase

from mimbench.scores.outcomes import faithful
from mimbench.system.errors import UserError
from mimbench.system.exit_codes import ExitCode
from mimbench.system.runtime import Ranks
from mimbench.task import Machine, TaskResult, load_task
from mimbench.vit.weights import VitWeights, random_weights
from tests.support.detection_run import SPEC, final, same, small
from transfer.detection import train
from transfer.detection.again import again
from transfer.detection.loop import Accumulator
from transfer.detection.vitdet import run


@pytest.fixture(scope="module")
def coco(scenes: Callable[[int, int], Path]) -> Path:
    return scenes(8, 4) / "coco"


@pytest.fixture(scope="module")
def weights() -> VitWeights:
    return random_weights(SPEC, 0)


@pytest.fixture(scope="module")
def finished(
    coco: Path, weights: VitWeights, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TaskResult]:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    return out, run(weights, small(coco), out)


@pytest.fixture(scope="module")
def whole(finished: tuple[Path, TaskResult]) -> Path:
    """Its folder."""
    return finished[0]


def test_a_run_leaves_what_the_suite_needs(finished: tuple[Path, TaskResult], coco: Path) -> None:
    whole, result = finished
    task = load_task("transfer.detection.vitdet")
    assert task.MAIN_METRIC == "box_ap"
    notes = result.notes
    # 6 + 12 x 2 tensors less class token and final norm
    assert notes["tensors"].startswith("27 of 27 backbone tensors used")
    assert notes["plan"]["steps"] == 4
    assert (notes["micro_batch"], notes["micro_steps"], notes["processes"]) == (4, 1, 1)
    boxes, masks = (figure.values for figure in result.figures)
    assert boxes.keys() == masks.keys()
    assert all(0 <= value <= 100 for value in (*boxes.values(), *masks.values()))
    assert faithful(result.outcomes, result.metrics).keys() == {"box_ap", "mask_ap"}
    assert len(result.pictures) == 4
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
    metrics = run(weights, small(coco, machine=machine), tmp_path).metrics
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

    original = train.fit
    with monkeypatch.context() as patched:
        patched.setattr(train, "fit", interrupted)
        with pytest.raises(SystemExit) as stopped:
            run(weights, small(coco), tmp_path)
    assert stopped.value.code == ExitCode.PREEMPTED
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
    metrics = again(weights, whole).metrics
    assert metrics["box_ap"] >= 0
    assert (whole / "detections.json").read_text() == before
    with pytest.raises(UserError, match="was trained from weights"):
        again(random_weights(SPEC, 9), whole)
    with pytest.raises(UserError, match="is not the folder of a run"):
        again(weights, coco)


def test_a_folder_of_another_recipe_is_refused(
    whole: Path, coco: Path, weights: VitWeights
) -> None:
    with pytest.raises(UserError, match="it differs in learning_rate"):
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
import json, os, sys
from pathlib import Path
sys.path[:0] = [{root!r}]
from tests.support.detection_run import SPEC, small
from mimbench.task import Machine
from mimbench.vit.weights import random_weights
from transfer.detection.vitdet import run
machine = Machine(device="cpu", workers=0, max_batch=1)
config = small(Path(sys.argv[1]), machine=machine, images=12)
result = run(random_weights(SPEC, 0), config, Path(sys.argv[2]))
assert result.metrics["box_ap"] >= 0
if os.environ["RANK"] == "0":
    (Path(sys.argv[2]) / "notes.json").write_text(json.dumps(dict(result.notes)))
"""


def test_micro_batches_of_one_are_the_same_for_any_machine(
    coco: Path, weights: VitWeights, tmp_path: Path
) -> None:
    """One process with four micro-steps, and two gloo processes with two, end in the same weights."""
    machine = Machine(device="cpu", workers=0, max_batch=1)
    config = small(coco, machine=machine, images=12)
    run(weights, config, tmp_path / "one")
    script = tmp_path / "part.py"
    script.write_text(PART.format(root=str(Path(__file__).parents[1])))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # what torchrun tells its processes
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    parts = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), str(coco), str(tmp_path / "two")],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    for part in parts:
        _, errors = part.communicate(timeout=280)
        assert part.returncode == 0, errors[-3000:]
    notes = json.loads((tmp_path / "two/notes.json").read_text())
    assert (notes["processes"], notes["micro_batch"], notes["micro_steps"]) == (2, 1, 2)
    assert same(final(tmp_path / "one"), final(tmp_path / "two"), 2e-5)
    ids = [d["image_id"] for d in json.loads((tmp_path / "two/detections.json").read_text())]
    assert ids == [
        d["image_id"] for d in json.loads((tmp_path / "one/detections.json").read_text())
    ]


@pytest.mark.parametrize("recompute", [False, True])
def test_how_many_pictures_fit_at_once_moves_no_weight(
    coco: Path, weights: VitWeights, tmp_path: Path, *, recompute: bool
) -> None:
    """The mask loss averaged over a micro-batch's objects, and draws followed its first picture."""
    ends = []
    for most in (1, 2, 4):
        machine = Machine(device="cpu", workers=0, max_batch=most, recompute=recompute)
        run(weights, small(coco, machine=machine, images=12, drop_path=0.5), tmp_path / str(most))
        ends.append(final(tmp_path / str(most)))
    assert same(ends[0], ends[1], 2e-5)
    assert same(ends[0], ends[2], 2e-5)


def test_scores_on_the_way_do_not_disturb_training(
    whole: Path, coco: Path, weights: VitWeights, tmp_path: Path
) -> None:
    run(weights, small(coco, eval_every=2), tmp_path)
    assert same(final(tmp_path), final(whole))
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any("box_ap" in line for line in lines)
