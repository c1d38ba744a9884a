"""The template of a masking strategy in docs/howto/adding.md works as it stands."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mimbench.training.batches import Batch
from mimbench.training.learner import StepInfo
from pretrain import masks
from pretrain.config import read_config
from pretrain.masks import MaskInput
from pretrain.objectives.learner import Pretraining
from pretrain.viewing.laboratory import variants
from tests.support.documents import template


@pytest.fixture
def rings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The template's code as one more file of the folder."""
    (tmp_path / "rings.py").write_text(template("A masking strategy"), encoding="utf-8")
    monkeypatch.setattr(masks, "__path__", [*masks.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "pretrain.masks.rings", raising=False)
    yield
    sys.modules.pop("pretrain.masks.rings", None)


@pytest.mark.usefixtures("rings")
def test_the_template_is_a_strategy_like_the_others() -> None:
    assert "rings" in masks.available()
    strategy = masks.build({"name": "rings", "ratio": 0.6})
    assert isinstance(strategy, masks.MaskStrategy)
    for grid in ((14, 14), (3, 8)):
        inp = MaskInput(batch=6, grid=grid, device=torch.device("cpu"))
        mask = strategy(inp, torch.Generator().manual_seed(0))
        n = grid[0] * grid[1]
        assert mask.sum(1).tolist() == [n - int(n * 0.4 + 1e-9)] * 6
        assert torch.equal(mask, strategy(inp, torch.Generator().manual_seed(0)))
    # whole rings: of four rings of a 8 x 8 grid at most one is hidden in part
    inp = MaskInput(batch=20, grid=(8, 8), device=torch.device("cpu"))
    mask = strategy(inp, torch.Generator().manual_seed(1)).unflatten(1, (8, 8))
    distance = (torch.arange(8) - 3.5).abs()
    ring = torch.maximum(distance.view(-1, 1), distance).floor()
    for one in mask:
        shares = [one[ring == r].float().mean().item() for r in range(4)]
        assert sum(0 < share < 1 for share in shares) <= 1
    assert "rings" in [v.label for v in variants(0.5, (4, 4))]


@pytest.mark.usefixtures("rings")
def test_changing_one_word_trains_with_it() -> None:
    tiny = ["encoder.width=24", "encoder.depth=1", "encoder.heads=2", "data.root=/nowhere"]
    small = ["decoder.width=16", "decoder.depth=1", "decoder.heads=2", "training.batch=2"]
    config = read_config("demo", [*tiny, *small, "mask.name=rings", "machine.device=cpu"])
    run = Pretraining(config, torch.device("cpu"), Path("unused"))
    data = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    at = StepInfo(step=0, steps_per_epoch=10, epochs=22, batch=2)
    figures = run.loss(run.student, Batch(torch.arange(2), data, ()), at)
    assert run.teacher is None
    assert torch.isfinite(figures["loss"])
