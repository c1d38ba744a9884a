"""The training curve survives a kill, whatever trains, and says only what was measured."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mimbench.training.curve import CURVE_FILE, Curve, read_curve, remove_curve

BEFORE = '{"step": 20, "lr": 1.0}\n{"step": 30, "lr": 1.0}\n'
AFTER = '{"step": 40, "lr": 1.0}\n'


def resumed_by_the_loop(out: Path) -> None:
    Curve(out, resumed_at=30).close()


def resumed_by_detection(out: Path) -> None:
    pytest.importorskip("detectron2")
    from transfer.detection.hooks import CurveWriter

    CurveWriter(out, 30).close()


def resumed_by_segmentation(out: Path) -> None:
    pytest.importorskip("mmseg")
    from transfer.segmentation.hooks import CurveHook

    hook, runner = CurveHook(out, total=60, start=30), SimpleNamespace()
    hook.before_train(runner)  # pyright: ignore[reportArgumentType]
    hook.after_train(runner)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "resume", [resumed_by_the_loop, resumed_by_detection, resumed_by_segmentation]
)
@pytest.mark.parametrize("torn", ["", '{"st', '{"step": 31, "loss": 0.1', "\0\0\0", "[]\n"])
def test_a_resumed_run_drops_what_it_writes_again_and_what_a_kill_cut_off(
    resume: Callable[[Path], None], torn: str, tmp_path: Path
) -> None:
    (tmp_path / CURVE_FILE).write_text(BEFORE + AFTER + torn)
    resume(tmp_path)
    assert (tmp_path / CURVE_FILE).read_text() == BEFORE


def test_a_line_holds_what_was_measured_and_nothing_else(tmp_path: Path) -> None:
    curve = Curve(tmp_path / "run", resumed_at=0)
    curve.write(1, {"loss": 2.5})
    curve.write(2, {"loss": float("nan"), "top1": 0.0})
    curve.close()
    text = (tmp_path / "run" / CURVE_FILE).read_text()
    assert text == '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": null, "top1": 0.0}\n'
    assert read_curve(tmp_path / "run") == [json.loads(line) for line in text.splitlines()]
    remove_curve(tmp_path / "run")
    assert read_curve(tmp_path / "run") == []


def test_tensorboard_gets_the_same_figures(tmp_path: Path) -> None:
    events: Any = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    curve = Curve(tmp_path, resumed_at=0, tensorboard=True)
    for step in (1, 2):
        curve.write(step, {"loss": 1 / step})
    curve.close()
    board = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in board.Scalars("loss")] == [(1, 1.0), (2, 0.5)]
