"""`python -m pretrain.compare`: strategies against each other.

  plan DESIGN                      what the experiment could find, before anything runs
  run DESIGN --data D --out OUT    train and score every arm of every block; goes on where it stopped
  report OUT                       tables, and verdicts where it can decide
  suite                            tiny runs of every mask, scored by the suite's benchmarks

DESIGN is a YAML file, or the name of one in pretrain/compare/designs. OUT keeps the design it began
with. D holds train.tar and test.tar, or folders of these names, with a folder for each class.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mimbench.system.config import from_mapping, load_yaml
from mimbench.system.errors import UserError
from mimbench.system.exit_codes import ExitCode, run_command
from mimbench.system.logs import configure_logging
from mimbench.system.options import Parser, add_option


def parser() -> Parser:
    """Return the command line."""
    out = Parser(prog="python -m pretrain.compare", description=__doc__)
    verbs = out.add_subparsers(dest="verb", required=True)
    plan = verbs.add_parser("plan", help="what the experiment could find")
    go = verbs.add_parser("run", help="train and score what is not done yet")
    for verb in (plan, go):
        verb.add_argument("design", metavar="DESIGN", help="a YAML file, or the name of a design")
    add_option(go, "--data", "train and test, each a tar file or a folder", required=True)
    add_option(go, "--out", "the experiment's folder", required=True, metavar="DIR")
    add_option(go, "--jobs", "trainings: one for each core, or several on one GPU (1)", default=1)
    add_option(go, "--device", default="cpu")
    report = verbs.add_parser("report", help="tables and verdicts")
    report.add_argument("out", type=Path, metavar="OUT", help="the experiment's folder")
    verbs.add_parser("suite", help="the suite's benchmarks over tiny runs", add_help=False)
    return out


def report(out: Path) -> str:
    """Return everything that the runs in a folder say, as Markdown."""
    # not before the options are read: --help and a wrong option need no torch
    from pretrain.compare.blocks import DESIGN, untrained  # noqa: PLC0415
    from pretrain.compare.design import Design  # noqa: PLC0415
    from pretrain.compare.report import (  # noqa: PLC0415
        collect,
        planned,
        qualities,
        secondary,
        table,
        verdict,
    )

    path = out / DESIGN
    if not path.is_file():
        raise UserError(f"{out} holds no {DESIGN}: no experiment has begun there")
    design = from_mapping(Design, load_yaml(path), path.name)
    steps, matched = collect(out, design, "steps"), collect(out, design, "time")
    _, lines = verdict(design, steps)
    parts = [planned(design), *lines, "Equal steps:", table(design, steps)]
    if matched:
        parts += ["Equal time (the reference's):", table(design, matched, steps)]
    parts += ["All outcomes:", secondary(design, steps), "Masks:", qualities(design, steps)]
    parts += untrained(out)
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["suite"]:
        from pretrain.compare import suite  # noqa: PLC0415

        return suite.main(given[1:])
    args = parser().parse_args(given)
    configure_logging()
    return run_command(_perform, args)


def _perform(args: argparse.Namespace) -> int:
    if args.verb == "report":
        sys.stdout.write(report(args.out) + "\n")
        return ExitCode.OK
    from pretrain.compare.blocks import RunOptions, run  # noqa: PLC0415
    from pretrain.compare.design import read_design  # noqa: PLC0415
    from pretrain.compare.report import planned  # noqa: PLC0415

    design = read_design(args.design)
    sys.stdout.write(planned(design) + "\n")
    sys.stdout.flush()
    if args.verb == "run":
        if args.jobs < 1:
            raise UserError(f"--jobs is {args.jobs}, expected 1 or more")
        run(design, RunOptions(data=args.data, out=args.out, device=args.device, jobs=args.jobs))
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
