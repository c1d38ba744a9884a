"""mkdocs hooks: pages that live at the root of the repository, and links between the two places."""

import re
from os.path import relpath
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the root's pages to those of docs/."""
    from mkdocs.structure.files import File  # noqa: PLC0415 - only mkdocs reads this module

    for name in PAGES:
        content = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links at the site's own pages; source files are named, not linked."""
    source = page.file.src_uri
    base = ROOT if source in PAGES else (ROOT / "docs" / source).parent

    def link(found: re.Match[str]) -> str:
        image, text, target, anchor = found[1], found[2], found[3], found[4] or ""
        path = (base / target).resolve() if target else None
        if path is None or not path.exists():
            return found[0]  # an anchor of this page, or a dead link, which mkdocs reports
        if path.is_relative_to(ROOT / "docs"):
            page = path.relative_to(ROOT / "docs")
        elif path.name in PAGES and path.parent == ROOT:
            page = Path(path.name)
        else:
            return f"`{path.relative_to(ROOT).as_posix()}`"
        return f"{image}[{text}]({relpath(page, Path(source).parent)}{anchor})"

    return LINK.sub(link, markdown)
