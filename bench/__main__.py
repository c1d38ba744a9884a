"""What speed and memory there is, measured: `python -m bench` lists, `python -m bench NAME` runs.

python -m bench                          what can be measured
python -m bench pretrain_loader          one of them; further arguments go to it
python -m bench --quick                  all that take a minute or two
"""

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from mimbench.system.errors import did_you_mean
from mimbench.system.exit_codes import ExitCode, report_error

QUICK: dict[str, list[str]] = {
    "pretrain_loader": ["--images", "32", "--repeat", "3"],
    "pretrain_step": ["--vit", "tiny", "--batch", "2", "--repeat", "2"],
}
"""What `--quick` runs, and with which arguments."""


def benches() -> dict[str, str]:
    """Return name -> first line of the docstring, of each module here that has a `main`."""
    found: dict[str, str] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        runs = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
        if runs and not path.name.startswith("_"):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def run(name: str, arguments: Sequence[str]) -> int:
    """Run one bench with its own arguments; return its exit code."""
    module = importlib.import_module(f"bench.{name}")
    return module.main(list(arguments)) or 0


def main(argv: Sequence[str] | None = None) -> int:
    """List the benches, or run one or the quick ones."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    known = benches()
    if arguments == ["--quick"]:
        return max(run(name, options) for name, options in QUICK.items())
    if not arguments or arguments[0] in {"-h", "--help"}:
        width = max(map(len, known))
        lines = [f"  {name:<{width}}  {line}" for name, line in known.items()]
        sys.stdout.write(f"{(__doc__ or '').strip()}\n\n" + "\n".join(lines) + "\n")
        return 0
    if arguments[0] not in known:
        report_error(f"no bench '{arguments[0]}'{did_you_mean(arguments[0], known)}")
        return ExitCode.USAGE
    return run(arguments[0], arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
