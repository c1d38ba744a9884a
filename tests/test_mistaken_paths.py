"""What a first user types in the place of a checkpoint: each mistake gets a sentence that helps."""

from pathlib import Path

import pytest
import torch

from mimbench.__main__ import main
from mimbench.checkpoints.files import read_vit
from mimbench.system.errors import UserError
from tests.support.checkpoint_layouts import LAYOUTS, TINY, canonical, hf_vit


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def said(text: str) -> str:
    with pytest.raises(UserError) as error:
        read_vit(Path(text), num_heads=3)
    assert str(error.value).isprintable()
    return str(error.value)


def test_an_address_is_no_path() -> None:
    address = "https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_base.pth"
    told = said(address)
    assert "this is an address, and nothing is downloaded here" in told
    assert f"curl -LO {address}" in told


def test_a_tilde_that_no_shell_replaced(home: Path) -> None:
    assert f"write {home}/ckpt.pth" in said("~/ckpt.pth")


def test_a_name_on_the_hub() -> None:
    told = said("facebook/dinov2-small")
    assert "if it is a model on the Hugging Face hub" in told
    assert (
        "write hf:facebook/dinov2-small (python -m mimbench fetch hf:facebook/dinov2-small" in told
    )


def test_a_typing_error_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "hpm_0799.pth").touch()
    assert f"did you mean {tmp_path}/hpm_0799.pth?" in said(f"{tmp_path}/hpm_799.pth")
    assert said(f"{tmp_path}/nothing/like.pth").endswith("no such file or folder")


def test_a_folder_of_checkpoints_names_the_last(tmp_path: Path) -> None:
    for step in (500, 1500, 1000):
        folder = tmp_path / "trained" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        torch.save(hf_vit(canonical(TINY)), folder / "pytorch_model.bin")
    told = said(f"{tmp_path}/trained")
    assert "it holds checkpoint-500/, checkpoint-1000/, checkpoint-1500/" in told
    assert told.endswith(f"give one of them, such as {tmp_path}/trained/checkpoint-1500")
    assert read_vit(tmp_path / "trained" / "checkpoint-1500", num_heads=3).format == "hf-vit"


def test_a_folder_with_a_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path = LAYOUTS["mae-encoder"].save(TINY, tmp_path / "run")
    assert said(f"{tmp_path}/run").endswith(f"give the file, such as {path}")
    (tmp_path / "empty").mkdir()
    assert "a folder needs model.safetensors" in said(f"{tmp_path}/empty")


@pytest.mark.parametrize("command", ["run", "inspect", "export", "plan"])
def test_every_command_says_it(
    command: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["-o", "x.safetensors"] if command == "export" else []
    assert main([command, "'~'/ckpt.pth".replace("'", ""), *more]) != 0
    found = capsys.readouterr()
    assert f"{home}/ckpt.pth" in found.out + found.err
    assert "Traceback" not in found.err


def test_options_take_a_tilde_where_the_shell_leaves_it(home: Path) -> None:
    """`--out=~/runs` reaches us as it is: a folder named ~ appeared in the working directory."""
    from mimbench.system.options import Parser, add_option

    parser = Parser()
    for name in ("--out", "--data"):
        add_option(parser, name)
    args = parser.parse_args(["--out=~/runs", "--data=~/data"])
    assert (args.out, args.data) == (home / "runs", home / "data")
