"""Command-line options: one name and one meaning for each, whichever command takes it."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mimbench.system.errors import did_you_mean
from mimbench.system.exit_codes import ExitCode, report_error


def user_path(text: str) -> Path:
    """Return a path as it was typed; the shell leaves the ~ of --out=~/runs to us."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~ of nobody: a name like any other
        return Path(text)


SHARED: Mapping[str, Mapping[str, Any]] = {
    "--batch": {"type": int, "metavar": "N", "help": "images in one step"},
    "--benchmarks": {
        "type": user_path,
        "metavar": "FILE",
        "help": "the manifest (benchmarks.yaml)",
    },
    "--data": {"type": user_path, "metavar": "DIR", "help": "where the data is"},
    "--device": {"default": "auto", "metavar": "D", "help": "auto, cpu, cuda or cuda:N"},
    "--eval-only": {"type": user_path, "metavar": "RUN", "help": "score a trained model once more"},
    "--fresh": {"action": "store_true", "help": "start over; nothing done before is reused"},
    "--gap": {
        "action": "store_true",
        "help": "measure the recipe gap too: the number under neighbouring settings of the recipe",
    },
    "--gpus": {"type": int, "metavar": "N", "help": "how many GPUs on each machine"},
    "--image-size": {"type": int, "metavar": "N", "help": "side of the images in pixels"},
    "--images": {"type": int, "metavar": "N", "help": "how many images"},
    "--imported": {
        "type": user_path,
        "action": "append",
        "default": [],
        "metavar": "PATH",
        "help": "show imported rows too, of a file or a folder (verb: import)",
    },
    "--jobs": {"type": int, "metavar": "N", "help": "how many run side by side"},
    "--json": {"action": "store_true", "help": "print JSON"},
    "--max-batch": {"type": int, "metavar": "N", "help": "images that fit one process at once"},
    "--no-lock": {
        "action": "store_true",
        "help": "for file systems without locks; make sure that this is the only run",
    },
    "--nodes": {"type": int, "metavar": "N", "help": "how many machines"},
    "--num-heads": {"type": int, "metavar": "N", "help": "attention heads, if the file is silent"},
    "--only": {"metavar": "A,B", "help": "benchmark ids or groups, separated by commas"},
    "--out": {"type": user_path, "metavar": "PATH", "help": "where to write"},
    "--parts": {"nargs": "+", "help": "what to measure"},
    "--precision": {"metavar": "P", "help": "floating-point format of the computation"},
    "--profile": {"metavar": "P", "help": "which variant of the recipes"},
    "--recompute": {
        "action": "store_true",
        "help": "less memory, more time, where the backbone is trained",
    },
    "--reference": {
        "action": "append",
        "default": [],
        "metavar": "NAME=METHOD [EPOCHS]",
        "help": "published row that a checkpoint should reproduce, such as 'ckpt=HPM 800'",
    },
    "--repeat": {"type": int, "metavar": "N", "help": "how many measurements count"},
    "--seed": {"type": int, "default": 0, "metavar": "N", "help": "seed of all random numbers"},
    "--seeds": {"type": int, "metavar": "N", "help": "how many seeds, from 0 on"},
    "--set": {
        "action": "append",
        "default": [],
        "metavar": "KEY=VALUE",
        "help": "change one value; may be repeated",
    },
    "--show": {"type": int, "metavar": "N", "help": "with --eval-only: draw N images"},
    "--signer": {
        "type": user_path,
        "metavar": "FILE",
        "help": "public SSH key (or allowed_signers file) that a bundle must be signed with",
    },
    "--steps": {"type": int, "metavar": "N", "help": "how many steps count"},
    "--strict": {
        "action": "store_true",
        "help": "fail on numbers that nothing in the bundle determines, too",
    },
    "--table": {"metavar": "TABLE", "help": "a paper's table, such as hpm.main (verb: tables)"},
    "--threads": {"type": int, "metavar": "N", "help": "threads on a CPU"},
    "--track": {
        "choices": ("wandb", "mlflow", "trackio"),
        "default": "",
        "help": "follow the run in this client as well",
    },
    "--vit": {"metavar": "SIZE", "help": "size of the network: tiny, small, base, large"},
    "--which": {"metavar": "W", "help": "network of a file with several: student, teacher, ema"},
    "--workers": {"type": int, "metavar": "N", "help": "loader processes for each process"},
}
"""Options that more than one command takes."""

SHORT = {"--out": "-o"}


def add_option(
    parser: argparse._ActionsContainer,
    name: str,
    detail: str = "",
    **changes: Any,
) -> None:
    """Add a shared option to a parser or a group of it.

    Args:
        parser: Where to add it.
        name: One of `SHARED`.
        detail: What this command adds to the shared help text, such as the default.
        **changes: What differs here, such as `default` or `required`; never the meaning.
    """
    shared = dict(SHARED[name])
    if detail:
        shared["help"] = f"{shared['help']}; {detail}"
    flags = [SHORT[name], name] if name in SHORT else [name]
    parser.add_argument(*flags, **{**shared, **changes})


def add_checkpoint(parser: argparse.ArgumentParser, **changes: Any) -> None:
    """Add the checkpoint, the argument without a name."""
    what = "checkpoint: a file, a folder as Hugging Face writes them, timm:NAME or hf:ORG/NAME"
    parser.add_argument("checkpoint", **{"type": Path, "metavar": "CKPT", "help": what, **changes})


def add_reading(parser: argparse._ActionsContainer) -> None:
    """Add what reading a checkpoint may need to know."""
    add_option(parser, "--which")
    add_option(parser, "--num-heads")


class Parser(argparse.ArgumentParser):
    """A parser with exact option names, errors in one line, and old spellings that still work."""

    def __init__(self, **settings: Any) -> None:
        """Make a parser; `settings` are those of `argparse`."""
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)
        self.renamed: dict[str, str] = {}
        self.removed: dict[str, str] = {}

    def rename(self, **names: str) -> None:
        """Accept old spellings: `rename(heads="--num-heads")` reads `--heads` so, with a note."""
        self.renamed |= {f"--{old.replace('_', '-')}": new for old, new in names.items()}

    def remove(self, name: str, instead: str) -> None:
        """Refuse an old option, with what to write instead."""
        self.removed[name] = instead

    def current(self, arguments: Sequence[str] | None = None) -> list[str]:
        """Return the arguments (by default the process's) with old spellings replaced by new ones."""
        return [self._current(a) for a in (sys.argv[1:] if arguments is None else arguments)]

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride] - one of its overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse; old spellings become the new ones."""
        return super().parse_known_args(self.current(args), namespace)

    def parse_args(  # pyright: ignore[reportIncompatibleMethodOverride] - one of its overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """Parse; an unknown option is an error that names the nearest one."""
        parsed, extra = self.parse_known_args(args, namespace)
        for argument in extra:
            name = argument.partition("=")[0]
            if name.startswith("-"):
                if name in self.removed:
                    self.error(f"there is no {name} here any more: {self.removed[name]}")
                known = [o for o in self._option_string_actions if o.startswith("--")]
                self.error(f"unknown option '{name}'{did_you_mean(name, known)}")
        if extra:
            self.error(f"too many arguments: {' '.join(extra)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """End the command with one line."""
        report_error(f"{message}; all options: {self.prog} --help")
        self.exit(ExitCode.USAGE)

    def _current(self, argument: str) -> str:
        old, equals, value = argument.partition("=")
        if old not in self.renamed:
            return argument
        sys.stderr.write(f"note: {old} is now called {self.renamed[old]}\n")
        return f"{self.renamed[old]}{equals}{value}"
