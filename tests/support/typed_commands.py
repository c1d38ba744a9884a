"""Commands that pages ask their readers to type: found, parsed by the real parsers, run in this process."""

import contextlib
import inspect
import io
import os
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from mimbench.__main__ import main as mimbench
from mimbench.benchmarks.preflight import inspect_recipe
from mimbench.commands import command_summaries, load_command
from mimbench.suite.task_main import task_main, task_parser
from mimbench.system.options import Parser

ROOT = Path(__file__).parents[2]
OURS = re.compile(
    r"(?:[A-Z_]+=\S+ )*(\./run_all\.sh|(?:\.venv/bin/)?mimbench|(?:\.venv/bin/)?python -m"
    r"|torchrun|make|\./\S+\.sh|tests/support/\S+\.sh|(?:\.venv/bin/)?python \S+\.py)(?= |$)"
)
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
SHELL = ("", "sh", "bash", "console")


def blocks(text: str, *languages: str) -> list[str]:
    """Return the fenced blocks of some languages."""
    return [body for _, language, body in FENCE.findall(text) if language in languages]


def block_commands(text: str) -> Iterator[str]:
    """Yield the commands of ours in a page's fenced blocks, without what is said of them."""
    for body in blocks(text, *SHELL):
        for line in re.sub(r" *\\\n\s*", " ", body).splitlines():
            command = re.split(r"\s{2,}", line.strip().removeprefix("$ "))[0]
            if OURS.match(command):
                yield command


def inline_commands(text: str) -> Iterator[str]:
    """Yield the commands of ours between backticks in prose and tables."""
    for command in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)):
        if OURS.match(command):
            yield command


def words_of(command: str) -> list[str]:
    """Return a command's words as one would type them: examples in place of how a page writes choices."""
    words = []
    for word in shlex.split(re.sub(r"[\[\]](?![\d.,]*\])", "", command), comments=True):
        if word in ("|", ";", "&&", ">", "<"):
            break
        word = re.sub(r"(\.\.\.|…)$", "", word).partition("|")[0]
        if not word and words and words[-1].startswith("--"):
            word = "X"
        words += ["1" if word in ("N", "K") else word] if word else []
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    return words


def target_of(words: list[str]) -> tuple[str, list[str]]:
    """Return what a command starts (`run`, a verb, a module or a script) and its arguments."""
    first = words[0].removeprefix(".venv/bin/")
    if first == "./run_all.sh":
        return "run", words[1:]
    if first == "mimbench":
        return (words[1], words[2:]) if len(words) > 1 else ("", [])
    if first in ("python", "torchrun") and "-m" in words:
        rest = words[words.index("-m") + 1 :]
        return target_of(["mimbench", *rest[1:]]) if rest[0] == "mimbench" else (rest[0], rest[1:])
    return words[1 if first == "python" else 0], words[1:]


def fault(command: str) -> str:
    """Return what is wrong with a command, by the parser that would read it; '' if nothing.

    A mention may leave out what is required; whatever it names must exist.
    """
    words = words_of(command)
    target, arguments = target_of(words)
    if words[0] == "make":
        known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        return "" if words[1] in known else f"no target {words[1]} in the Makefile"
    if target.endswith((".sh", ".py")):
        return "" if (ROOT / target).is_file() else f"there is no {target}"
    if not target or target.startswith("-") or target == "VERB":
        return ""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            _parse(target, arguments)
        except (SystemExit, ModuleNotFoundError) as end:
            if isinstance(end, ModuleNotFoundError):
                return str(end)
            missing = "the following arguments are required" in said.getvalue()
            return "" if not end.code or missing else said.getvalue().strip()
    return ""


class ParsedError(Exception):
    """Ends a command once its arguments are read."""


def _parse(target: str, arguments: list[str]) -> None:
    """Let a command read its arguments and do no more."""
    if target in command_summaries():
        load_command(target)[1].parse_args(arguments)
        return
    module = _module(target)
    if not hasattr(module, "main"):
        if "task_main(" in inspect.getsource(module):
            task_parser(target).parse_args(arguments)
        return
    read = Parser.parse_args

    def parse(self: Parser, *args: Any) -> Any:
        read(self, *args)
        raise ParsedError

    with mock.patch.object(Parser, "parse_args", parse), contextlib.suppress(ParsedError):
        module.main(arguments)


def _module(name: str) -> Any:
    """Return the module that `python -m NAME` runs."""
    package = (ROOT / name.replace(".", "/")).is_dir()
    return import_module(f"{name}.__main__" if package else name)


class HereProcess:
    """A cell's process that ran in this one, to its end."""

    pid = 0

    def __init__(self, command: list[str], folder: Path, slot: Any) -> None:
        with (folder / "log.txt").open("a") as log, contextlib.redirect_stderr(log):
            self.code = mimbench(command[command.index("mimbench") + 1 :])

    def poll(self) -> int:
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        return self.code


def type_command(command: str, *more: str) -> tuple[int, str]:
    """Run a command of ours in this process; return its exit code and what it wrote to stdout.

    Cells and the look into their recipes run here too; the report, a process of its own, is left out.
    """
    target, arguments = target_of(words_of(command))
    arguments = [*arguments, *more]
    before = dict(os.environ)
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        mock.patch("mimbench.suite.running.runner.start", HereProcess),
        mock.patch("mimbench.benchmarks.cells.preflight", _preflight),
        mock.patch("mimbench.suite.suite._report"),
    ):
        try:
            if target in command_summaries():
                code = mimbench([target, *arguments])
            elif hasattr(module := _module(target), "main"):
                code = module.main(arguments)
            else:
                code = task_main("knn.classify" if target == "knn" else target, arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os.environ.clear()
            os.environ.update(before)
    return code, said.getvalue()


def _preflight(queries: Any, data: Path | None, *, own: bool = False, specs: Any = ()) -> Any:
    return [inspect_recipe(query, data, own=own, specs=specs) for query in queries]


def plain(text: str) -> str:
    """Return output without what differs from run to run: digits, and blanks that line them up."""
    text = re.sub(r"\S*/hub/models--", "hub/models--", text)
    text = re.sub(r"\b[0-9a-f]{12,}\b", "0", text)
    text = re.sub(r"\d[\d,]*(\.\d+)?", "0", text)
    return "\n".join(re.sub(r"[ ─-]{2,}", " ", line).strip() for line in text.strip().splitlines())
