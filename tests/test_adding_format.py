"""The template of a checkpoint format in docs/howto/adding.md works as it stands."""

import sys
from pathlib import Path

import pytest
import torch

from mimbench.checkpoints import formats
from mimbench.checkpoints.files import read_vit
from mimbench.system.errors import UserError
from tests.support.checkpoint_layouts import TINY, canonical, renamed
from tests.support.documents import template


def test_the_template_reads_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = canonical(TINY)
    state = renamed(wanted, (r"blocks\.(.*)", r"stages.\1")) | {"sketch_head.w": torch.ones(2)}
    path = tmp_path / "sketch.pth"
    torch.save({"model": state}, path)
    with pytest.raises(UserError, match=r"sketch\.pth: no known format; looked for .*hpm"):
        read_vit(path, num_heads=3)

    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "sketch.py").write_text(template("A checkpoint format"), encoding="utf-8")
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "mimbench.checkpoints.formats.sketch", raising=False)
    weights = read_vit(path, num_heads=3)
    assert weights.format == "sketch"
    assert weights.extras == {"sketch head": 1}
    assert weights.spec.position_rule == "bicubic-antialias"
    assert all(torch.equal(t, wanted[n]) for n, t in weights.tensors.items())
    sys.modules.pop("mimbench.checkpoints.formats.sketch")


def test_two_claimants_are_an_error_that_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"model": canonical(TINY)}, tmp_path / "mae.pth")
    greedy = (
        template("A checkpoint format")
        .replace('"sketch"', '"greedy"')
        .replace("stages", "blocks", 2)
    )
    (tmp_path / "greedy.py").write_text(greedy, encoding="utf-8")
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    body = greedy.replace(r"stages\.0", r"blocks\.0")
    (tmp_path / "greedy.py").write_text(body, encoding="utf-8")
    with pytest.raises(UserError, match="the formats greedy and mae both claim this file"):
        read_vit(tmp_path / "mae.pth", num_heads=3)
    sys.modules.pop("mimbench.checkpoints.formats.greedy")
