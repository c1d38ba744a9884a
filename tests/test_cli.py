"""The command line: verbs are files, mistakes are sentences, and nothing is imported for nothing."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mimbench import __main__ as cli
from mimbench import commands
from mimbench.system.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of verbs for this test alone."""
    monkeypatch.setattr(commands, "__path__", [str(tmp_path)])
    yield_to = [name for name in sys.modules if name.startswith("mimbench.commands.")]
    for name in yield_to:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "__init__.py").touch()
    return tmp_path


def add_verb(folder: Path, name: str, body: str) -> None:
    (folder / f"{name}.py").write_text(
        f'"""Do {name}.\n\nAt length."""\n'
        "from mimbench.system.errors import UserError\n"
        "def add_arguments(parser):\n    parser.add_argument('--n', type=int, default=0)\n"
        f"def main(args):\n    {body}\n"
    )


@pytest.fixture(autouse=True)
def forget_verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that a test imports as verbs are gone after it."""
    for name in ("one_two", "three"):
        monkeypatch.delitem(sys.modules, f"mimbench.commands.{name}", raising=False)


def test_verb_runs_with_its_arguments_and_returns_its_code(verbs: Path) -> None:
    add_verb(verbs, "one_two", "return args.n")
    assert cli.main(["one-two", "--n", "5"]) == 5


def test_user_error_is_a_message_without_traceback(
    verbs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_verb(verbs, "three", "raise UserError('no such file: x.pth')")
    assert cli.main(["three"]) == 2
    assert capsys.readouterr() == ("", "error: no such file: x.pth\n")


def test_own_mistake_keeps_its_traceback(verbs: Path) -> None:
    add_verb(verbs, "three", "raise ZeroDivisionError")
    with pytest.raises(ZeroDivisionError):
        cli.main(["three"])


def test_unknown_verb_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown verb 'docter'; did you mean 'doctor'\\?"):
        cli.dispatch(["docter"])


def test_help_lists_verbs_without_importing_them(
    verbs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (verbs / "broken.py").write_text('"""Explode on import."""\nraise SystemError\n')
    add_verb(verbs, "three", "return 0")
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "  broken  Explode on import.\n" in out
    assert "  three   Do three.\n" in out
    assert cli.main([]) == 2


def test_help_of_a_verb_is_its_docstring(verbs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_verb(verbs, "three", "return 0")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["three", "--help"])
    assert "At length." in capsys.readouterr().out


@pytest.mark.parametrize("verb", sorted(cli.command_summaries()))
def test_every_verb_has_a_help_line(verb: str) -> None:
    summary = cli.command_summaries()[verb]
    assert summary.endswith((".", ";"))
    assert len(summary) <= 100


def test_closed_pipe_is_not_a_traceback(tmp_path: Path) -> None:
    shell = f"'{sys.executable}' -c 'import sys; from mimbench.__main__ import main; sys.exit(main([\"--help\"]))' | true"
    done = subprocess.run(shell, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_starts_without_torch() -> None:
    """The doctor has to run where torch does not."""
    script = (
        "import sys; from mimbench.__main__ import main; import mimbench.commands.doctor; "
        "main(['--version']); heavy = {'torch', 'numpy', 'timm', 'yaml'} & set(sys.modules); "
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


COMPLETED = [
    (["mimbench", "ta"], ["table", "tables"]),
    (["mimbench", "run", "--num"], ["--num-heads"]),
    (["mimbench", "table", "--format", "c"], ["csv"]),
    (["mimbench", "completion", ""], ["bash", "zsh"]),
    (["mimbench", "table", "two wo"], ["two words"]),
    (["mimbench", "table", "--benchmarks", "two"], ["two words"]),
    (["./run_all.sh", "--dr"], ["--dry-run"]),
]


@pytest.mark.parametrize(("words", "expected"), COMPLETED)
def test_bash_completion(
    words: list[str], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "two words").touch()
    arguments = " ".join(map(shlex.quote, words))
    ask = f"COMP_WORDS=({arguments}); COMP_CWORD={len(words) - 1}; _mimbench"
    show = "printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(
        ["bash", "--norc", "-euc", f"{capsys.readouterr().out}\n{ask}; {show}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines() == expected


def test_zsh_completion_names_every_verb_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "zsh"]) == 0
    text = capsys.readouterr().out
    for verb in commands.command_summaries():
        assert f"    {verb})\n" in text
        for action in commands.load_command(verb)[1]._actions:
            assert all(f"{name}[" in text for name in action.option_strings)
    if zsh := shutil.which("zsh"):
        subprocess.run([zsh, "-fn"], input=text, text=True, check=True)


def test_run_all_stays_in_the_folder_of_its_caller(tmp_path: Path) -> None:
    """Relative paths mean what they mean there, and modules that lie there hide none of ours."""
    root = tmp_path / "clone with spaces"
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / "run_all.sh").write_bytes((ROOT / "run_all.sh").read_bytes())
    (root / "setup.sh").write_text("#!/bin/sh\necho set up >&2\n")
    (root / ".venv/bin/python").write_text(
        '#!/bin/sh\nprintf "%s|" "$PWD" "$PYTHONPATH" "$PYTHONSAFEPATH" "$@"\nexit 3\n'
    )
    for name in ("run_all.sh", "setup.sh", ".venv/bin/python"):
        (root / name).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(root / "run_all.sh"), "my ckpt.pth", "--dry-run"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stdout == f"{tmp_path}|{root}|1|-m|mimbench|run|my ckpt.pth|--dry-run|"
    assert done.stderr == "set up\n"
