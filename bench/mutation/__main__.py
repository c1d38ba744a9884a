"""Do the tests notice a small fault? Plant many, one at a time, and run the tests that go there.

python -m bench.mutation                     the sample: 2 to 6 mutants of a module
python -m bench.mutation --seed 1            another sample
python -m bench.mutation --module 'knn.*'    only these modules
python -m bench.mutation --planted           the faults that once slipped through, by name
python -m bench.mutation --write-page docs/x.md    write the tables into the page

What was found before is reused where neither the module nor the deciding tests have changed; --fresh
starts over. Only what runs in the test's own process, or forked from it, carries the fault.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from bench.mutation import subjects
from bench.mutation.forks import import_heavy
from bench.mutation.memory import KeptResults
from bench.mutation.page import ALIVE, JudgedMutant, page, summary, survivors, table
from bench.mutation.places import ROOT, Mutant, mutants, mutated, sample, source_path
from bench.mutation.planted import planted
from bench.mutation.reach import FileReach, reach_of
from bench.mutation.trials import Chooser, Verdict, try_tree
from mimbench.system.files import write_text
from mimbench.system.options import Parser, add_option
from mimbench.system.source import source_state

EQUIVALENT = ROOT / "bench" / "mutation" / "equivalent.yaml"


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def equivalents() -> dict[str, str]:
    """Return mutant -> why it changes nothing that a result could show."""
    return yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8")) or {}


def drawn(module: str, count: int, seed: int) -> tuple[list[Mutant], int]:
    """Return the sample of a module and how many it was drawn from."""
    found = mutants(module, source_path(module).read_text(encoding="utf-8"))
    return sample(found, count or min(6, 2 + len(found) // 90), seed), len(found)


def judge_all(
    options: argparse.Namespace, memory: KeptResults, chooser: Chooser
) -> list[JudgedMutant]:
    """Try each mutant of the sample; a line for each that lives."""
    reasons, found = equivalents(), []
    began = time.monotonic()
    for module, subject in subjects.in_turns(subjects.modules(options.module)):
        if options.minutes and time.monotonic() - began > 60 * options.minutes:
            break
        chosen, of = drawn(module, options.sample, options.seed)
        source = source_path(module).read_text(encoding="utf-8")
        for mutant in chosen:
            reason = reasons.get(mutant.key, "")
            verdict = Verdict("survived") if reason else judge(mutant, source, memory, chooser)
            found.append(JudgedMutant(mutant, subject, of, verdict, reason))
            if found[-1].alive:
                say(f"ALIVE line {mutant.line} {mutant.key} [{verdict.outcome}, {verdict.tests} tests]")  # fmt: skip
        alive = sum(one.alive for one in found)
        say(f"{time.strftime('%H:%M')} {module}: {len(chosen)} of {of}; alive so far {alive} of {len(found)}")  # fmt: skip
        memory.save()
    return found


def judge(mutant: Mutant, source: str, memory: KeptResults, chooser: Chooser) -> Verdict:
    """Try one mutant, unless it is known."""
    nodes = chooser.nodes(mutant.module, mutant.place)
    verdict = memory.verdict(mutant.key, mutant.module, nodes)
    if verdict is None or verdict.outcome == "undecided":
        verdict, _ = try_tree(mutant.module, mutated(mutant, source), nodes)
        memory.keep(mutant.key, mutant.module, nodes, verdict)
    if verdict.by:
        chooser.kills[mutant.module, verdict.by] += 1
    return verdict


def judge_planted(memory: KeptResults, chooser: Chooser, names: Sequence[str]) -> tuple[str, int]:
    """Try each planted fault; return the table and how many live."""
    lines, alive = ["| fault | module | noticed by |", "|---|---|---|"], 0
    faults = [fault for fault in planted() if not names or fault.name in names]
    for fault in faults:
        nodes = chooser.nodes(fault.module, fault.place())
        key = f"planted: {fault.name} {fault.put}"
        verdict, ended = memory.verdict(key, fault.module, nodes), None
        if verdict is None or names or verdict.outcome == "undecided":
            verdict, ended = try_tree(fault.module, fault.tree(), nodes)
            memory.keep(key, fault.module, nodes, verdict)
            memory.save()
        lives = verdict.outcome in ALIVE
        alive += lives
        by = "**nothing**" if lives else f"`{verdict.by.partition('::')[2] or verdict.by}`"
        lines.append(f"| {fault.name} | `{fault.module}` | {by} |")
        say(f"{'ALIVE' if lives else 'ok'} {fault.name}: {verdict}")
        if lives and ended is not None and (names or verdict.outcome == "undecided"):
            say(ended.log[-3000:])
    head = f"{len(faults) - alive} of {len(faults)} planted faults are noticed."
    return "\n".join([head, "", *lines]), alive


def watch(memory: KeptResults, *, trust: bool = False) -> dict[str, FileReach]:
    """Find out which test enters which function of the modules of interest."""
    names = {*subjects.modules(), *(fault.module for fault in planted())}
    sources = {name: source_path(name).read_text(encoding="utf-8") for name in sorted(names)}
    return reach_of(
        subjects.test_files(), sources, memory.reach, say, memory.keep_reach, trust=trust
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sample or the planted faults; the exit code is 1 while any lives."""
    parser = Parser(prog="python -m bench.mutation", description=__doc__)
    parser.add_argument("--module", action="append", metavar="PATTERN", help="only these modules")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="mutants of a module (0: by its size)")  # fmt: skip
    add_option(parser, "--seed", "which sample")
    parser.add_argument("--planted", nargs="*", metavar="NAME", help="the planted faults instead")
    parser.add_argument(
        "--minutes", type=float, default=0.0, metavar="N", help="for all parts together"
    )
    parser.add_argument("--list", action="store_true", help="only list the mutants that are drawn")
    parser.add_argument(
        "--write-page", type=Path, metavar="FILE", help="write the tables into this page"
    )
    parser.add_argument(
        "--section", default="", metavar="NAME", help="the page's section (seed N by default)"
    )
    parser.add_argument(
        "--trust", action="store_true", help="choose tests by what they entered when last watched"
    )
    add_option(parser, "--fresh")
    options = parser.parse_args(argv)
    options.module = options.module or ["*"]
    if options.list:
        for module in subjects.modules(options.module):
            for mutant in drawn(module, options.sample, options.seed)[0]:
                say(f"{mutant.line:4} {mutant.key}")
        return 0
    import_heavy()
    memory = KeptResults(fresh=options.fresh)
    chooser = Chooser(watch(memory, trust=options.trust))
    faults, alive, runs = "", 0, {}
    if options.planted is not None or (options.write_page and not options.section):
        faults, alive = judge_planted(memory, chooser, options.planted or ())
    if options.planted is None:
        found = judge_all(options, memory, chooser)
        say("\n".join(["", summary(found), "", *table(found), "", *survivors(found)]))
        alive += sum(one.alive for one in found)
        runs = {options.section or f"seed {options.seed}": found}
    if options.write_page:
        commit, dirty = source_state()
        text = options.write_page.read_text(encoding="utf-8")
        where = commit[:7] + " with changes" * dirty
        write_text(options.write_page, page(text, runs, faults, commit=where))
    return int(alive > 0)


if __name__ == "__main__":
    sys.exit(main())
