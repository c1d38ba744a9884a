"""Completion scripts for shells, written from the parsers of the verbs."""

import argparse
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from mimbench.system.options import user_path

SHELLS = ("bash", "zsh")
SCRIPTS = {"run_all.sh": "run"}
"""Scripts that take the options of a verb."""


def script(
    shell: str,
    program: str,
    summaries: Mapping[str, str],
    parsers: Mapping[str, argparse.ArgumentParser],
) -> str:
    """Return a completion script; it starts no Python when a word is completed.

    Args:
        shell: One of `SHELLS`.
        program: Name of the command.
        summaries: Verb -> what it does.
        parsers: Verb -> its options.
    """
    write: Callable[..., str] = {"bash": _bash, "zsh": _zsh}[shell]
    return write(program, summaries, parsers)


def _options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the options that help shows."""
    return [a for a in parser._actions if a.option_strings and a.help != argparse.SUPPRESS]


def _positionals(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [a for a in parser._actions if not a.option_strings]


def _takes_value(action: argparse.Action) -> bool:
    return action.nargs != 0


def _words(action: argparse.Action) -> str:
    """Return the values an argument allows, separated by blanks; '' for any file or text."""
    return " ".join(map(str, action.choices or ()))


def _bash(
    program: str, summaries: Mapping[str, str], parsers: Mapping[str, argparse.ArgumentParser]
) -> str:
    cases = []
    for verb, parser in parsers.items():
        names = [name for a in _options(parser) for name in a.option_strings]
        lines = [f"      {verb})", f"        options={shlex.quote(' '.join(names))}"]
        values = [
            f"          {'|'.join(a.option_strings)}) values={shlex.quote(_words(a) or '<any>')} ;;"
            for a in _options(parser)
            if _takes_value(a)
        ]
        if values:
            lines += ['        case "$previous" in', *values, "        esac"]
        if words := " ".join(filter(None, map(_words, _positionals(parser)))):
            lines.append(f"        words={shlex.quote(words)}")
        cases += [*lines, "        ;;"]
    verbs = " ".join([*summaries, "--help", "--version"])
    scripts = [f"    {name}) verb={verb} first=0 ;;" for name, verb in SCRIPTS.items()]
    return f"""# bash completion of {program}; made by `{program} completion bash`
_{program}_files() {{
  local IFS=$'\\n'   # names may hold blanks
  COMPREPLY=($(compgen -f -- "$1"))
}}
_{program}() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}"
  local options="" values="" words="" verb="${{COMP_WORDS[1]}}" first=1
  case "${{COMP_WORDS[0]##*/}}" in
{chr(10).join(scripts)}
  esac
  COMPREPLY=()
  if [[ $COMP_CWORD -eq $first ]]; then
    COMPREPLY=($(compgen -W {shlex.quote(verbs)} -- "$current"))
    return
  fi
  case "$verb" in
{chr(10).join(line[2:] for line in cases)}
  esac
  if [[ "$values" == "<any>" ]]; then
    _{program}_files "$current"
  elif [[ -n "$values" ]]; then
    COMPREPLY=($(compgen -W "$values" -- "$current"))
  elif [[ "$current" == -* ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$current"))
  elif [[ -n "$words" ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
  else
    _{program}_files "$current"
  fi
}}
complete -o filenames -F _{program} {program} {" ".join(f"{name} ./{name}" for name in SCRIPTS)}
"""


def _zsh(
    program: str, summaries: Mapping[str, str], parsers: Mapping[str, argparse.ArgumentParser]
) -> str:
    cases = []
    for verb, parser in parsers.items():
        specs = [spec for a in _options(parser) for spec in _zsh_option(a)]
        specs += [_zsh_positional(a) for a in _positionals(parser)]
        cases += [f"    {verb})", "      _arguments -S \\"]
        cases += [*(f"        {shlex.quote(s)} \\" for s in specs), "        && return", "      ;;"]
    verbs = "\n".join(
        "    " + shlex.quote(f"{verb}:{_escaped(text)}") for verb, text in summaries.items()
    )
    return f"""#compdef {program} {" ".join(SCRIPTS)}
# zsh completion of {program}; made by `{program} completion zsh`
_{program}_options() {{
  case "$1" in
{chr(10).join(cases)}
  esac
}}
_{program}() {{
  local -a verbs
  case "$service" in
{chr(10).join(f"    {name}) _{program}_options {verb}; return ;;" for name, verb in SCRIPTS.items())}
  esac
  verbs=(
{verbs}
  )
  if (( CURRENT == 2 )); then
    _describe verb verbs
    return
  fi
  shift words
  (( CURRENT-- ))
  _{program}_options "$words[1]"
}}
compdef _{program} {program} {" ".join(SCRIPTS)}
"""


def _escaped(text: str) -> str:
    """Return text without what zsh reads as punctuation of a specification."""
    return text.replace("\\", "").replace(":", "\\:").replace("[", "(").replace("]", ")")


def _zsh_option(action: argparse.Action) -> list[str]:
    repeat = "*" if isinstance(action, argparse._AppendAction) else ""
    value = f":{action.dest}:{_zsh_values(action)}" if _takes_value(action) else ""
    return [
        f"{repeat}{name}[{_escaped(action.help or '')}]{value}" for name in action.option_strings
    ]


def _zsh_positional(action: argparse.Action) -> str:
    many = "*" if action.nargs in {"*", "+"} else ""
    return f"{many}:{action.dest}:{_zsh_values(action)}"


def _zsh_values(action: argparse.Action) -> str:
    if words := _words(action):
        return f"({words})"
    return "_files" if action.type in (Path, user_path) or action.nargs in {"*", "+"} else " "
