"""The LaTeX table compiles as it is: with pdflatex and booktabs, whatever names it holds."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mimbench.tables.formats import latex
from mimbench.tables.rows import Column, Row, Table, Value
from mimbench.tables.tex import SIGNS, tex

NAMES = [
    r"100%_done & $x$ #1 ~ ^ \input{/etc/passwd} {open",
    r"}\end{tabular}\bye",
    "[1] of -- and --- <<a>>|b \"c\" `d' ?`",
    "* starred", "é ü ñ Å ç š ő ø ß Ł \u0131", "αβγ Ω Λ \u039f ± \u00d7 → ≤ ² \u00b5 ° \u2212 \u2013", "中文 עברית 😀",
    "line\nbreak \x07 \u202e \udc80", "", "%", "\\\\",
]  # fmt: skip


def hostile() -> Table:
    columns = [
        Column(name, "paper", f"p{i}", name, "top1", True, ran=name) for i, name in enumerate(NAMES)
    ]
    value = Value(value=83.1, interval=0.3, spread=0.1, seeds=3, difference=-1.0, best=True)
    rows = [
        Row(label=name, kind="measured", values=dict.fromkeys(columns, value)) for name in NAMES
    ]
    return Table(
        columns, [*rows, Row(label=NAMES[2], kind="published", values={}, source=NAMES[7])], NAMES
    )


def compiled(body: str, folder: Path) -> tuple[int, str]:
    """Compile a document with the table in it and nothing else but booktabs."""
    (folder / "table.tex").write_text(body, encoding="utf-8")
    (folder / "paper.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
        "\\input{table}\n\\end{document}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex, which is not installed")
def test_hostile_names_compile(tmp_path: Path) -> None:
    code, said = compiled(latex(hostile()), tmp_path)
    assert code == 0, said[-2000:]
    assert "Missing character" not in said
    assert (tmp_path / "paper.pdf").stat().st_size > 1000
    # the document can fail: each of these alone breaks it
    for broken in ("a & b & c \\\\", "a_b", "中"):
        body = "\\begin{tabular}{l}\n" + broken + "\n\\end{tabular}\n"
        assert compiled(body, tmp_path)[0] != 0, broken


def test_nothing_of_a_name_is_a_command() -> None:
    """Whatever stands in a name, only what `tex` itself writes is left for LaTeX to read."""
    ours = {word for value in SIGNS.values() for word in re.findall(r"\\[a-zA-Z]+", value)}
    for name in NAMES:
        source = tex(name)
        commands = set(re.findall(r"\\[a-zA-Z]+", source.replace(r"\textbackslash{}", "")))
        greek = {"\\alpha", "\\beta", "\\gamma", "\\Omega", "\\Lambda"}
        assert commands <= ours | greek | {"\\r", "\\c", "\\v", "\\H"}, source
        assert not re.search(r"(?<!\\)[%&#_~]", source)
        assert source.count("{") - source.count("\\{") == source.count("}") - source.count("\\}")
        assert source.isascii()
        assert "\n" not in source


def test_signs_keep_their_meaning() -> None:
    assert tex("a--b ±1 é Ω 中") == r"a-{}-b $\pm$1 \'{e} $\Omega$ U+4E2D"
    assert tex("1 < 2 | 3") == r"1 \textless{} 2 \textbar{} 3"
    rows = [x for x in latex(hostile()).splitlines() if x.endswith("\\\\") and x[0] != "%"]
    assert len(rows) == 2 + len(NAMES), "a name ends no line"


def test_a_bracket_or_star_is_no_argument_of_the_line_above() -> None:
    for name in ("[1]", "* a"):
        rows = [Row(label=name, kind="measured", values={})]
        assert f"\\midrule\n{{}}{name}" in latex(Table([], rows))
