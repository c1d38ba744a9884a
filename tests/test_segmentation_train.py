"""Real training: mmseg's UperNet and the linear head on the sample scenes, in one process."""

import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from mimbench.benchmarks.records import keep_pictures
from mimbench.scores.confusion import Confusion
from mimbench.scores.outcomes import faithful
from mimbench.system.errors import UserError
from mimbench.task import TaskResult, load_task
from mimbench.training.watch import Preempted
from mimbench.vit.weights import random_weights
from tests.support.segmentation_runs import CPU, SPEC, WEIGHTS, linear_config, upernet_config
from transfer.segmentation import console, hooks, linear, upernet
from transfer.segmentation.again import again
from transfer.segmentation.command import main
from transfer.segmentation.score import score

Finished = tuple[Path, TaskResult]


@pytest.fixture(scope="module")
def ade(scenes: Callable[[int, int], Path]) -> Path:
    return scenes(10, 3) / "ade"


@pytest.fixture(scope="module")
def finished(ade: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One whole UperNet run with a multi-scale test."""
    out = tmp_path_factory.mktemp("runs") / "upernet"
    return out, upernet.run(WEIGHTS, upernet_config(ade, multiscale=(0.5, 1.25)), out)


def curve(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_both_tasks_meet_the_contract() -> None:
    for name in ("upernet", "linear"):
        task = load_task(f"transfer.segmentation.{name}")
        assert (task.VERSION, task.MAIN_METRIC) == (1, "miou")


def test_a_run_leaves_everything_behind(finished: Finished, tmp_path: Path) -> None:
    out, result = finished
    metrics, notes = result.metrics, result.notes
    assert {"miou", "aacc", "macc", "classes_averaged", "miou_ms"} <= set(metrics)
    assert {"miou_stuff", "miou_things"} <= set(metrics)
    lines = curve(out)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "miou" in line] == [4]
    assert lines[0]["loss"] > lines[-1]["loss"]
    assert notes["backbone"] == "MAE"
    assert notes["tensors_used"].startswith("52 of 52, besides norm.weight, norm.bias")
    assert (notes["micro_batch"], notes["micro_steps"]) == (2, 2)
    assert "2 of the effective batch's 4 images" in notes["batch_norm"]
    assert notes["classes_averaged"] == metrics["classes_averaged"]
    assert "wall" in result.figures[0].values
    names = ["x"] * 150
    kept, several = result.outcomes
    assert isinstance(kept, Confusion)
    assert isinstance(several, Confusion)
    assert kept.images[0] == "images/validation/ADE_val_00000001.jpg"
    assert kept.labelled.shape == (3, 150)
    assert score(kept, names).miou == metrics["miou"]
    assert score(several, names).miou == metrics["miou_ms"]
    assert faithful(result.outcomes, metrics).keys() == {"miou", "miou_ms"}
    assert not list(out.rglob("*.pth"))
    assert "UPerHead" in (out / "mmengine_config.py").read_text()
    kept_pictures = keep_pictures(tmp_path, result.pictures)
    assert len(kept_pictures) == 3
    assert all(1_000 < picture.stat().st_size < 400_000 for picture in kept_pictures)


def test_chatter_stays_off_the_standard_output(
    finished: Finished, ade: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    linear.run(WEIGHTS, linear_config(ade, iterations=3), tmp_path)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "train 3/3 100%" in printed.err
    assert "test 3/3 100%" in printed.err


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send the signal of a preempted job while this step runs."""
    original = hooks.StateHook.after_train_iter

    def after(self: hooks.StateHook, runner: Runner, batch_idx: int, **rest: Any) -> None:
        if batch_idx + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, runner, batch_idx, **rest)

    monkeypatch.setattr(hooks.StateHook, "after_train_iter", after)


def test_resume_gives_the_same_weights(
    finished: Finished, ade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected = finished
    config = upernet_config(ade, multiscale=(0.5, 1.25))
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        with pytest.raises(Preempted):
            upernet.run(WEIGHTS, config, tmp_path)
    assert (tmp_path / "state.pth").is_file()
    assert not (tmp_path / "model.safetensors").exists()
    assert torch.load(tmp_path / "state.pth", weights_only=True)["step"] == 5
    assert upernet.run(WEIGHTS, config, tmp_path).metrics == expected.metrics
    a, b = (load_file(folder / "model.safetensors") for folder in (whole, tmp_path))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert curve(tmp_path) == curve(whole)


def test_another_run_in_the_same_folder_is_refused(finished: Finished, ade: Path) -> None:
    out, _ = finished
    with pytest.raises(UserError, match="holds a run of another configuration or checkpoint"):
        upernet.run(WEIGHTS, upernet_config(ade, lr=1e-3), out)
    with pytest.raises(UserError, match="another configuration or checkpoint"):
        upernet.run(random_weights(SPEC, seed=1), upernet_config(ade), out)


def test_a_finished_run_is_scored_and_drawn_again(
    finished: Finished, ade: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, expected = finished
    assert main(["--eval-only", str(out), "--show", "2", "--device", "cpu"]) == 0
    printed = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert float(printed["miou"]) == pytest.approx(expected.metrics["miou"], abs=1e-4)
    pictures = sorted((out / "pictures").glob("*.png"))
    assert [p.stem for p in pictures] == [f"ADE_val_0000000{i}" for i in (1, 3)]
    with Image.open(pictures[0]) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        assert picture.width > 3 * 192
    # brick is drawn in the colour of ADE20K's wall
    assert (pixels == (120, 120, 120)).all(axis=1).any()
    with pytest.raises(UserError, match="is not the folder of a run"):
        again(out.parent)


@pytest.fixture(scope="module")
def single(ade: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One whole linear run in one process and one micro-batch."""
    out = tmp_path_factory.mktemp("runs") / "linear"
    machine = replace(CPU, max_batch=4)
    return out, linear.run(WEIGHTS, linear_config(ade, machine=machine), out)


def assert_close(a: Path, b: Path) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in (a, b))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-5, rtol=1e-4)


def test_micro_batches_leave_the_result_alone(single: Finished, ade: Path, tmp_path: Path) -> None:
    whole, expected = single
    found = linear.run(WEIGHTS, linear_config(ade), tmp_path)
    assert found.notes["micro_steps"] == 2
    assert_close(whole, tmp_path)
    assert found.metrics["miou"] == pytest.approx(expected.metrics["miou"], abs=0.05)


def test_frozen_backbone_stays_as_it_was(single: Finished) -> None:
    out, result = single
    tensors = load_file(out / "model.safetensors")
    for name, value in WEIGHTS.tensors.items():
        own = "backbone." + name.replace("blocks.", "layers.")
        if name != "pos_embed":
            assert torch.equal(tensors[own], value)
    assert result.notes["tensors_used"] == "54 of 54"
    assert result.metrics["classes_averaged"] >= 8


def test_mixed_precision_is_never_pretended(ade: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="precision=fp16 needs a GPU"):
        linear.run(WEIGHTS, linear_config(ade, precision="fp16"), tmp_path)


def test_a_lost_loss_stops_the_run(ade: Path, tmp_path: Path) -> None:
    weights = replace(WEIGHTS, tensors={n: v * float("nan") for n, v in WEIGHTS.tensors.items()})
    with pytest.raises(UserError, match="the loss is nan at step 1; try a lower learning rate"):
        linear.run(weights, linear_config(ade), tmp_path)


def test_out_of_memory_becomes_advice(ade: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = 24 * 2**30

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 23 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card)
    config = upernet_config(ade, machine=replace(CPU, max_batch=8), batch=16)
    with pytest.raises(UserError) as caught, console.advice(config):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    message = str(caught.value)
    assert "(peak 23.0 of 24.0 GiB on cuda:0): CUDA out of memory" in message
    assert "set machine.max_batch=4" in message
    assert "effective batch stays 16" in message


def test_a_cpu_that_runs_out_of_memory_gives_the_same_advice(ade: Path) -> None:
    """The allocator really refuses: a petabyte is more than any machine has."""
    config = upernet_config(ade, batch=16)
    with pytest.raises(UserError) as caught, console.advice(config):
        torch.empty(2**50, dtype=torch.uint8)
    assert re.search(r"peak \d+\.\d GiB of this process", str(caught.value))
    with pytest.raises(RuntimeError, match="shapes"), console.advice(config):
        torch.mm(torch.zeros(2, 3), torch.zeros(2, 3))


def test_bfloat16_is_really_on(ade: Path, tmp_path: Path) -> None:
    """Seen inside blocks and heads: bfloat16 while training, float32 for weights and tests."""
    seen: set[tuple[str, bool, torch.dtype]] = set()

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            seen.add((type(module).__name__, module.training, output.dtype))

    hook = register_module_forward_hook(look)
    try:
        config = upernet_config(ade, precision="bf16", evaluate_every=6)
        result = upernet.run(WEIGHTS, config, tmp_path)
    finally:
        hook.remove()
    for kind in ("Linear", "Conv2d"):
        assert {dtype for name, training, dtype in seen if name == kind and training} == {
            torch.bfloat16
        }
        assert {dtype for name, training, dtype in seen if name == kind and not training} == {
            torch.float32
        }
    tensors = load_file(tmp_path / "model.safetensors")
    assert {v.dtype for v in tensors.values() if v.is_floating_point()} == {torch.float32}
    assert result.notes["mixed_precision"] == "bf16"
    lines = curve(tmp_path)
    assert lines[0]["loss"] > lines[-1]["loss"]
