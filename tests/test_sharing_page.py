"""docs/howto/sharing.md, line by line: its commands run in this order, and its files are what it says."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from mimbench.__main__ import main
from mimbench.commands import load_command
from mimbench.suite.sharing.bundle import write_bundle
from tests.support.foreign_files import EP, TIMM, record, visbench
from tests.support.hub_schema import EVAL_ENTRY, faults
from tests.support.results_folder import write_manifest, write_run
from tests.test_publish import HUB

PAGE = (Path(__file__).parents[1] / "docs/howto/sharing.md").read_text(encoding="utf-8")
PROGRAM = "python -m mimbench "
COMMANDS = [line.removeprefix(PROGRAM) for line in PAGE.splitlines() if line.startswith(PROGRAM)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's reader has: runs, somebody else's bundle, three public files."""
    folder = tmp_path_factory.mktemp("page")
    write_manifest(folder)
    with (folder / "reference.yaml").open("a") as file:
        file.write(HUB)
    write_run(folder / "runs", "my-vit", share=0.8)
    write_run(folder / "runs", "random-b16", share=0.2, draw=1)
    write_run(folder / "theirs", "other", share=0.7, draw=2)
    write_bundle(folder / "theirs", folder / "theirs.tar.gz", folder / "benchmarks.yaml")
    shutil.rmtree(folder / "theirs")
    (folder / "results.csv").write_text(EP)
    (folder / "results-imagenet.csv").write_text(TIMM)
    (folder / "visbench.jsonl").write_text(visbench(record()))
    return folder


def test_its_commands_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert len(COMMANDS) >= 9
    for command in COMMANDS:
        verb, *arguments = shlex.split(command)
        takes = "--benchmarks" in load_command(verb)[1].format_help()
        given = ["--benchmarks", "benchmarks.yaml"] if takes else []
        assert main([verb, *arguments, *given]) == 0, (command, capsys.readouterr().err)
    shown = capsys.readouterr().out
    assert "nothing was sent; to upload: hf upload me/my-vit hub/my-vit ." in shown
    assert "hf upload me/my-vit hub/my-vit .\n" in PAGE
    for name in ("board.html", "references.html", "hub/my-vit/README.md", "rows/visbench.csv"):
        assert (folder / name).is_file(), name
    assert "MAE ViT-B/16" in (folder / "references.html").read_text()


def test_its_entry_is_what_is_written(folder: Path) -> None:
    [shown] = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)[0])
    assert faults(shown, EVAL_ENTRY) == []
    [written] = yaml.safe_load((folder / "hub/my-vit/.eval_results/mimbench.yaml").read_text())
    digits = re.compile(r"[0-9a-f]{10,}|\d+\.\d+")
    assert digits.sub("N", yaml.safe_dump(shown)) == digits.sub("N", yaml.safe_dump(written))
