"""`pip install -e .` in an environment of the user's own: the same command, the same modules."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOUND = """
import importlib.util, pathlib, mimbench
from mimbench.benchmarks.manifest import load_manifest
manifest = load_manifest()
names = {"pretrain", *(b.task for b in manifest.benchmarks.values())}
specs = [importlib.util.find_spec(name) for name in names]
root = pathlib.Path(mimbench.__file__).parents[1]
print(len(manifest.references) > 100, {pathlib.Path(s.origin).is_relative_to(root) for s in specs}, root)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone, and a virtual environment into which pip has installed it as editable."""
    folder = tmp_path_factory.mktemp("my project")
    clone = folder / "clone"
    hidden = shutil.ignore_patterns(".*", "runs", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, clone, ignore=hidden)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
    python = folder / "env" / "bin" / "python"
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.check_output([python, "-c", script], text=True).strip())
    # the libraries that mimbench needs, setuptools among them, without a download
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index"]
    done = subprocess.run([*command, "-e", "."], cwd=clone, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def output(command: list[str | Path], folder: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.check_output(command, cwd=folder, env=environment, text=True).strip()


def test_the_command_is_there(installed: Path, tmp_path: Path) -> None:
    command = installed / "env" / "bin" / "mimbench"
    assert output([command, "--version"], tmp_path).startswith("mimbench 0.")
    assert "usage: mimbench table" in output([command, "table", "--help"], tmp_path)


def test_library_applications_and_manifest_are_found(installed: Path, tmp_path: Path) -> None:
    shown = output([installed / "env" / "bin" / "python", "-c", FOUND], tmp_path)
    assert shown == f"True {{True}} {installed / 'clone'}"


def test_only_the_library_is_installed_as_files(installed: Path) -> None:
    """`pretrain`, `transfer` and `knn` would collide with other people's folders."""
    [names] = installed.glob("env/lib/python*/site-packages/mimbench-*.dist-info/top_level.txt")
    assert names.read_text().split() == ["mimbench"]


def test_no_file_of_the_current_folder_hides_ours(installed: Path, tmp_path: Path) -> None:
    for name in ("mimbench", "yaml", "knn"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file')\n")
    command = installed / "env" / "bin" / "mimbench"
    assert "usage: mimbench table" in output([command, "table", "--help"], tmp_path)
