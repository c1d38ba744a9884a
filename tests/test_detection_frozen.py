"""A frozen trunk: it stays bit for bit, sees the whole picture, and the rest of the detector learns."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

from mimbench.system.runtime import Ranks
from mimbench.vit.weights import random_weights
from tests.support.detection_run import SPEC, final, small
from transfer.detection.prepare import prepare
from transfer.detection.protocol import settled
from transfer.detection.recipe import vit_of
from transfer.detection.vitdet import run


@pytest.fixture(scope="module")
def coco(scenes: Callable[[int, int], Path]) -> Path:
    return scenes(8, 4) / "coco"


def test_a_frozen_trunk_does_not_move_and_the_rest_does(coco: Path, tmp_path: Path) -> None:
    weights, config = random_weights(SPEC, 0), small(coco, trunk="frozen")
    before = {n: t.clone() for n, t in prepare(weights, config, Ranks()).model.state_dict().items()}
    result = run(weights, config, tmp_path)
    after = final(tmp_path)
    trunk = [name for name in before if name.startswith("backbone.net.")]
    assert len(trunk) > 20
    assert all(torch.equal(after[name], before[name]) for name in trunk)
    moved = [n for n in before if n.endswith("weight") and not torch.equal(after[n], before[n])]
    assert {n.split(".")[0] for n in moved} >= {"backbone", "proposal_generator", "roi_heads"}
    assert any("our own protocol" in note for note in result.notes["notes"])


def test_a_frozen_trunk_has_no_relative_tables_and_no_windows(coco: Path) -> None:
    config = small(coco, trunk="frozen")
    vit = vit_of(prepare(random_weights(SPEC, 0), config, Ranks()).model)
    assert not any("rel_pos" in name for name in vit.state_dict())
    assert all(block.window_size == 0 for block in vit.blocks)
    assert not any(p.requires_grad for p in vit.parameters())
    plain = small(coco)
    assert settled(plain, SPEC) == plain
