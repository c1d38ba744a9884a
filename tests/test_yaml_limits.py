"""YAML from strangers: bombs of aliases, merges and nesting are a sentence each."""

import os
from pathlib import Path

import pytest

from mimbench.system.config import load_yaml
from mimbench.system.errors import UserError

ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n  k{i}: 1\n" for i in range(1, 12)
)
BOMBS = {
    "aliases": (ALIASES, "more than 200,000 values"),
    "merges": (MERGES, "more than 200,000 values"),
    "depth": ("a: " + "[" * 100_000, "nested more than 60 deep"),
    "mappings": ("a: " + "{a: " * 5000, "nested more than 60 deep"),
    "itself": ("a: &a [*a]", "contains itself"),
    "size": ("a: " + "x" * (5 << 20), "more than 4,194,304 bytes"),
    "many": ("a:\n" + "- 1\n" * 300_000, "more than 200,000 values"),
    "number": ("a: " + "9" * 10_000, "not valid YAML|should hold"),
    "object": ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
    "key": ("? [a]\n: 1", "not valid YAML"),
    "date": ("a: 2024-99-99", "not valid YAML"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_at_once(kind: str, tmp_path: Path) -> None:
    text, reason = BOMBS[kind]
    (tmp_path / "bomb.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"bomb\.yaml.*({reason})"):
        load_yaml(tmp_path / "bomb.yaml")


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match=r"pipe\.yaml is not read: it is no file"):
        load_yaml(tmp_path / "pipe.yaml")


def test_aliases_as_our_own_files_have_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "fine.yaml").write_text("a: &id001 [1, 2]\nb: *id001\nc: {<<: {d: 1}, e: 2}\n")
    assert load_yaml(tmp_path / "fine.yaml") == {"a": [1, 2], "b": [1, 2], "c": {"d": 1, "e": 2}}
