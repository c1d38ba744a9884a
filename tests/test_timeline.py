"""The timeline of a run: every saved state scored once, resumable, with images and seconds beside."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimbench.benchmarks import lifecycle
from mimbench.benchmarks.manifest import load_manifest
from mimbench.benchmarks.preflight import inspect_recipe
from mimbench.system.errors import UserError
from mimbench.system.runtime import Ranks
from pretrain import timeline
from pretrain.config import read_config
from pretrain.train import train
from tests.support.tiny_pretrain import TINY, noisy_images

MANIFEST = """
defaults: {}
protocols: {}
benchmarks:
  in-knn:
    title: k-NN
    group: knn
    task: knn.classify
    dataset: sample-classification
    config: {choices: [avg], image_size: 32, resize: null, k: [3], main_k: 3}
    profiles: {demo: {}}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A pretraining of two epochs that kept both."""
    noisy_images(tmp_path / "noise", 8)
    plain = [part for part in TINY if not part.startswith("data.root=")]
    own = [
        f"data.root={tmp_path}/noise",
        "training.epochs=2",
        "optimizer.warmup_epochs=0",
        "training.keep_every=1",
        "training.log_every=1",
        "training.tensorboard=false",
        "machine.workers=0",
        "training.precision=fp32",
    ]
    config = read_config("hpm_vit_base_16", [*plain, *own])
    train(config, tmp_path / "run", ranks=Ranks())
    return tmp_path / "run"


def test_every_state_is_scored_once_and_the_picture_shows_both_axes(
    run: Path,
    tmp_path: Path,
    scenes: Callable[[int, int], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cards = scenes(8, 4)
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mimbench.sample.sample_root", lambda: cards)
    manifest = tmp_path / "benchmarks.yaml"
    manifest.write_text(MANIFEST, encoding="utf-8")
    arguments = [str(run), "--profile", "demo", "--only", "in-knn", "--workers", "0"]
    arguments += ["--benchmarks", str(manifest), "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        # asking the tasks in a process of its own would make the real sample data
        patch.setattr("mimbench.benchmarks.cells.preflight", _here)
        assert timeline.main(arguments) == 0
        rows = json.loads((run / "timeline/timeline.json").read_text())
        assert [row["images"] for row in rows] == [8, 16]
        assert [row["step"] for row in rows] == [2, 4]
        # the table rounds them
        first, last = (state.seconds for state in timeline.states_of(run))
        assert 0 < first < last
        assert all(row["loss"] > 0 and "in-knn top1" in row["scores"] for row in rows)
        drawn = (run / "timeline/timeline.svg").read_text()
        # loss, k-NN, and three figures of the masks
        assert drawn.count(">images<") == drawn.count(">seconds<") == 5
        assert drawn.count('stroke="var(--c0)"') == 2 * 5
        assert ":root{--c0:#" in drawn, "a picture of its own brings the colours that it uses"
        patch.setattr(lifecycle, "evaluate", lambda *_: pytest.fail("scored again"))
        assert timeline.main(arguments) == 0


def _here(queries: Any, data: Any, *, own: bool = False, specs: Any = ()) -> Any:
    return [inspect_recipe(query, data, own=own, specs=specs) for query in queries]


def test_seconds_follow_the_journal() -> None:
    journal = [{"step": 10, "images_per_second": 40.0}, {"step": 30, "images_per_second": 80.0}]
    assert timeline.seconds_until(journal, 30, batch=8) == pytest.approx(10 * 8 / 40 + 20 * 8 / 80)
    assert timeline.seconds_until(journal, 20, batch=8) == pytest.approx(10 * 8 / 40 + 10 * 8 / 80)


def test_a_folder_without_states_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no saved state"):
        timeline.states_of(tmp_path)


def test_the_usual_benchmarks_exist_in_every_profile() -> None:
    manifest = load_manifest()
    for profile in ("demo", "quick", "paper"):
        assert manifest.choose(profile, timeline.BENCHMARKS.split(","))


def test_the_curriculum_can_be_watched(run: Path) -> None:
    """Every saved state says what its epoch's masks were like; the table and the picture show it."""
    states = timeline.states_of(run)
    rows = [timeline.row_of(state, {}) for state in states]
    for row in rows:
        assert row["masks"]["ratio"] == 0.75
        # all images of the epoch: two steps of four
        assert row["masks"]["images"] == 8
    shown = timeline.table(rows)
    assert "masks: clumping | masks: spatial entropy | masks: hardest quarter hidden" in shown
    assert f"{rows[1]['masks']['hardest_quarter_hidden']:.2f}" in shown
    drawn = timeline.drawing(rows)
    assert "masks: hardest quarter hidden" in drawn
    # states from before there was a record say nothing
    silent = [{**row, "masks": None} for row in rows]
    assert "masks:" not in timeline.table(silent)
