"""One name and one meaning for every option, whichever command takes it."""

import argparse
import ast
import importlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mimbench.checkpoints.export import TARGETS
from mimbench.commands import command_summaries, export, load_command
from mimbench.suite.task_main import task_parser
from mimbench.system import options
from mimbench.system.options import SHARED, SHORT, Parser, add_option

ROOT = Path(__file__).parents[1]
FOLDERS = ("mimbench", "pretrain", "transfer", "knn", "bench")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


class CapturedError(Exception):
    """Carries the parser that a command was about to use."""

    def __init__(self, parser: Parser) -> None:
        self.parser = parser


def commands() -> list[str]:
    """Every module that can be started with `python -m`."""
    found = []
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        starts = any(isinstance(n, ast.If) and "__name__" in ast.unparse(n.test) for n in tree.body)
        if starts and path != ROOT / "mimbench" / "__main__.py":
            found.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return found


def parser_of(module: str, monkeypatch: pytest.MonkeyPatch) -> Parser | None:
    """The parser that `python -m module` uses; None for the list of benches, which has no options."""
    command = importlib.import_module(module)
    if module in {"bench.__main__", "knn.__main__"} or not hasattr(command, "main"):
        source = inspect.getsource(command)
        return task_parser(module) if "task_main(" in source else None

    def capture(parser: Parser, *_: Any) -> None:
        raise CapturedError(parser)

    with monkeypatch.context() as patch:
        patch.setattr(Parser, "parse_args", capture)
        # a command that runs with another parser ends here, not with its work
        patch.setattr(argparse.ArgumentParser, "parse_args", capture)
        with pytest.raises(CapturedError) as caught:
            command.main([])
    return caught.value.parser


@pytest.fixture(scope="module")
def parsers() -> Mapping[str, Parser]:
    """Program -> its parser, subcommands apart."""
    found: list[Parser] = [load_command(verb)[1] for verb in command_summaries()]
    patch = pytest.MonkeyPatch()
    for module in commands():
        if parser := parser_of(module, patch):
            found.append(parser)
    whole: dict[str, Parser] = {}
    for parser in found:
        nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        for inner in nested[0].choices.values() if nested else [parser]:
            assert isinstance(inner, Parser)
            whole[inner.prog] = inner
    return whole


def shown(parsers: Mapping[str, Parser]) -> Iterator[tuple[str, argparse.Action]]:
    """Program and argument, for all arguments that help shows."""
    for program, parser in parsers.items():
        for action in parser._actions:
            if action.help != argparse.SUPPRESS and action.dest != "help":
                yield program, action


def meaning(action: argparse.Action) -> tuple[Any, ...]:
    """What has to agree between two commands; their defaults and choices may differ."""
    return type(action).__name__, action.type, (action.help or "").partition(";")[0]


def long_name(action: argparse.Action) -> str:
    return next((o for o in action.option_strings if o.startswith("--")), "")


def test_every_command_is_walked(parsers: Mapping[str, Parser]) -> None:
    programs = set(parsers)
    assert {
        "mimbench run",
        "mimbench table",
        "python -m pretrain",
        "python -m pretrain.show",
    } <= programs
    assert {"python -m transfer.detection", "python -m transfer.segmentation"} <= programs
    assert {"python -m pretrain.masks stats", "python -m bench.knn"} <= programs
    assert len(programs) > 35


def test_parsers_are_all_of_one_class() -> None:
    """Others would have abbreviations, and errors in another form."""
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        made = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
        names = {ast.unparse(n.func).rpartition(".")[2] for n in made}
        assert "ArgumentParser" not in names, path


def test_everything_has_a_help_text(parsers: Mapping[str, Parser]) -> None:
    bare = [f"{program} {a.dest}" for program, a in shown(parsers) if not (a.help or "").strip()]
    assert bare == []


def test_one_name_has_one_meaning(parsers: Mapping[str, Parser]) -> None:
    known: dict[str, tuple[str, tuple[Any, ...]]] = {}
    for program, action in shown(parsers):
        if name := long_name(action):
            first, expected = known.setdefault(name, (program, meaning(action)))
            assert meaning(action) == expected, f"{name}: {first} and {program}"


def test_one_destination_has_one_name(parsers: Mapping[str, Parser]) -> None:
    """`args.out` is always `--out`, and `-o` is nothing else."""
    for program, action in shown(parsers):
        if name := long_name(action):
            assert action.dest == name.removeprefix("--").replace("-", "_"), program
            assert action.option_strings == [*filter(None, [SHORT.get(name)]), name], program


def test_shared_options_are_defined_once() -> None:
    for path in SOURCES:
        if path == Path(inspect.getfile(options)):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".add_argument"):
                names = {a.value for a in node.args if isinstance(a, ast.Constant)}
                assert not names & SHARED.keys(), f"{path}: use add_option"


def test_shared_options_are_all_used(parsers: Mapping[str, Parser]) -> None:
    used: dict[str, set[str]] = {}
    for program, action in shown(parsers):
        used.setdefault(long_name(action), set()).add(program)
    assert {name for name in SHARED if len(used.get(name, ())) < 2} == set()


OLD = [
    ("mimbench inspect", "--heads", "--num-heads"),
    ("mimbench export", "--heads", "--num-heads"),
    ("mimbench report", "--output", "--out"),
    ("mimbench bundle", "--output", "--out"),
    ("python -m pretrain.show", "--output", "--out"),
    ("python -m pretrain.show", "--heads", "--num-heads"),
    ("python -m pretrain.masks show", "--ckpt", "--checkpoint"),
    ("python -m pretrain.masks stats", "--output", "--out"),
    ("python -m pretrain.masks stats", "--size", "--image-size"),
    ("python -m pretrain.checkpoints.export", "--output", "--out"),
    ("python -m pretrain.checkpoints.export", "--layout", "--to"),
    ("python -m transfer.detection", "--num-gpus", "--gpus"),
    ("python -m transfer.detection", "--num-machines", "--nodes"),
    ("python -m transfer.detection", "--machine-rank", "--node-rank"),
]


@pytest.mark.parametrize(("program", "old", "new"), OLD)
@pytest.mark.parametrize("form", ["apart", "joined"])
def test_old_spellings_work_and_name_the_new_one(
    parsers: Mapping[str, Parser],
    program: str,
    old: str,
    new: str,
    form: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = parsers[program]
    assert new in parser._option_string_actions
    assert old not in parser.format_help().split()
    given = [old, "mae"] if form == "apart" else [f"{old}=mae"]
    expected = [new, "mae"] if form == "apart" else [f"{new}=mae"]
    assert parser.current(["x", *given]) == ["x", *expected]
    assert capsys.readouterr().err == f"note: {old} is now called {new}\n"


def test_an_old_spelling_sets_the_new_option(capsys: pytest.CaptureFixture[str]) -> None:
    parser = load_command("inspect")[1]
    assert parser.parse_args(["x.pth", "--heads", "3"]).num_heads == 3
    assert capsys.readouterr().err == "note: --heads is now called --num-heads\n"


def fails(parser: Parser, *arguments: str) -> None:
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(list(arguments))
    assert caught.value.code == 2


def test_what_went_away_says_what_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    fails(load_command("compare")[1], "a", "b", "--out", "runs")
    assert "there is no --out here any more: name the folder last" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--formt", "csv"], "unknown option '--formt'; did you mean '--format'?"),
        (["--form", "csv"], "unknown option '--form'; did you mean '--format'?"),
        (["--format", "cvs"], "argument --format: invalid choice: 'cvs'"),
        (["a", "b"], "too many arguments: b"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(load_command("table")[1], *arguments)
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.endswith("; all options: mimbench table --help\n")
    assert error.count("\n") == 1


def test_detail_extends_the_shared_help() -> None:
    parser = Parser(prog="x")
    add_option(parser, "--out", "default: runs", metavar="DIR")
    assert "-o DIR, --out DIR" in parser.format_help()
    assert "where to write; default: runs" in parser.format_help()


def test_export_offers_every_layout() -> None:
    assert ("native", *TARGETS) == export.LAYOUTS
