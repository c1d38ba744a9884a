"""Every command that README and docs ask their readers to type is one that its parser takes."""

from pathlib import Path

import pytest

from tests.support.typed_commands import block_commands, fault, inline_commands
from tests.test_docs import PAGES, ROOT

OUTDATED = {"mimbench compare A B --out DIR"}
"""Commands that a page names because they changed."""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_is_one_that_its_parser_takes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    commands = {*block_commands(text), *inline_commands(text)} - OUTDATED
    faults = {command: said for command in sorted(commands) if (said := fault(command))}
    assert faults == {}
