"""The code that the pages under docs/ ask their readers to copy, for tests that run it."""

import re
from pathlib import Path

ADDING = Path(__file__).parents[2] / "docs" / "howto" / "adding.md"


def template(heading: str, language: str = "python") -> str:
    """Return the first block of a language under a heading of docs/howto/adding.md."""
    section = ADDING.read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found, f"no {language} block under '{heading}'"
    return found[1]
