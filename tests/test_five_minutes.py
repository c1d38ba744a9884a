"""docs/start/five-minutes.md: every command and the notebook's cell, run in order, give what the page shows."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mimbench.sample import generate
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from tests.support.five_minutes import HUB, hub_files, lay_out
from tests.support.tiny_hub import serving
from tests.support.typed_commands import blocks, fault, plain, type_command
from tests.test_docs import ROOT

PAGE = (ROOT / "docs" / "start" / "five-minutes.md").read_text(encoding="utf-8")
SMALLER = {
    "./run_all.sh": (
        "--no-canary",
        "--device",
        "cpu",
    ),  # the canary would see that nothing is trained
    "python -m pretrain": ("--set", "data.images=8", "--set", "training.batch=4"),
    "python -m transfer": ("--device", "cpu", "--workers", "0"),
}
"""What makes a command small here; the page's own outputs are those of the demo's network and whole sample."""


def sessions() -> Iterator[tuple[str, str]]:
    """Yield each command of the page with the output that stands under it."""
    for body in blocks(PAGE, "console"):
        for part in re.split(r"(?m)^\$ ", body)[1:]:
            command, _, output = part.partition("\n")
            yield command, output


def network() -> VitWeights:
    """Return a network of the page's shape; biases of zero would look untrained."""
    spec = VitSpec(embed_dim=96, depth=4, num_heads=3, mlp_dim=384, patch_size=8, grid=(4, 4))
    weights, dice = random_weights(spec, seed=0), torch.Generator().manual_seed(0)
    for name, tensor in weights.tensors.items():
        if name.endswith("bias"):
            tensor.add_(0.02 * torch.randn(tensor.shape, generator=dice))
    return weights


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder: an untrained network of the page's shape in every form, and a hub that has it."""
    generate(
        tmp_path / "cache" / "sample",
        train_per_class=24,
        val_per_class=2,
        train_scenes=1,
        val_scenes=1,
    )
    lay_out(tmp_path, network())
    monkeypatch.chdir(tmp_path)
    for name, value in {"MIMBENCH_CACHE": "cache", "HF_HOME": "hf"}.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_every_command_gives_what_the_page_shows(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list(sessions())
    assert len(seen) == 8
    with serving() as hub:
        hub.files[HUB] = hub_files(network())
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        for typed, shown in seen:
            command, _, kept = typed.partition(" | grep ^")
            more = next((v for k, v in SMALLER.items() if command.startswith(k)), ())
            code, said = type_command(command, *more)
            assert code == 0, f"{command}: {said}"
            lines = [line for line in said.splitlines() if line.startswith(kept)]
            assert plain("\n".join(lines)) == plain(shown), command


def test_the_cell_of_the_notebook_gives_what_the_page_shows(place: Path) -> None:
    [code], [shown] = blocks(PAGE, "python"), blocks(PAGE, "text")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "five-minutes.md", "exec"), {})
    assert plain(said.getvalue()) == plain(shown)
    assert "colours" in shown


def test_the_four_cases_are_there_and_readme_leads_here() -> None:
    titles = re.findall(r"(?m)^## (.*)$", PAGE)
    assert titles[:4] == [
        "A file",
        "A name on a hub",
        "A training run",
        "An `nn.Module` in a notebook",
    ]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.index("docs/start/five-minutes.md") < 3000
    assert [
        c
        for body in blocks(PAGE, "console")
        for c in re.findall(r"(?m)^\$ (.*)$", body)
        if fault(c)
    ] == []


def test_the_rule_sees_another_output() -> None:
    """Digits may differ from machine to machine, words may not."""
    assert plain("top1\t62.80") == plain("top1\t3.1")
    assert plain("tensors  12") != plain("tensor  12")
    assert plain("digest 49accb9dd86fa4ee") == plain("digest 0123456789abcdef")
