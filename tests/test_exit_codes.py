"""One table of exit codes, one form of error."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from mimbench.system.errors import UserError
from mimbench.system.exit_codes import MEANINGS, ExitCode, report_error, run_command

ROOT = Path(__file__).parents[1]


def fails(error: BaseException) -> int:
    def body() -> int:
        raise error

    return run_command(body)


def test_the_documentation_has_the_whole_table() -> None:
    text = (ROOT / "docs" / "start" / "command-line.md").read_text(encoding="utf-8")
    rows = [line.replace("\\|", "|") for line in text.splitlines() if line.startswith("| ")]
    table = [row for row in rows if row.split("|")[1].strip().isdigit()]
    assert table == [f"| {c.value} | {c.name} | {MEANINGS[c]} |" for c in ExitCode]


def test_codes_are_what_schedulers_and_shells_know() -> None:
    assert [c.value for c in ExitCode] == [0, 1, 2, 75, 130, 141]


def test_success_and_failure_pass_through() -> None:
    assert run_command(lambda: ExitCode.OK) == 0
    assert run_command(lambda: ExitCode.FAILED) == 1


def test_user_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(UserError("no such file: x")) == 2
    assert capsys.readouterr() == ("", "error: no such file: x\n")


def test_what_to_type_follows_indented(capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(UserError("cannot be read; run:\nimport torch\nx()")) == 2
    assert capsys.readouterr().err == "error: cannot be read; run:\n  import torch\n  x()\n"


def test_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_own_mistakes_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        fails(ZeroDivisionError())


def test_closed_pipe() -> None:
    script = (
        "import sys; from mimbench.system.exit_codes import run_command\n"
        "def body():\n    while True: print('x' * 10000, flush=True)\n"
        "sys.exit(run_command(body))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ± é", "plain ± é"),
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("tab\there", "tab\\there"),
        ("bad \udcff name", "bad \\udcff name"),
        ("two\nlines", "two\n  lines"),
        ("carriage\rreturn", "carriage\\rreturn"),
    ],
)
def test_errors_are_printable(text: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    report_error(text)
    assert capsys.readouterr().err == f"error: {expected}\n"


def test_nobody_else_writes_error_lines() -> None:
    """`error: ...` and the number of an exit code stand in one module."""
    for folder in ("mimbench", "pretrain", "transfer", "knn", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name == "exit_codes.py":
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    assert not node.value.startswith("error: "), path
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "sys.exit":
                    assert not any(isinstance(a, ast.Constant) for a in node.args), path
