"""README's commands and their rule: run for real on sample data where that is cheap; the others are parsed."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mimbench.sample import generate
from pretrain.__main__ import main as pretrain
from tests.support.checkpoint_layouts import LAYOUTS, TINY, canonical
from tests.support.results_folder import write_run
from tests.support.typed_commands import (
    block_commands,
    fault,
    inline_commands,
    type_command,
    words_of,
)
from tests.test_docs import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
DEMO = ("--profile", "demo", "--device", "cpu", "--workers", "0")
RUN: dict[str, tuple[str, ...]] = {
    "./run_all.sh ckpt.pth --data sample --only knn": ("--no-canary", "--device", "cpu"),
    "mimbench table runs": (),
    "mimbench report runs": ("--no-compute",),
    "mimbench compare A B": (),
    "mimbench compare A 'HPM 800'": (),
    "mimbench inspect ckpt.pth": (),
    "mimbench export ckpt.pth --to timm -o out.safetensors": (),
    "python -m knn ckpt.pth --data DATA": DEMO,
    "python -m transfer.classification.logreg ckpt.pth --data DATA": DEMO,
    "python -m transfer.classification.lowshot ckpt.pth --data DATA": DEMO,
    "python -m transfer.classification.linear ckpt.pth --data DATA": (
        *DEMO, "--set", "epochs=1", "--set", "warmup=0",
    ),
    "python -m pretrain.show RUN IMAGE -o out.png": (),
    "python -m pretrain.compare plan cifar10": (),
    "python -m pretrain.masks show IMAGE --checkpoint RUN -o masks.png": (),
}  # fmt: skip
"""Command -> what makes it small. All others are only parsed: whole suites, ImageNet recipes, downloads."""
LEFT = {"out.safetensors": "export", "out.png": "pretrain.show", "masks.png": "masks show", "report.html": "report"}  # fmt: skip
"""What a command leaves behind."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what README's commands name."""
    place = tmp_path_factory.mktemp("reader")
    sample = generate(
        place / "cache" / "sample",
        train_per_class=30,
        val_per_class=2,
        train_scenes=2,
        val_scenes=2,
    )
    (place / "DATA").symlink_to(sample)
    layout = LAYOUTS["mae-training"]
    spec = replace(layout.spec(TINY), embed_dim=192, depth=1, mlp_dim=192, patch_size=8)
    torch.save(layout.write(canonical(spec)), place / "ckpt.pth")
    for name, share in (("A", 0.8), ("B", 0.6)):
        write_run(place / "runs", name, share=share)
    shutil.copy(next((sample / "coco").rglob("*.jpg")), place / "IMAGE")
    small = ["training.epochs=1", "optimizer.warmup_epochs=0", "data.images=8", "training.batch=4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("MIMBENCH_CACHE", str(place / "cache"))
        sets = [word for change in small for word in ("--set", change)]
        assert pretrain(["demo", "--out", "RUN", *sets]) == 0
        yield place


@pytest.mark.parametrize("command", RUN)
def test_readmes_command_runs(command: str, place: Path) -> None:
    code, said = type_command(command, *RUN[command])
    assert code == 0, said
    left = [name for name, part in LEFT.items() if part in command]
    assert said or left, "it writes neither a file nor a line"
    for name in left:
        assert list(place.rglob(name)), name


def test_readme_has_the_commands_that_are_run_and_every_other_parses() -> None:
    known = {*block_commands(README), *inline_commands(README)}
    assert set(RUN) <= known, "these are in README no more; run what took their place"
    assert len(known - set(RUN)) > 10
    assert [f"{command}: {said}" for command in known if (said := fault(command))] == []


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("./run_all.sh ckpt.pth --trak wandb", "unknown option '--trak'; did you mean '--track'?"),
        ("./run_all.sh ckpt.pth --track tensorboard", "invalid choice"),
        ("mimbench tabel runs --jsn", "No module named 'tabel'"),
        ("python -m knn2 ckpt.pth", "No module named 'knn2'"),
        ("python -m transfer.detektion ckpt.pth", "No module named 'transfer.detektion'"),
        ("python -m knn ckpt.pth --data", "expected one argument"),
        ("make everything", "no target everything"),
        ("./setupp.sh", "there is no ./setupp.sh"),
    ],
)
def test_rule_finds_a_command_that_is_none(command: str, expected: str) -> None:
    assert expected in fault(command)


@pytest.mark.parametrize(
    "command",
    [
        "mimbench run",
        "mimbench",
        "mimbench export",
        "python -m pretrain",
        "make docs",
        "./setup.sh",
    ],
)
def test_rule_takes_a_mention(command: str) -> None:
    assert fault(command) == ""


def test_rule_reads_commands_as_they_are_written() -> None:
    text = "a `mimbench table runs`\n```\n$ python -m knn a.pth \\\n    --data X    # why\nmimbench said\n```\n"
    assert list(block_commands(text)) == ["python -m knn a.pth --data X", "mimbench said"]
    assert list(inline_commands(text)) == ["mimbench table runs"]
    assert words_of("WANDB_MODE=offline mimbench doctor [--decode] --gpus N a|b | head") == [
        "mimbench", "doctor", "--decode", "--gpus", "1", "a",
    ]  # fmt: skip


def test_run_all_is_the_verb_run() -> None:
    """What lets its options be read by that verb's parser."""
    script = (ROOT / "run_all.sh").read_text(encoding="utf-8")
    assert 'exec "$root/.venv/bin/python" -m mimbench run "$@"' in script
