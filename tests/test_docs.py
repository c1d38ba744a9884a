"""The pages for readers: links lead somewhere, sentences are short, names exist."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += [ROOT / "CHANGELOG.md"]
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")
LONGEST = 45
"""Words in a sentence."""


def prose(text: str) -> str:
    """The text without code, whose brackets are no links."""
    text = re.sub(r"^```.*?^```\s*$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "code", text)


def anchors(path: Path) -> set[str]:
    """The names of a page's headings, as GitHub and the site write them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()).strip() for title in titles]
    return {title.replace(" ", "-") for title in plain}


def dead_links(path: Path, text: str) -> list[str]:
    dead = []
    for target, anchor in LINK.findall(prose(text)):
        there = (path.parent / target).resolve() if target else path
        if not there.exists():
            dead.append(target)
        elif anchor and anchor not in anchors(there):
            dead.append(f"{target}#{anchor}")
    return dead


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    assert dead_links(path, path.read_text(encoding="utf-8")) == []


def test_rule_finds_dead_links() -> None:
    text = "[a](no.md) [b](protocols.md#nothing) [c](protocols.md) `[d](no)`\n```\n[e](no)\n```\n"
    assert dead_links(ROOT / "docs" / "numbers" / "x.md", text) == ["no.md", "protocols.md#nothing"]


def paragraphs(text: str) -> Iterator[str]:
    """The text's paragraphs and list items, without headings, tables and code."""
    lines: list[str] = []
    for line in [*prose(text).splitlines(), ""]:
        item = re.match(r"\s*(?:[-*]|\d+\.)\s+(.*)", line)
        if item or not line.strip() or line.startswith(("#", "|", "    ")):
            yield " ".join(lines)
            lines = []
        if item:
            lines = [item[1]]
        elif line.strip() and not line.startswith(("#", "|", "    ")):
            lines.append(line.strip())


def long_sentences(text: str) -> list[str]:
    found = []
    for paragraph in paragraphs(text):
        for sentence in re.split(r"(?<=[.!?])[)\"*]*\s+", paragraph):
            if len(re.findall(r"\w[\w.,'-]*", sentence)) > LONGEST:
                found.append(sentence)
    return found


@pytest.mark.parametrize("path", PAGES[:-1], ids=lambda path: path.name)
def test_sentences_are_short(path: Path) -> None:
    assert long_sentences(path.read_text(encoding="utf-8")) == []


def test_rule_finds_a_long_sentence() -> None:
    long = "word " * 46 + "end.\n"
    assert long_sentences("Short. " + long) == [long.strip()]
    assert long_sentences(f"# {long}\n| {long} |\n\n    {long}\n```\n{long}```\n") == []
    assert long_sentences("- " + "word " * 30 + "\n- " + "word " * 30 + "\n") == []


def test_every_page_has_a_place() -> None:
    """In the site's menu, and in the overview."""

    def names(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            for value in entry.values():
                yield from names(value)
        elif isinstance(entry, list):
            for value in entry:
                yield from names(value)

    menu = set(names(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in PAGES if ROOT / "docs" in p.parents}
    assert menu == pages | {"CONTRIBUTING.md", "CHANGELOG.md"}
    overview = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert [page for page in pages - {"index.md"} if f"]({page})" not in overview] == []


FOLDERS = {"Start here": "start", "How to": "howto", "What the numbers mean": "numbers", "Reference": "reference", "Inside": "inside"}  # fmt: skip


def test_a_pages_folder_is_its_section() -> None:
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert [title for section in menu for title in section] == list(FOLDERS)
    # the home page of the site, and pages that readers of a repository expect at its root
    at_the_root = {"index.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    for section in menu:
        for title, entries in section.items():
            pages = {page for entry in entries for page in entry.values()} - at_the_root
            assert {page.partition("/")[0] for page in pages} == {FOLDERS[title]}


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    if os.environ.get("MIMBENCH_REQUIRE_ALL") != "1":
        pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "start" / "glossary.html").is_file()
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "fonts.googleapis.com" not in html


def defined_names() -> set[str]:
    """The classes of the library and its applications."""
    found = set()
    for folder in ("mimbench", "pretrain", "transfer", "knn"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    return found


def test_the_glossary_names_what_exists() -> None:
    known = defined_names()
    text = (ROOT / "docs" / "start" / "glossary.md").read_text(encoding="utf-8")
    cells = [line.split("|")[3] for line in text.splitlines() if line.count("|") == 4]
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert len(names) > 40
    for name in names:
        head, *rest = name.split(".")
        if head[:1].isupper():
            assert head in known, name
        elif head in {"mimbench", "pretrain", "transfer", "knn"} and rest:
            package = name if find_spec(name.rpartition(".")[0]) else ""
            assert package, name


def test_words_are_defined_once() -> None:
    text = (ROOT / "docs" / "start" / "glossary.md").read_text(encoding="utf-8")
    words = [row.split("|")[1].strip() for row in text.splitlines() if row.count("|") == 4]
    words = [word for word in words if word not in {"word", "---"}]
    assert len(words) == len(set(words))


PRIVATE = re.compile(
    r"\b(mend(ed|s|ing)?|told|foretell\w*|contestants?|so-manieth|said beside|left word|watchm[ae]n)\b",
    re.IGNORECASE,
)


def test_words_are_the_fields_own() -> None:
    """Whoever reads code, messages or pages needs no dictionary of ours."""
    folders = ("mimbench", "pretrain", "transfer", "knn", "bench")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in [*sources, *PAGES]
        for match in PRIVATE.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []
