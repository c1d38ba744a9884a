"""The lock files: complete, by hash, true to pyproject.toml, and free of anybody's machine."""

import re
import sys
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-detectron2.lock")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WANTED = [
    *PROJECT["project"]["dependencies"],
    *(line for extra in PROJECT["project"]["optional-dependencies"].values() for line in extra),
    *PROJECT["tool"]["uv"]["constraint-dependencies"],
]


def entries(name: str) -> list[str]:
    """Return the lock's entries, each with its hashes on one line."""
    lines = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def pinned(name: str) -> list[Requirement]:
    return [Requirement(entry.partition("--hash=")[0]) for entry in entries(name)]


def environment(python: str) -> dict[str, str]:
    linux = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    versions = {"python_version": python, "python_full_version": f"{python}.1"}
    return {key: str(value) for key, value in default_environment().items()} | linux | versions


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_satisfies_pyproject(python: str) -> None:
    where = environment(python)
    chosen = {
        item.name: str(item.specifier).removeprefix("==")
        for item in pinned("requirements.lock")
        if item.marker is None or item.marker.evaluate(where)
    }
    for wanted in map(Requirement, WANTED):
        if wanted.marker is None or wanted.marker.evaluate(where):
            assert wanted.name in chosen, f"{wanted} is not locked; make lock"
            assert wanted.specifier.contains(chosen[wanted.name]), (
                f"{wanted}, but {chosen[wanted.name]}"
            )


@pytest.mark.parametrize("python", PYTHONS)
def test_one_version_of_each_package(python: str) -> None:
    where = environment(python)
    names = [
        item.name
        for item in pinned("requirements.lock")
        if item.marker is None or item.marker.evaluate(where)
    ]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", LOCKS)
def test_every_entry_is_pinned_by_hash(name: str) -> None:
    assert entries(name)
    for entry in entries(name):
        assert re.fullmatch(
            r"[\w.-]+(\[[\w,]+\])?==[\w.+!]+( ; [^#]+?)?(\s+--hash=sha256:[0-9a-f]{64})+", entry
        ), entry


@pytest.mark.parametrize("name", LOCKS)
def test_no_address_and_no_path(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"://|--(extra-)?index-url|--find-links| @ |file:", text)
    assert not re.search(r"(?m)^[^#\n]*\s/\w", text)


def test_torch_with_working_torchvision() -> None:
    """With torch 2.13.0 from a local CPU wheel, torchvision from PyPI loses its operators."""
    versions = {item.name: item.specifier for item in pinned("requirements.lock")}
    assert str(versions["torch"]) == "==2.12.1"
    assert str(versions["torchvision"]) == "==0.27.1"


def test_python_range_is_the_one_setup_accepts() -> None:
    accepted = re.findall(r"3\.\d+(?=\.\*)", (ROOT / "setup.sh").read_text(encoding="utf-8"))
    assert accepted == list(PYTHONS)
    supported = Requirement(f"python{PROJECT['project']['requires-python']}").specifier
    assert [f"3.{n}" for n in range(8, 17) if supported.contains(Version(f"3.{n}.1"))] == accepted
